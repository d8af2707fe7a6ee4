// The list of samples, and which of them is shown.

let listed = { total: 0, num_searched: 0, rows: [] };
let chosen = -1; // index in the whole list
let sample = null;
let asked = 0; // number of the latest request of each kind; older answers are dropped
let askedSample = 0;

const origin = corpus.samples === null ? serverSource() : fileSource(corpus.samples);

// Asks for the list. `row`: the record that is to be shown; null: the first of the page.
// `keep`: what is shown stays, even if it is not in the list. `isNew`: as in `load`.
async function refresh({ row = null, keep = false, isNew = false } = {}) {
  const number = ++asked;
  let answer;
  try {
    answer = await origin.list(row);
  } catch (error) {
    at("place").textContent = `The list cannot be read (${error.message}). Is the server running?`;
    return;
  }
  if (number !== asked) return;
  listed = answer;
  state.offset = listed.offset;
  const place = row === null ? -1 : listed.rows.findIndex((one) => one.row === row);
  if (place >= 0) chosen = state.offset + place;
  drawList();
  if (place < 0 && row !== null && !keep) {
    chosen = -1;
    markChosen(false);
    await load(row); // a link to a record that its filters leave out
  } else if (place < 0 && !keep) {
    await choose(state.offset, isNew);
  } else if (place >= 0 && (!sample || sample.row !== row)) {
    markChosen(true);
    await load(row);
  }
  // Texts are decoded in the background: show what was found so far, then ask again.
  if (state.text && listed.num_searched < corpus.num_samples) {
    setTimeout(() => number === asked && again(), 700);
  }
}

const again = () => refresh({ row: sample ? sample.row : null, keep: sample !== null });

function drawList() {
  const last = state.offset + listed.rows.length;
  let place = listed.total
    ? `${count(state.offset + 1)}–${count(last)} of ${count(listed.total)}`
    : "no matching sample";
  if (listed.num_searched < corpus.num_samples) {
    place += ` (searched ${percent(listed.num_searched / corpus.num_samples)})`;
  }
  at("place").textContent = place;
  at("back").disabled = state.offset === 0;
  at("on").disabled = last >= listed.total;
  at("rows").replaceChildren(
    ...listed.rows.map((one, index) => {
      const button = element("button", "", rowFacts(one), element("span", "preview", one.preview));
      button.type = "button";
      button.dataset.id = one.id;
      button.addEventListener("click", () => choose(state.offset + index));
      return element("li", "", button);
    }),
  );
  markRows();
  markChosen(false);
}

function rowFacts(one) {
  const facts = element("span", "facts", element("b", "", placeOf(one)));
  const add = (text) => facts.append(element("span", "", text));
  const shown = one.ids ? one.ids.length : one.num_tokens;
  if (hasQuality) add(`mean ${signed(one.mean, 2)}`);
  if (corpus.has_selection) add(`${percent(shown ? one.num_negative / shown : 0)} negative`);
  if (detector) add(`about ${one.num_bad.toFixed(1)} of ${count(one.num_tokens)} ${badWord}`);
  if (state.sort === "span") add(`worst span ${one.span.toFixed(1)}`);
  if (state.sort === "loss") add(`loss ${one.loss.toFixed(2)}`);
  if (showsPosterior && one.kind_of_all >= 0) add(detector.kinds[one.kind_of_all]);
  if (one.num_noisy) add(`${count(one.num_noisy)} noisy`);
  facts.append(element("i", "badge"));
  return facts;
}

// What was decided, in the list.
function markRows() {
  for (const button of at("rows").querySelectorAll("button")) {
    const id = Number(button.dataset.id);
    const decision = marks.of(id, null);
    const spans = marks.spansOf(id).length;
    const words = [decision ? DECISIONS[decision] : "", spans ? counted(spans, "span") : ""];
    const badge = button.querySelector(".badge");
    badge.textContent = words.filter(Boolean).join(", ");
    badge.className = `badge ${decision || ""}`;
  }
}

function markChosen(scroll) {
  [...at("rows").querySelectorAll("button")].forEach((button, index) => {
    const is = state.offset + index === chosen;
    button.setAttribute("aria-current", String(is));
    if (is && scroll) {
      // Only the list scrolls, not the page.
      const list = at("rows");
      const top = button.offsetTop - list.offsetTop;
      if (top < list.scrollTop) list.scrollTop = top;
      const bottom = top + button.offsetHeight - list.clientHeight;
      if (bottom > list.scrollTop) list.scrollTop = bottom;
    }
  });
  at("previous").disabled = chosen <= 0;
  at("next").disabled = chosen >= listed.total - 1;
}

async function choose(place, isNew = true) {
  if (place < 0 || (place >= listed.total && listed.total)) return;
  if (!listed.total) {
    chosen = -1;
    sample = null;
    drawSample();
    address.write(null, isNew);
    return;
  }
  if (place < state.offset || place >= state.offset + listed.rows.length) {
    chosen = place;
    state.offset = Math.floor(place / PAGE) * PAGE;
    sample = null;
    await refresh({ keep: true });
  }
  const one = listed.rows[place - state.offset];
  if (!one) return;
  chosen = place;
  markChosen(true);
  await load(one.row, isNew);
}

// Shows a record. `isNew`: a step that the browser's Back undoes.
async function load(row, isNew = false) {
  const number = ++askedSample;
  at("pane").setAttribute("aria-busy", "true");
  try {
    const loaded = await origin.load(row);
    if (number !== askedSample) return;
    sample = loaded;
    drawSample();
    address.write(row, isNew);
  } catch (error) {
    at("note").textContent = `The sample cannot be loaded (${error.message}). Is the server running?`;
  }
  at("pane").setAttribute("aria-busy", "false");
}
