// The fragment of the address holds what is shown, so that a copied link opens the same view.

const address = (() => {
  const isOption = (id) => (value) =>
    at(id) !== null && [...at(id).options].some((option) => option.value === value);
  const within = (low, high) => (number) => number >= low && number <= high;
  // Name in the address: [name in the state, from text (undefined: not valid)].
  const checked = (is, read = (value) => value) => (value) =>
    is(read(value)) ? read(value) : undefined;
  const FIELDS = {
    order: ["sort", checked(isOption("sort"))],
    source: ["source", checked(isOption("source"))],
    kind: ["kind", checked(isOption("kind"))],
    show: ["show", checked(isOption("show"))],
    color: ["color", checked(isOption("color"))],
    min: ["min", (value) => (isOption("min")(value) ? Number(value) : undefined)],
    at: [
      "threshold",
      checked(within(0.01, 0.99), (value) => Math.round(100 * Number(value)) / 100),
    ],
    rho: ["rho", checked((rho) => stepOf(rho) >= 0, Number)],
    text: ["text", (value) => value],
  };

  return {
    // The state and the row that the address asks for.
    read() {
      const given = new URLSearchParams(location.hash.slice(1));
      const found = { ...initially };
      for (const [name, [key, read]] of Object.entries(FIELDS)) {
        const value = given.has(name) ? read(given.get(name)) : undefined;
        if (value !== undefined) found[key] = value;
      }
      const row = given.has("record") ? Number(given.get("record")) : NaN;
      const isRow = Number.isInteger(row) && row >= 0 && row < corpus.num_samples;
      return { found, row: isRow ? row : null };
    },
    // `isNew`: a step that the browser's Back undoes.
    write(row, isNew) {
      const fields = row === null ? {} : { record: row };
      for (const [name, [key]] of Object.entries(FIELDS)) {
        if (state[key] !== initially[key] && state[key] !== null) fields[name] = state[key];
      }
      const wanted = `#${new URLSearchParams(fields)}`;
      if (wanted === (location.hash || "#")) return;
      history[isNew ? "pushState" : "replaceState"](null, "", wanted);
    },
  };
})();
