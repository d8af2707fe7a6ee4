// What all parts of the page use. `rendering.SCRIPTS` joins the parts into one strict function.
// Text is inserted as textContent only, never as HTML.

const corpus = JSON.parse(document.getElementById("data").textContent);
const detector = corpus.detector;
const PAGE = 50;

const at = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const counted = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const percentOf = (threshold) => `${Math.round(100 * threshold)}%`;
const signed = (number, digits = 3) =>
  number === null ? "–" : (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);
const probability = (p) => (p >= 0.0001 || p === 0 ? p.toPrecision(3) : p.toExponential(2));

function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children); // strings become text nodes
  return made;
}

// Whether there is a measure of quality other than what the detector says.
const hasQuality = corpus.has_selection || corpus.quality !== "detector";
const startsWithQuality = hasQuality && !corpus.has_selection; // somebody asked for it
// Without a selection, the detector's posterior divides, at the threshold of the page.
const badWord = detector !== null && detector.suspected ? "suspected" : "bad";
const showsPosterior = detector !== null && (detector.found || detector.suspected);
const state = {
  rho: null,
  threshold: 0.5,
  text: "",
  source: "",
  kind: "",
  min: 0,
  show: "",
  sort: showsPosterior && !startsWithQuality ? "bad" : hasQuality ? "worst" : "position",
  color: detector && (showsPosterior || !hasQuality) && !startsWithQuality ? "posterior" : "quality",
  offset: 0,
};
const initially = { ...state };

// ---- What is negative at a step of a slider: the thresholds come with the page ----

const stepOf = (rho) => corpus.rhos.findIndex((known) => Math.abs(known - rho) < 1e-6);

function bounds(source) {
  const limits = corpus.thresholds[corpus.by_source ? source : 0];
  const step = stepOf(state.rho);
  // null: no value reaches it.
  return {
    positive: limits.positive[step] ?? Infinity,
    negative: limits.negative[step] ?? Infinity,
  };
}

const ends = new Set(corpus.end_ids);

// Polarity of each response token: as the run selected, or by the thresholds of the slider.
function polarity(of) {
  if (!corpus.has_selection) return of.posterior.map((p) => (p >= state.threshold ? -1 : 1));
  if (state.rho === null) return of.polarity;
  const limits = bounds(of.source);
  return of.quality.map((quality, index) => {
    const value = corpus.by_sample ? of.mean : quality;
    if (value >= limits.positive) return 1;
    if (value >= limits.negative) return 0;
    return ends.has(of.ids[index]) ? 1 : -1;
  });
}

const numNegative = (of) => polarity(of).filter((sign) => sign < 0).length;

// Where a record is, for people.
function placeOf(one) {
  if (!one.origin) return `Sample ${one.id}`;
  return one.origin.line === null ? `record ${one.origin.row}` : `line ${one.origin.line}`;
}
