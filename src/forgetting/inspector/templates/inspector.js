// The token inspector. Text is inserted as textContent only, never as HTML. Samples come from the
// page itself (a file), or from the server, one page of the list at a time.
// One file, longer than others here: a page that is mailed can load no second one.
"use strict";
(() => {
  const corpus = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const state = { rho: null, text: "", source: "", min: 0, sort: "worst", offset: 0 };
  const detector = corpus.detector;
  if (detector && detector.found) state.sort = "bad";
  // Without a selection, quality is only the posterior the other way round.
  state.color = detector && (detector.found || !corpus.has_selection) ? "posterior" : "quality";
  let listed = { total: 0, num_searched: 0, rows: [] };
  let chosen = -1; // index in the whole list
  let sample = null;
  let asked = 0; // number of the latest request of each kind; older answers are dropped
  let askedSample = 0;

  const at = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en");
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const signed = (number, digits = 3) =>
    number === null ? "–" : (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);

  function element(tag, classes, ...children) {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    made.append(...children); // strings become text nodes
    return made;
  }

  // ---- What is negative at a step of the slider: the thresholds come with the page ----

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

  // Polarity of each response token: as the run selected, or by the thresholds of the slider's rho.
  function polarity(of) {
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

  // ---- Sources of samples: both have `list` and `load` ----

  function fileSource(samples) {
    const texts = samples.map((one) =>
      one.blocks
        .map((block) => (typeof block === "string" ? block : block.map((piece) => piece[0]).join("")))
        .join("")
        .toLowerCase(),
    );
    const orders = {
      worst: (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity) || a.row - b.row,
      best: (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity) || a.row - b.row,
      position: (a, b) => a.row - b.row,
      bad: (a, b) => b.num_bad - a.num_bad || a.row - b.row,
    };
    const byRow = new Map(samples.map((one) => [one.row, one]));
    return {
      async list() {
        const wanted = state.text.toLowerCase();
        const found = samples
          .filter((one, index) => {
            if (state.source !== "" && one.source !== Number(state.source)) return false;
            if (wanted && !texts[index].includes(wanted)) return false;
            one.num_negative = numNegative(one);
            return one.num_negative >= state.min * one.ids.length - 1e-9;
          })
          .sort(orders[state.sort]);
        return {
          total: found.length,
          num_searched: corpus.num_samples,
          rows: found.slice(state.offset, state.offset + PAGE),
        };
      },
      load: async (row) => byRow.get(row),
      // Only the tokens that are most likely bad have theirs in the file.
      telling: async (row, token) => (byRow.get(row).telling || {})[token] || null,
    };
  }

  function serverSource() {
    async function get(route, fields) {
      const answer = await fetch(`${route}?${new URLSearchParams(fields)}`);
      if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
      return answer.json();
    }
    return {
      list() {
        const fields = { min: state.min, sort: state.sort, offset: state.offset, limit: PAGE };
        if (state.rho !== null) fields.rho = state.rho;
        if (state.source !== "") fields.source = state.source;
        if (state.text) fields.text = state.text;
        return get("samples", fields);
      },
      load: (row) => get("sample", { row }),
      telling: (row, token) => get("telling", { row, token }),
    };
  }

  const origin = corpus.samples === null ? serverSource() : fileSource(corpus.samples);

  // ---- The list ----

  async function refresh(keep) {
    const number = ++asked;
    const row = keep && sample ? sample.row : null;
    let answer;
    try {
      answer = await origin.list();
    } catch (error) {
      at("place").textContent = `The list cannot be read (${error.message}). Is the server running?`;
      return;
    }
    if (number !== asked) return;
    listed = answer;
    const place = row === null ? -1 : listed.rows.findIndex((one) => one.row === row);
    if (place >= 0) chosen = state.offset + place;
    drawList();
    if (place < 0 && !keep) await choose(state.offset);
    // Texts are decoded in the background: show what was found so far, then ask again.
    if (state.text && listed.num_searched < corpus.num_samples) {
      setTimeout(() => number === asked && refresh(true), 700);
    }
  }

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
        const facts = element("span", "facts", element("b", "", `${one.id}`));
        const shown = one.ids ? one.ids.length : one.num_tokens;
        const share = percent(shown ? one.num_negative / shown : 0);
        if (corpus.has_selection) {
          facts.append(element("span", "", `mean ${signed(one.mean, 2)}`));
          facts.append(element("span", "", `${share} negative`));
        }
        if (detector) facts.append(element("span", "", `${one.num_bad.toFixed(1)} bad`));
        if (!corpus.has_selection) facts.append(element("span", "", `${share} likely bad`));
        if (one.num_noisy) facts.append(element("span", "", `${count(one.num_noisy)} noisy`));
        const button = element("button", "", facts, element("span", "preview", one.preview));
        button.type = "button";
        button.addEventListener("click", () => choose(state.offset + index));
        return element("li", "", button);
      }),
    );
    markChosen(false);
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

  async function choose(place) {
    if (place < 0 || (place >= listed.total && listed.total)) return;
    if (!listed.total) {
      chosen = -1;
      sample = null;
      drawSample();
      return;
    }
    if (place < state.offset || place >= state.offset + listed.rows.length) {
      chosen = place;
      state.offset = Math.floor(place / PAGE) * PAGE;
      sample = null;
      await refresh(true);
    }
    const one = listed.rows[place - state.offset];
    if (!one) return;
    chosen = place;
    markChosen(true);
    const number = ++askedSample;
    at("pane").setAttribute("aria-busy", "true");
    try {
      const loaded = await origin.load(one.row);
      if (number !== askedSample) return;
      sample = loaded;
      drawSample();
    } catch (error) {
      at("note").textContent = `The sample cannot be loaded (${error.message}). Is the server running?`;
    }
    at("pane").setAttribute("aria-busy", "false");
  }

  // ---- A sample ----

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
    drawToken(null);
    if (!sample) {
      at("title").textContent = "No matching sample";
      at("note").textContent = "Relax the filters.";
      return;
    }
    at("title").textContent = `Sample ${sample.id} · ${corpus.sources[sample.source]}`;
    let token = 0;
    let isFirst = true;
    sample.blocks.forEach((block, place) => {
      if (typeof block === "string") {
        if (place === sample.blocks.length - 1 && !block.trim()) return;
        const context = element("div", "context", ...withLineBreaks(block));
        context.dir = "auto";
        context.tabIndex = 0;
        at("blocks").append(context);
        return;
      }
      const response = element("div", "response");
      response.dir = "auto";
      response.setAttribute("role", "group");
      response.setAttribute("aria-label", "Response tokens");
      for (const [text, length] of block) {
        const piece = element("span", `t ${color(token, token + length)}`, ...withLineBreaks(text));
        piece.dataset.start = token;
        piece.dataset.stop = token + length;
        piece.tabIndex = isFirst ? 0 : -1;
        isFirst = false;
        token += length;
        response.append(piece);
      }
      at("blocks").append(response);
    });
    if (sample.num_left_out) {
      at("blocks").append(
        element("p", "note", `… and ${count(sample.num_left_out)} more response tokens.`),
      );
    }
    mark();
  }

  const pieces = () => [...at("blocks").querySelectorAll(".t")];

  // Marks negative tokens: the only thing in a sample that depends on rho.
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
      `${count(negative)} of ${count(signs.length)} response tokens ${corpus.has_selection ? "negative" : "likely bad"}`,
    ];
    if (corpus.has_selection) facts.unshift(`mean quality ${signed(sample.mean)}`);
    if (detector) facts.push(`expected bad tokens: ${sample.num_bad.toFixed(1)}`);
    if (sample.num_noisy) {
      facts.push(`${count(sample.num_noisy)} noisy${sample.noise_kind ? `: ${sample.noise_kind}` : ""}`);
    }
    at("note").textContent = facts.join(" · ");
  }

  const probability = (p) => (p >= 0.0001 || p === 0 ? p.toPrecision(3) : p.toExponential(2));
  const SIGNS = { 1: "learned", 0: "ignored", [-1]: "negative" };

  function detectorFacts(index, fact) {
    if (!detector) return [];
    const facts = [fact("probability of being bad", percent(sample.posterior[index]))];
    const kind = detector.kinds[sample.kind[index]];
    if (kind !== undefined) facts.push(fact("likely kind, if bad", kind));
    return facts;
  }

  // The features that speak most for a piece being bad: of its worst token.
  async function drawTelling(piece) {
    const place = at("telling");
    if (!place) return;
    place.replaceChildren();
    if (!piece || !detector.explains) return;
    const { start, stop } = piece.dataset;
    const inside = sample.posterior.slice(start, stop);
    const token = Number(start) + inside.indexOf(Math.max(...inside));
    const row = sample.row;
    const isShown = () => sample && sample.row === row && piece.classList.contains("shown");
    // Pointing passes over many tokens; each answer costs the server some milliseconds.
    await new Promise((done) => setTimeout(done, 120));
    if (!isShown()) return;
    if (corpus.samples === null) place.textContent = "…";
    let told;
    try {
      told = await origin.telling(row, token);
    } catch (error) {
      if (isShown()) place.textContent = `What speaks for it cannot be loaded (${error.message}).`;
      return;
    }
    if (!isShown()) return;
    place.replaceChildren();
    if (told === null) return;
    const named = told.map(([name, loss]) => `${name} (${signed(loss, 1)})`);
    place.append(
      element("span", "", "Speaks for bad (log-odds): "),
      named.join(" · ") || "nothing",
    );
  }

  function drawToken(piece) {
    for (const other of at("blocks").querySelectorAll(".shown")) other.classList.remove("shown");
    if (!piece) {
      drawTelling(null);
      at("token").replaceChildren(element("p", "", "Point at a token, or move with ← and →."));
      return;
    }
    piece.classList.add("shown");
    drawTelling(piece);
    const signs = polarity(sample);
    const text = piece.textContent.replaceAll(" ", "␣");
    const fact = (name, value) => element("div", "", element("dt", "", name), element("dd", "", value));
    const facts = [fact("token", text || "(no text)")];
    for (let index = Number(piece.dataset.start); index < Number(piece.dataset.stop); index++) {
      const noisy = sample.noise !== null && sample.noise[index] ? " · known noise" : "";
      facts.push(
        fact("id", `${sample.ids[index]}`),
        ...(corpus.has_base ? [fact("base", probability(sample.base[index]))] : []),
        ...(corpus.has_reference
          ? [fact("reference", probability(sample.reference[index]))]
          : []),
        ...detectorFacts(index, fact),
      );
      const rank = `${count(sample.rank[index])} of ${count(corpus.num_tokens)} (${percent(sample.rank[index] / corpus.num_tokens)})`;
      if (corpus.has_selection) {
        facts.push(
          fact("quality", signed(sample.quality[index])),
          fact("rank from the worst", rank),
          fact("selection", SIGNS[signs[index]] + noisy),
        );
      } else if (noisy) {
        facts.push(fact("noise", "known"));
      }
    }
    at("token").replaceChildren(...facts);
  }

  function walk(step) {
    const all = pieces();
    if (!all.length) return;
    const now = all.findIndex((piece) => piece.classList.contains("shown"));
    const place = now < 0 ? 0 : Math.min(Math.max(now + step, 0), all.length - 1);
    for (const piece of all) piece.tabIndex = -1;
    all[place].tabIndex = 0;
    all[place].focus();
  }

  // ---- The controls ----

  function drawFigures() {
    const own = state.rho === null;
    const rho = own ? corpus.rho : state.rho;
    at("rho-value").textContent = rho.toFixed(3);
    at("rho").setAttribute("aria-valuetext", rho.toFixed(3));
    at("own").disabled = own;
    at("own").textContent = `reset to ${corpus.rho.toFixed(3)}`;
    const parts = [];
    if (!corpus.has_selection) {
      parts.push(`${percent(corpus.own_negative / corpus.num_tokens)} of ${count(corpus.num_tokens)} tokens are bad with a probability of at least 50%`);
    } else if (own) {
      parts.push(`As selected: ${percent(corpus.own_negative / corpus.num_tokens)} of ${count(corpus.num_tokens)} tokens negative`);
    } else if (corpus.by_source) {
      parts.push(`At rho ${rho.toFixed(3)}: one threshold per source`);
    } else {
      const value = signed(bounds(0).positive);
      parts.push(`At rho ${rho.toFixed(3)}: not learned if ${corpus.by_sample ? "the sample’s mean quality" : "quality"} is below ${value}`);
    }
    if (detector) parts.push(`expected bad tokens: ${count(Math.round(detector.num_bad))}`);
    if (corpus.noise) {
      const noise = corpus.noise;
      const [marked, found] = own
        ? noise.own
        : [noise.num_not_positive[stepOf(rho)], noise.num_found[stepOf(rho)]];
      const precision = marked ? percent(found / marked) : "–";
      parts.push(
        `known noise among the ${corpus.has_selection ? "tokens not learned" : "likely bad tokens"}: precision ${precision}, recall ${percent(found / noise.num_noisy)} (chance: ${percent(noise.num_noisy / noise.num_known)}, ${percent(marked / noise.num_known)})`,
      );
    }
    at("figures").textContent = parts.join(" · ");
  }

  let waiting = 0;
  function later(change) {
    clearTimeout(waiting);
    waiting = setTimeout(change, 150);
  }

  function setRho(rho) {
    state.rho = rho;
    if (rho === null) at("rho").value = corpus.rho;
    mark();
    const shown = at("blocks").querySelector(".shown");
    if (shown) drawToken(shown);
    drawFigures();
    later(() => {
      if (state.min) state.offset = 0;
      refresh(!state.min);
    });
  }

  function filter(name, value) {
    if (state[name] === value) return;
    state[name] = value;
    state.offset = 0;
    sample = null;
    refresh(false);
  }

  function turn(pages) {
    const offset = state.offset + pages * PAGE;
    if (offset < 0 || offset >= listed.total) return;
    state.offset = offset;
    sample = null;
    refresh(false);
  }

  at("rho").addEventListener("input", (event) => setRho(Number(event.target.value)));
  at("own").addEventListener("click", () => setRho(null));
  at("text").addEventListener("input", (event) => {
    const text = event.target.value;
    later(() => filter("text", text));
  });
  at("source").addEventListener("change", (event) => filter("source", event.target.value));
  at("min").addEventListener("change", (event) => filter("min", Number(event.target.value)));
  at("sort").addEventListener("change", (event) => filter("sort", event.target.value));
  if (detector) {
    at("color").addEventListener("change", (event) => {
      state.color = event.target.value;
      drawRamp();
      if (sample) drawSample();
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
    const actions = {
      j: () => choose(chosen + 1),
      ArrowDown: () => choose(chosen + 1),
      k: () => choose(chosen - 1),
      ArrowUp: () => choose(chosen - 1),
      ArrowRight: () => walk(1),
      ArrowLeft: () => walk(-1),
      "/": () => at("text").focus(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  // ---- Start ----

  at("about").textContent = corpus.about;
  corpus.sources.forEach((name, index) => {
    const option = element("option", "", name);
    option.value = index;
    at("source").append(option);
  });
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

  at("sort").value = state.sort;
  if (detector) at("color").value = state.color;
  drawRamp();
  at("key-ignored").hidden = !corpus.ignores;
  setRho(null);
  clearTimeout(waiting);
  refresh(false);
})();
