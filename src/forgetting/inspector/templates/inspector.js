// The controls, the keys, and the start.

function drawFigures() {
  if (!corpus.has_selection) {
    drawCounts();
    drawChart();
    if (corpus.noise) at("figures").append(` · ${noiseFound(corpus.noise.own)}`);
    return;
  }
  const own = state.rho === null;
  const rho = own ? corpus.rho : state.rho;
  at("rho-value").textContent = rho.toFixed(3);
  at("rho").setAttribute("aria-valuetext", rho.toFixed(3));
  at("own").disabled = own;
  at("own").textContent = `reset to ${corpus.rho.toFixed(3)}`;
  const parts = [];
  if (own) {
    parts.push(`As selected: ${percent(corpus.own_negative / corpus.num_tokens)} of ${count(corpus.num_tokens)} tokens negative`);
  } else if (corpus.by_source) {
    parts.push(`At rho ${rho.toFixed(3)}: one threshold per source`);
  } else {
    const value = signed(bounds(0).positive);
    parts.push(`At rho ${rho.toFixed(3)}: not learned if ${corpus.by_sample ? "the sample’s mean quality" : "quality"} is below ${value}`);
  }
  if (detector) parts.push(`estimate: about ${count(Math.round(detector.num_bad))} bad tokens`);
  if (corpus.noise) {
    const noise = corpus.noise;
    parts.push(
      noiseFound(own ? noise.own : [noise.num_not_positive[stepOf(rho)], noise.num_found[stepOf(rho)]]),
    );
  }
  at("figures").textContent = parts.join(" · ");
}

function noiseFound([marked, found]) {
  const noise = corpus.noise;
  const precision = marked ? percent(found / marked) : "–";
  const where = corpus.has_selection ? "tokens not learned" : "tokens at or above 50%";
  return (
    `known noise among the ${where}: precision ${precision}, ` +
    `recall ${percent(found / noise.num_noisy)} ` +
    `(chance: ${percent(noise.num_noisy / noise.num_known)}, ${percent(marked / noise.num_known)})`
  );
}

// A control that moves is followed after a pause; each control waits for itself alone.
const waiting = {};
function later(control, change) {
  clearTimeout(waiting[control]);
  waiting[control] = setTimeout(change, 150);
}

function setRho(rho) {
  state.rho = rho;
  if (rho === null) at("rho").value = corpus.rho;
  mark();
  const shown = at("blocks").querySelector(".shown");
  if (shown) drawToken(shown);
  drawFigures();
  later("rho", () => {
    address.write(sample ? sample.row : null, false);
    if (state.min) state.offset = 0;
    if (state.min) refresh();
    else again();
  });
}

function setThreshold(threshold) {
  state.threshold = threshold;
  mark();
  drawFigures();
  later("threshold", () => {
    address.write(sample ? sample.row : null, false);
    if (state.show === "flagged") again();
  });
}

function filter(name, value, isNew = true) {
  if (state[name] === value) return;
  state[name] = value;
  state.offset = 0;
  sample = null;
  refresh({ isNew });
}

function turn(pages) {
  const offset = state.offset + pages * PAGE;
  if (offset < 0 || offset >= listed.total) return;
  state.offset = offset;
  sample = null;
  refresh({ isNew: true });
}

