// What the user decided about records and spans. Kept in the browser by the run's fingerprint, and
// saved as decisions.json, which `forgetting clean --decisions` reads.

const DECISIONS = { accept: "accepted", reject: "rejected", edit: "to edit" };

const marks = (() => {
  const KEY = `forgetting-decisions:${corpus.run}`;
  let known = {};
  let isKept = true;

  const keyOf = (id, span) => (span ? `${id}:${span.turn}:${span.start}-${span.end}` : `${id}`);

  function keyOfMark(mark) {
    const [start, end] = mark.span || [];
    return keyOf(mark.sample, mark.span ? { turn: mark.turn, start, end } : null);
  }

  const isNumber = (value) => Number.isInteger(value) && value >= 0;

  function isMark(mark) {
    if (typeof mark !== "object" || mark === null || !Object.hasOwn(DECISIONS, mark.decision)) {
      return false;
    }
    const { sample, row, line, source, file, turn, span } = mark;
    const isSpan = Array.isArray(span) && span.length === 2 && span.every(isNumber) && isNumber(turn);
    return (
      isNumber(sample) && isNumber(row) && (line === null || isNumber(line)) &&
      typeof source === "string" && typeof file === "string" &&
      (isSpan ? span[0] < span[1] : span === null && turn === null)
    );
  }

  // Another tab may have changed them.
  function load() {
    try {
      const found = Object.values(JSON.parse(localStorage.getItem(KEY) || "{}")).filter(isMark);
      known = Object.fromEntries(found.map((mark) => [keyOfMark(mark), mark]));
    } catch {
      isKept = false;
    }
  }

  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(known));
    } catch {
      isKept = false;
    }
  }

  load();

  return {
    load,
    isOwnKey: (key) => key === null || key === KEY,
    isKept: () => isKept,
    all: () =>
      Object.values(known).sort(
        (a, b) =>
          a.sample - b.sample || (a.turn ?? -1) - (b.turn ?? -1) ||
          (a.span ? a.span[0] - b.span[0] || a.span[1] - b.span[1] : 0),
      ),
    of: (id, span) => (known[keyOf(id, span)] || {}).decision,
    spansOf: (id) => Object.values(known).filter((mark) => mark.sample === id && mark.span),
    // Marks a record, or a span of it; the same mark again removes it.
    set(of, span, decision, text) {
      if (isKept) load();
      const key = keyOf(of.id, span);
      if ((known[key] || {}).decision === decision) delete known[key];
      else {
        known[key] = {
          source: corpus.sources[of.source],
          file: of.origin.file,
          line: of.origin.line,
          row: of.origin.row,
          sample: of.id,
          decision,
          turn: span ? span.turn : null,
          span: span ? [span.start, span.end] : null,
          text: span ? text : null,
        };
      }
      save();
    },
    // Identities of the samples with one of these decisions, about them or a span.
    samples: (decisions) => [
      ...new Set(
        Object.values(known)
          .filter((mark) => decisions.includes(mark.decision))
          .map((mark) => mark.sample),
      ),
    ],
    asFile() {
      return JSON.stringify({ version: 1, run: corpus.run, decisions: this.all() }, null, 1);
    },
    // Adds the marks of a file; returns what is wrong with it, or "".
    read(text) {
      let found;
      try {
        found = JSON.parse(text);
      } catch {
        return "This file is not JSON.";
      }
      if (!found || found.version !== 1 || !Array.isArray(found.decisions)) {
        return "This file is not a decisions.json of this version.";
      }
      if (found.run !== corpus.run) return "This file is about another run.";
      const read = found.decisions.map((mark) => ({ line: null, turn: null, span: null, text: null, ...mark }));
      const wrong = read.findIndex((mark) => !isMark(mark));
      if (wrong >= 0) return `Decision ${wrong + 1} of this file cannot be read.`;
      for (const mark of read) known[keyOfMark(mark)] = mark;
      save();
      return "";
    },
  };
})();
