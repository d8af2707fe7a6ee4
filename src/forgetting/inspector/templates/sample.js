// One sample: its messages, and the color and marks of its tokens.

function withLineBreaks(text) {
  return text.split("\n").flatMap((line, index) => {
    if (!index) return [line];
    return [element("span", "nl"), "\n", line];
  });
}

// The class of a color for the tokens from `start` to `stop` of the sample that is shown.
function color(start, stop) {
  const mean = (values) => values.slice(start, stop).reduce((a, b) => a + b) / (stop - start);
  if (state.color === "posterior") {
    // A piece of several tokens is as bad as its worst one.
    const level = Math.round(Math.max(...sample.posterior.slice(start, stop)) * corpus.color_levels);
    return level ? `b${level}` : "";
  }
  return colorOf(mean(sample.quality));
}

function colorOf(quality) {
  const [low, center, high] = corpus.scale;
  const distance = quality - center;
  const end = distance > 0 ? high - center : center - low;
  const share = end > 0 ? Math.min(Math.abs(distance) / end, 1) : Number(distance !== 0);
  // The square root, because most tokens are near the middle of a long range.
  const level = Math.round(Math.sqrt(share) * corpus.color_levels);
  return level ? `${distance > 0 ? "g" : "b"}${level}` : "";
}

function drawSample() {
  at("blocks").replaceChildren();
  at("spans").replaceChildren();
  at("record").replaceChildren();
  drawToken(null);
  if (corpus.has_records) at("decide").hidden = !sample;
  if (!sample) {
    at("title").textContent = "No matching sample";
    at("note").textContent = "Relax the filters.";
    return;
  }
  const where = sample.origin ? `${sample.origin.file}, ${placeOf(sample)}` : placeOf(sample);
  const source = corpus.sources[sample.source];
  // A file's source has the name of the file, without its ending, unless the recipe gives another.
  const isSame = sample.origin && sample.origin.file.startsWith(source);
  at("title").textContent = isSame ? where : `${where} · ${source}`;
  at("blocks").append(...drawnBlocks());
  if (sample.num_left_out) {
    at("blocks").append(
      element("p", "note", `… and ${count(sample.num_left_out)} more response tokens.`),
    );
  }
  for (const [name, value] of sample.fields || []) {
    at("record").append(element("div", "", element("dt", "", name), element("dd", "", value)));
  }
  mark();
}

function drawnContext(text, role) {
  const context = element("div", "context");
  if (role) context.append(element("span", "role", role), "\n", text);
  else context.append(...withLineBreaks(text));
  context.dir = "auto";
  context.tabIndex = 0;
  return context;
}

function drawnResponse(block, first) {
  const response = element("div", "response");
  response.dir = "auto";
  response.setAttribute("role", "group");
  response.setAttribute("aria-label", "Response tokens");
  let token = first;
  for (const [text, length] of block) {
    const isEnd = isEndOf(sample, token);
    const inside = isEnd ? [END] : withLineBreaks(text);
    const piece = element("span", `t ${color(token, token + length)}`, ...inside);
    if (isEnd) {
      piece.classList.add("end");
      piece.title = "The response ends here";
    }
    piece.dataset.start = token;
    piece.dataset.stop = token + length;
    piece.tabIndex = token ? -1 : 0;
    token += length;
    response.append(piece);
  }
  return response;
}

// The messages as the user wrote them, and the text with the chat template folded away. Without
// the record, or if its turns cannot be told apart, the text alone.
function drawnBlocks() {
  const responses = [];
  let token = 0;
  for (const block of sample.blocks) {
    if (typeof block === "string") continue;
    responses.push([block, token]);
    for (const [, length] of block) token += length;
  }
  const turns = turnsOf(responses);
  if (turns === null) {
    const drawn = responses.map((one) => drawnResponse(...one));
    return sample.blocks.flatMap((block, place) => {
      if (typeof block !== "string") return [drawn.shift()];
      if (place === sample.blocks.length - 1 && !block.trim()) return [];
      return [drawnContext(block, "")];
    });
  }
  const last = sample.num_left_out ? Math.max(...turns) : sample.messages.length - 1;
  const drawn = sample.messages.slice(0, last + 1).map(([role, text], turn) => {
    const place = turns.indexOf(turn);
    return place < 0 ? drawnContext(text, role) : drawnResponse(...responses[place]);
  });
  const raw = sample.blocks.map((block) =>
    typeof block === "string" ? block : block.map((piece) => piece[0]).join(""),
  );
  const folded = element(
    "details",
    "raw",
    element("summary", "", "Text as the model reads it, with the chat template"),
    element("div", "context", raw.join("")),
  );
  return [...drawn, folded];
}

// The place of each response among the messages; null if it is not known.
function turnsOf(responses) {
  if (!sample.messages) return null;
  const own = sample.messages.flatMap(([role], turn) => (role === "assistant" ? [turn] : []));
  const turns = sample.places ? responses.map(([, token]) => sample.places[3 * token]) : own;
  const isClear = turns.length === responses.length && new Set(turns).size === turns.length;
  return isClear ? turns : null;
}

const pieces = () => [...at("blocks").querySelectorAll(".t")];

// Marks negative tokens and spans: all that depends on the sliders in a sample.
function mark() {
  if (!sample) return;
  const signs = polarity(sample);
  for (const piece of pieces()) {
    const { start, stop } = piece.dataset;
    const inside = signs.slice(start, stop);
    const lowest = Math.min(...inside); // a piece with one negative token is negative
    piece.classList.toggle("negative", lowest < 0);
    piece.classList.toggle("ignored", lowest === 0);
    piece.classList.toggle(
      "noisy",
      sample.noise !== null && sample.noise.slice(start, stop).includes(1),
    );
  }
  const negative = signs.filter((sign) => sign < 0).length;
  const facts = [
    `${count(negative)} of ${count(signs.length)} response tokens ` +
      (corpus.has_selection ? "negative" : `flagged (${percentOf(state.threshold)} or more)`),
  ];
  if (hasQuality) facts.unshift(`mean quality ${signed(sample.mean)}`);
  if (detector) facts.push(`estimate: about ${sample.num_bad.toFixed(1)} ${badWord}`);
  if (showsPosterior && sample.kind_of_all >= 0) {
    facts.push(`likely ${detector.kinds[sample.kind_of_all]}`);
  }
  if (sample.num_noisy) {
    facts.push(`${count(sample.num_noisy)} noisy${sample.noise_kind ? `: ${sample.noise_kind}` : ""}`);
  }
  at("note").textContent = facts.join(" · ");
  drawSpans();
  drawDecisions();
}
