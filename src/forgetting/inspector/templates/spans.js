// Spans: consecutive flagged tokens of a response, with their characters as in flagged.jsonl.

// Spans of a sample at the present threshold; none if the places of its tokens are not known.
function spansOf(of) {
  if (!of.places) return [];
  const signs = polarity(of);
  const found = [];
  let open = null;
  for (let token = 0; token < signs.length; token++) {
    if (signs[token] >= 0) {
      open = null;
      continue;
    }
    const [turn, start, end] = of.places.slice(3 * token, 3 * token + 3);
    if (open === null || open.turn !== turn) {
      open = { turn, start, end, first: token, stop: token };
      found.push(open);
    }
    open.start = Math.min(open.start, start);
    open.end = Math.max(open.end, end);
    open.stop = token + 1;
  }
  return found.filter((span) => span.end > span.start);
}

// The tokens of a span that was marked at another threshold.
function withTokens(of, mark) {
  const [start, end] = mark.span;
  const inside = [];
  for (let token = 0; of.places && token < of.ids.length; token++) {
    const [turn, from, to] = of.places.slice(3 * token, 3 * token + 3);
    if (turn === mark.turn && from < end && to > start) inside.push(token);
  }
  const first = inside.length ? inside[0] : 0;
  return { turn: mark.turn, start, end, first, stop: first + inside.length };
}

// The kind that most bad tokens from `first` to `stop` are expected to be, in words.
function kindOf(of, first, stop) {
  if (!detector) return "";
  const sums = new Map();
  for (let token = first; token < stop; token++) {
    const kind = of.kind[token];
    if (kind >= 0) sums.set(kind, (sums.get(kind) || 0) + of.posterior[token]);
  }
  const [kind] = [...sums].sort((a, b) => b[1] - a[1] || a[0] - b[0])[0] || [-1];
  return detector.kinds[kind] || "";
}

// Pieces of a sample in order: [first token, the one after the last, text].
function piecesOf(of) {
  let token = 0;
  return of.blocks
    .filter((block) => typeof block !== "string")
    .flat()
    .map(([text, length]) => [token, (token += length), text]);
}

// The mark of the chat template where a response ends.
const END = "⟨end⟩";
const isEndOf = (of, token) => (of.ends || []).includes(token);

const textOf = (of, span) =>
  piecesOf(of)
    .filter(([first, stop]) => first < span.stop && stop > span.first)
    .map(([first, , text]) => (isEndOf(of, first) ? END : text))
    .join("");
