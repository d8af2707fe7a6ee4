// What is known of the token that is pointed at.

const SIGNS = { 1: "learned", 0: "ignored", [-1]: "negative" };

function detectorFacts(index, fact) {
  if (!detector) return [];
  const facts = [fact("probability of being bad", percent(sample.posterior[index]))];
  const kind = detector.kinds[sample.kind[index]];
  if (kind !== undefined) facts.push(fact("likely kind, if bad", kind));
  return facts;
}

// The features that speak most for a piece being bad: of its worst token.
async function drawTelling(piece) {
  const place = at("telling");
  if (!place) return;
  place.replaceChildren();
  if (!piece || !detector.explains) return;
  const { start, stop } = piece.dataset;
  const inside = sample.posterior.slice(start, stop);
  const token = Number(start) + inside.indexOf(Math.max(...inside));
  const row = sample.row;
  const isShown = () => sample && sample.row === row && piece.classList.contains("shown");
  // Pointing passes over many tokens; each answer costs the server some milliseconds.
  await new Promise((done) => setTimeout(done, 120));
  if (!isShown()) return;
  if (corpus.samples === null) place.textContent = "…";
  let told;
  try {
    told = await origin.telling(row, token);
  } catch (error) {
    if (isShown()) place.textContent = `What speaks for it cannot be loaded (${error.message}).`;
    return;
  }
  if (!isShown()) return;
  place.replaceChildren();
  if (told === null) return;
  const named = told.map(([name, loss]) => `${name} (${signed(loss, 1)})`);
  place.append(
    element("span", "", "Speaks for bad (log-odds): "),
    named.join(" · ") || "nothing",
  );
}

function drawToken(piece) {
  for (const other of at("blocks").querySelectorAll(".shown")) other.classList.remove("shown");
  if (!piece) {
    drawTelling(null);
    at("token").replaceChildren(element("p", "", "Point at a token, or move with ← and →."));
    return;
  }
  piece.classList.add("shown");
  drawTelling(piece);
  const signs = polarity(sample);
  const text = piece.textContent.replaceAll(" ", "␣");
  const fact = (name, value) => element("div", "", element("dt", "", name), element("dd", "", value));
  const facts = [fact("token", text || "(no text)")];
  for (let index = Number(piece.dataset.start); index < Number(piece.dataset.stop); index++) {
    const noisy = sample.noise !== null && sample.noise[index] ? " · known noise" : "";
    facts.push(
      fact("id", `${sample.ids[index]}`),
      ...(corpus.has_base ? [fact("base", probability(sample.base[index]))] : []),
      ...(corpus.has_reference
        ? [fact("reference", probability(sample.reference[index]))]
        : []),
      ...detectorFacts(index, fact),
    );
    const rank = `${count(sample.rank[index])} of ${count(corpus.num_tokens)} (${percent(sample.rank[index] / corpus.num_tokens)})`;
    if (hasQuality) {
      facts.push(
        fact("quality", signed(sample.quality[index])),
        fact("rank from the worst", rank),
      );
    }
    if (corpus.has_selection) facts.push(fact("selection", SIGNS[signs[index]] + noisy));
    else if (noisy) facts.push(fact("noise", "known"));
  }
  at("token").replaceChildren(...facts);
}

function walk(step) {
  const all = pieces();
  if (!all.length) return;
  const now = all.findIndex((piece) => piece.classList.contains("shown"));
  const place = now < 0 ? 0 : Math.min(Math.max(now + step, 0), all.length - 1);
  for (const piece of all) piece.tabIndex = -1;
  all[place].tabIndex = 0;
  all[place].focus();
}
