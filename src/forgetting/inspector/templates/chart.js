// The histogram of the probability of being bad, with the threshold, and what is at or above it.

function drawChart() {
  const SVG = "http://www.w3.org/2000/svg";
  const counts = detector.histogram;
  const highest = Math.log1p(Math.max(...counts, 1));
  const shape = (tag, fields, classes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(fields)) made.setAttribute(name, value);
    if (classes) made.setAttribute("class", classes);
    return made;
  };
  const width = 100 / counts.length;
  // Logarithmic heights: nearly all tokens are in the first bars.
  const bars = counts.map((number, index) => {
    const height = (30 * Math.log1p(number)) / highest;
    const isAbove = (index + 0.5) / counts.length >= state.threshold;
    const fields = { x: index * width, y: 30 - height, width: 0.85 * width, height };
    return shape("rect", fields, isAbove ? "bar flagged" : "bar");
  });
  const x = 100 * state.threshold;
  at("chart").replaceChildren(
    ...bars,
    shape("line", { x1: x, x2: x, y1: 0, y2: 30 }, "threshold"),
  );
}

function drawCounts() {
  const step = Math.round(100 * state.threshold) - 1;
  const tokens = detector.num_tokens[step];
  at("threshold").value = state.threshold;
  at("threshold-value").textContent = percentOf(state.threshold);
  at("threshold").setAttribute("aria-valuetext", at("threshold-value").textContent);
  at("figures").textContent =
    `${detector.suspected ? "Only suspected, at" : "At"} or above ${at("threshold-value").textContent}: ${counted(tokens, "token")} ` +
    `(${percent(corpus.num_tokens ? tokens / corpus.num_tokens : 0)}) in ` +
    `${counted(detector.num_samples[step], "record")} ` +
    `(${percent(detector.num_samples[step] / corpus.num_samples)})`;
}