if (detector) {
  at("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
  at("kind").addEventListener("change", (event) => filter("kind", event.target.value));
}
at("show").addEventListener("change", (event) => filter("show", event.target.value));
at("rho").addEventListener("input", (event) => setRho(Number(event.target.value)));
at("own").addEventListener("click", () => setRho(null));
at("text").addEventListener("input", (event) => {
  const text = event.target.value;
  later("text", () => filter("text", text, false));
});
at("source").addEventListener("change", (event) => filter("source", event.target.value));
at("min").addEventListener("change", (event) => filter("min", Number(event.target.value)));
at("sort").addEventListener("change", (event) => filter("sort", event.target.value));
if (detector) {
  at("color").addEventListener("change", (event) => {
    state.color = event.target.value;
    drawRamp();
    if (sample) drawSample();
    address.write(sample ? sample.row : null, false);
  });
}
if (at("measure")) {
  for (const [name, formula] of Object.entries(corpus.measures)) {
    const option = element("option", "", name === "detector" ? name : `${name}: ${formula}`);
    option.value = name;
    option.selected = name === corpus.quality;
    at("measure").append(option);
  }
  // Another page of the server, with the record and the filters of this one in its address.
  at("measure").addEventListener("change", (event) => {
    location.search = new URLSearchParams({ measure: event.target.value });
  });
}
at("back").addEventListener("click", () => turn(-1));
at("on").addEventListener("click", () => turn(1));
at("previous").addEventListener("click", () => choose(chosen - 1));
at("next").addEventListener("click", () => choose(chosen + 1));
for (const kind of ["mouseover", "focusin", "click"]) {
  at("blocks").addEventListener(kind, (event) => {
    const piece = event.target.closest(".t");
    if (piece) drawToken(piece);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && field) field.blur();
  const isArrow = event.key.startsWith("Arrow");
  // A slider keeps its arrow keys, text fields and menus keep all keys, long context keeps scrolling.
  if (field && (field.type !== "range" || isArrow)) return;
  if (isArrow && event.target.closest(".context")) return;
  const isNew = !event.repeat; // a key that is held is not a step of Back each time
  const actions = {
    j: () => choose(chosen + 1, isNew),
    ArrowDown: () => choose(chosen + 1, isNew),
    k: () => choose(chosen - 1, isNew),
    ArrowUp: () => choose(chosen - 1, isNew),
    ArrowRight: () => walk(1),
    ArrowLeft: () => walk(-1),
    "]": () => walkSpans(1),
    "[": () => walkSpans(-1),
    a: () => decideHere("accept"),
    r: () => decideHere("reject"),
    e: () => decideHere("edit"),
    "/": () => at("text").focus(),
  };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// The tokens of the span that has the focus stand out.
for (const kind of ["focusin", "focusout"]) {
  at("spans").addEventListener(kind, (event) => {
    const line = event.target.closest(".span");
    const inside = pieces().filter(
      ({ dataset }) => line && dataset.start < line.span.stop && dataset.stop > line.span.first,
    );
    for (const piece of inside) piece.classList.toggle("focused", kind === "focusin");
    if (kind === "focusin" && inside.length) inside[0].scrollIntoView({ block: "nearest" });
  });
}

if (corpus.has_records) {
  at("download").addEventListener("click", () => {
    marks.load();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([marks.asFile()], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  at("open").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    const wrong = marks.read(await file.text());
    event.target.value = "";
    changed();
    if (wrong) at("tally").textContent = wrong;
  });
}

// The marks are others: another tab or a file has changed them.
function changed() {
  if (sample) mark();
  else drawDecisions();
  markRows();
}
window.addEventListener("storage", (event) => {
  if (!marks.isOwnKey(event.key)) return;
  marks.load();
  changed();
});

// ---- Start ----

at("verdict").textContent = detector && !corpus.has_selection ? detector.verdict : "";
at("verdict").hidden = !at("verdict").textContent;
at("about").textContent = corpus.about;
function addOptions(name, labels) {
  labels.forEach((label, index) => {
    const option = element("option", "", label);
    option.value = index;
    at(name).append(option);
  });
}
addOptions("source", corpus.sources);
if (detector) addOptions("kind", detector.kinds);
function drawRamp() {
  const isPosterior = state.color === "posterior";
  const [low, , high] = corpus.scale;
  at("ramp-name").textContent = isPosterior ? "probability of being bad" : "";
  at("low").textContent = isPosterior ? "0" : signed(low, 2);
  at("high").textContent = isPosterior ? "1" : signed(high, 2);
  const levels = [];
  for (let level = corpus.color_levels; level > 0; level--) levels.push(`b${level}`);
  levels.push("");
  for (let level = 1; level <= corpus.color_levels; level++) levels.push(`g${level}`);
  const shown = isPosterior ? levels.slice(0, corpus.color_levels + 1).reverse() : levels;
  at("ramp").replaceChildren(...shown.map((level) => element("i", level)));
}

// The view that the address asks for.
function open() {
  const { found, row } = address.read();
  Object.assign(state, found);
  for (const name of ["text", "source", "kind", "min", "show", "sort", "color"]) {
    if (at(name)) at(name).value = state[name];
  }
  at("rho").value = state.rho ?? corpus.rho;
  drawRamp();
  drawFigures();
  const isShown = sample !== null && sample.row === row;
  if (isShown) drawSample();
  else sample = null;
  refresh({ row });
}

at("key-ignored").hidden = !corpus.ignores;
// Fields and filters do not fit next to the answer on a small screen.
at("filters").open = !matchMedia("(max-width: 48rem)").matches;
window.addEventListener("popstate", open);
open();
drawDecisions();
