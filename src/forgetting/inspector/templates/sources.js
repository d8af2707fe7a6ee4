// Samples come from the page itself (a file), or from the server, one page of the list at a time.
// Both have `list`, `load` and `telling`.

// Samples that the menu "Show" asks for, by their marks.
function markedSamples() {
  const all = Object.keys(DECISIONS);
  if (state.show === "unmarked") return { without: marks.samples(all) };
  if (state.show === "marked") return { only: marks.samples(all) };
  return all.includes(state.show) ? { only: marks.samples([state.show]) } : {};
}

function fileSource(samples) {
  const texts = samples.map((one) => {
    const own = (one.fields || []).map(([name, value]) => `${name}: ${value}`);
    const told = one.messages
      ? one.messages.map((message) => message[1])
      : one.blocks.map((block) =>
          typeof block === "string" ? block : block.map((piece) => piece[0]).join(""),
        );
    return [...told, ...own, one.origin ? one.origin.file : ""].join("\n").toLowerCase();
  });
  const orders = {
    worst: (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity),
    best: (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity),
    position: (a, b) => a.position - b.position,
    bad: (a, b) => b.num_bad - a.num_bad,
    span: (a, b) => b.span - a.span,
    loss: (a, b) => b.loss - a.loss,
  };
  const byRow = new Map(samples.map((one) => [one.row, one]));
  return {
    async list(row) {
      const wanted = state.text.toLowerCase();
      const { only, without } = markedSamples();
      const found = samples
        .filter((one, index) => {
          if (state.source !== "" && one.source !== Number(state.source)) return false;
          if (state.kind !== "" && one.kind_of_all !== Number(state.kind)) return false;
          if (state.show === "flagged" && one.highest < state.threshold) return false;
          if (only && !only.includes(one.id)) return false;
          if (without && without.includes(one.id)) return false;
          if (wanted && !texts[index].includes(wanted)) return false;
          one.num_negative = numNegative(one);
          return one.num_negative >= state.min * one.ids.length - 1e-9;
        })
        .sort((a, b) => orders[state.sort](a, b) || a.row - b.row);
      const place = row === null ? -1 : found.findIndex((one) => one.row === row);
      const offset = place < 0 ? state.offset : Math.floor(place / PAGE) * PAGE;
      return {
        total: found.length,
        offset,
        num_searched: corpus.num_samples,
        rows: found.slice(offset, offset + PAGE),
      };
    },
    load: async (row) => {
      if (!byRow.has(row)) throw new Error("it is not in this file");
      return byRow.get(row);
    },
    // Only the tokens that are most likely bad have theirs in the file.
    telling: async (row, token) => (byRow.get(row).telling || {})[token] || null,
  };
}

function serverSource() {
  async function get(route, fields) {
    const asked = corpus.quality in corpus.measures ? { ...fields, measure: corpus.quality } : fields;
    const answer = await fetch(`${route}?${new URLSearchParams(asked)}`);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    return answer.json();
  }
  return {
    list(row) {
      const fields = { min: state.min, sort: state.sort, offset: state.offset, limit: PAGE };
      if (state.rho !== null) fields.rho = state.rho;
      if (state.source !== "") fields.source = state.source;
      if (state.kind !== "") fields.kind = state.kind;
      if (state.show === "flagged") fields.least = state.threshold;
      if (state.text) fields.text = state.text;
      if (row !== null) fields.row = row;
      return get("samples", { ...fields, ...markedSamples() });
    },
    load: (row) => get("sample", { row }),
    telling: (row, token) => get("telling", { row, token }),
  };
}
