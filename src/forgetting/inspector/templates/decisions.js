// Flagged spans of the sample that is shown, and the buttons that decide about them.

const MAX_SPANS = 40;

function drawSpans() {
  const found = spansOf(sample);
  const isFound = (mark) =>
    found.some((span) => span.turn === mark.turn && span.start === mark.span[0] && span.end === mark.span[1]);
  const others = marks.spansOf(sample.id).filter((mark) => !isFound(mark));
  const all = [...found, ...others.map((mark) => withTokens(sample, mark))];
  const lines = all.slice(0, MAX_SPANS).map(drawnSpan);
  if (all.length > MAX_SPANS) {
    lines.push(element("li", "note", `… and ${counted(all.length - MAX_SPANS, "more span")}.`));
  }
  at("spans").replaceChildren(...lines);
}

function drawnSpan(span) {
  const text = textOf(sample, span);
  const short = text.length > 160 ? `${text.slice(0, 110)} … ${text.slice(-40)}` : text;
  const facts = [kindOf(sample, span.first, span.stop)];
  if (detector && span.stop > span.first) {
    facts.push(percent(Math.max(...sample.posterior.slice(span.first, span.stop))));
  }
  const expected = sample.expected[span.first];
  if (expected) {
    facts.push(`expected: ${expected.map(([token, p]) => `“${token}” ${percent(p)}`).join(", ")}`);
  }
  if (text.includes(END)) facts.push(`${END}: the response ends here`);
  const line = element(
    "li",
    "span",
    element("span", "quote", short || "(no text)"),
    element("span", "facts", facts.filter(Boolean).join(" · ")),
    deciding(span, text),
  );
  line.tabIndex = -1;
  line.span = span;
  return line;
}

// Three buttons that decide about a record (span: null) or a span.
function deciding(span, text) {
  const group = element("span", "deciding");
  if (!sample.origin) return group;
  for (const [decision, label] of [["accept", "accept"], ["reject", "reject"], ["edit", "edit later"]]) {
    const button = element("button", decision, label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(marks.of(sample.id, span) === decision));
    button.addEventListener("click", () => decide(span, decision, text));
    group.append(button);
  }
  return group;
}

function decide(span, decision, text) {
  if (!sample || !sample.origin) return;
  marks.set(sample, span, decision, text);
  drawDecisions();
  markRows();
}

// By keyboard: about the span that has the focus, else about the record.
function decideHere(decision) {
  const line = document.activeElement.closest(".span");
  if (line) decide(line.span, decision, textOf(sample, line.span));
  else decide(null, decision, "");
}

// Shows what is decided, without a change of focus.
function drawDecisions() {
  if (!corpus.has_records) return;
  if (sample && sample.origin) {
    if (!at("decide").children.length) at("decide").append(deciding(null, ""));
    const groups = [[at("decide"), null]];
    for (const line of at("spans").querySelectorAll(".span")) groups.push([line, line.span]);
    for (const [place, span] of groups) {
      const decision = marks.of(sample.id, span);
      for (const button of place.querySelectorAll(".deciding button")) {
        button.setAttribute("aria-pressed", String(button.classList.contains(decision)));
      }
    }
    const decided = [...at("spans").querySelectorAll(".span")]
      .map((line) => [line.span, marks.of(sample.id, line.span)])
      .filter(([, decision]) => decision);
    for (const piece of pieces()) {
      const mine = decided.find(
        ([span]) => piece.dataset.start < span.stop && piece.dataset.stop > span.first,
      );
      for (const name of Object.keys(DECISIONS)) piece.classList.toggle(name, !!mine && mine[1] === name);
    }
  }
  const all = marks.all();
  const tally = Object.entries(DECISIONS).map(
    ([name, words]) => `${count(all.filter((mark) => mark.decision === name).length)} ${words}`,
  );
  at("tally").textContent = all.length
    ? `${counted(all.length, "mark")}: ${tally.join(", ")}` +
      (marks.isKept() ? "" : ". This browser does not keep them: download them before you leave")
    : "";
  at("download").hidden = !all.length;
}

function walkSpans(step) {
  const lines = [...at("spans").querySelectorAll(".span")];
  const now = lines.indexOf(document.activeElement.closest(".span"));
  const next = lines[now < 0 ? (step > 0 ? 0 : lines.length - 1) : now + step];
  if (next) next.focus();
}
