// Draws what LossView holds. Plain ES module, no dependency. Text reaches the page as text alone.

const CIVIDIS = [[0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120], [155, 148, 118],
  [188, 174, 108], [222, 201, 88], [254, 232, 56]];
const DIVERGING = [[0, 68, 136], [92, 144, 196], [242, 242, 242], [222, 136, 72], [150, 56, 0]];
const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
const SLOTS = 5; // guesses a token

const clamp = (x, size) => Math.min(Math.max(x, 0), size - 1);
const odd = (c) => (/[\p{C}\p{Z}]/u.test(c) ? `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩` : c);
const visible = (text, marks = MARKS) => [...text].map((c) => marks[c] ?? odd(c)).join("") || "∅";
const RUNNING = { ...MARKS, " ": " ", "\n": "↵\n" }; // where the line breaks, and spaces are room

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

const rgb = (stop) => `rgb(${stop})`;

function colour(stops, x) { // x in 0..1
  const at = Math.min(Math.max(x, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((c, n) => Math.round(c + (at - i) * (stops[i + 1][n] - c)));
}

function ink(stop) { // black or white: the better has a contrast of 4.5 on any colour
  const [r, g, b] = stop.map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

function end(numbers) { // where a scale ends: a round number that one in fifty is above at most
  const known = numbers.filter((x) => x >= 0).sort((a, b) => a - b);
  const most = known[Math.ceil(0.98 * known.length) - 1] || known[known.length - 1];
  if (!most) return { top: 1, more: false };
  const step = 10 ** Math.floor(Math.log10(most)) / 2;
  const top = Number((Math.ceil(most / step) * step).toPrecision(3));
  return { top, more: known[known.length - 1] > top };
}

function signed(x) { // with a true minus, and no minus before zero
  const text = Math.abs(x).toFixed(3);
  return Number(text) === 0 ? text : `${x < 0 ? "−" : "+"}${text}`;
}

function chance(p) {
  return p >= 0.0005 ? p.toFixed(3) : p < 1e-6 ? "below 1e-6" : p.toPrecision(1);
}

const bytesOf = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);

function render({ model, el }) {
  const root = make("div", "loss-view", undefined, el);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  const bar = make("div", "loss-bar", undefined, root);
  const mean = make("p", "loss-mean", undefined, root);
  mean.setAttribute("aria-live", "polite");
  const legend = make("div", "loss-legend", undefined, root);
  const text = make("div", "loss-text", undefined, root);
  text.setAttribute("role", "listbox");
  const detail = make("div", "loss-detail", undefined, root);
  const status = make("p", "loss-status", undefined, detail);
  status.setAttribute("role", "status");
  const guesses = [0, 1].map(() => make("div", "loss-guesses", undefined, detail));

  let losses = [], spans = [], size = 0; // losses: of each model, in the unit shown
  let slots = [], words = []; // guesses: pairs of a probability and a word
  let alone, apart; // the ends of the two scales
  let choices = [], hover = null;

  const nats = () => (model.get("unit") === "bits" ? Math.log(2) : 1); // in one unit
  const names = () => model.get("names");
  const shown = () => clamp(model.get("shown"), losses.length);
  function compared() { // the other model, or -1
    const other = model.get("compared");
    return other === shown() || other >= losses.length ? -1 : other;
  }

  function controls() {
    bar.replaceChildren();
    if (losses.length < 2) return;
    choices = [["Model", "shown"], ["compared with", "compared"]].map(([title, name]) => {
      const select = make("select", "", undefined, make("label", "", `${title} `, bar));
      if (name === "compared") make("option", "", "nothing", select).value = -1;
      names().forEach((one, m) => { make("option", "", one, select).value = m; });
      select.addEventListener("change", () => {
        const [before, to] = [shown(), Number(select.value)];
        if (name === "shown" && to === compared()) model.set("compared", before); // the two change places
        model.set(name, to);
        model.save_changes();
      });
      return select;
    });
  }

  function paint() { // the text, its legend and its mean
    const [a, b] = [shown(), compared()];
    if (losses.length > 1) {
      [choices[0].value, choices[1].value] = [a, b];
      for (const option of choices[1].options) option.disabled = Number(option.value) === a;
    }
    const [stops, { top, more }] = b < 0 ? [CIVIDIS, alone] : [DIVERGING, apart];
    const list = losses[a].map((x, n) => (b < 0 ? x : x - losses[b][n]));
    list.forEach((x, n) => {
      const shade = Number.isNaN(x) ? null : colour(stops, b < 0 ? x / top : (x / top + 1) / 2);
      spans[n].classList.toggle("none", !shade);
      spans[n].style.backgroundColor = shade ? rgb(shade) : "";
      spans[n].style.color = shade ? ink(shade) : "";
    });
    const known = list.filter((x) => !Number.isNaN(x));
    const average = (known.reduce((sum, x) => sum + x, 0) / known.length) * nats();
    const number = (x) => (b < 0 ? x.toFixed(3) : signed(x));
    const told = known.length ? `${number(average)} nats (${number(average / Math.log(2))} bits) over ${
      known.length} token${known.length === 1 ? "" : "s"}.` : "nothing was predicted.";
    const count = (test) => known.filter(test).length;
    mean.textContent = b < 0 ? `${names()[a]}: mean loss ${told}` : `${names()[a]} − ${names()[b]}: mean difference ${
      told} ${names()[a]} is less surprised at ${count((x) => x < 0)}, more at ${count((x) => x > 0)}.`;
    legend.replaceChildren();
    make("span", "", `${b < 0 ? "Loss" : "Difference"} in ${model.get("unit")}`, legend);
    const scale = make("div", "loss-scale", undefined, legend);
    make("div", "loss-ramp", undefined, scale).style.background = `linear-gradient(to right, ${stops.map(rgb)})`;
    const ticks = make("div", "loss-ticks", undefined, scale);
    const [below, above] = more ? ["≤ ", "≥ "] : ["", ""];
    const marks = b < 0 ? ["0", top / 2, `${above}${top}`]
      : [`${below}−${top}`, "0", `${above}+${top}`, "less surprised", "alike", "more surprised"];
    for (const mark of marks) make("span", "", mark, ticks);
    if (known.length < size) make("span", "loss-key", "no prediction", legend);
  }

  function expected(parent, m, n) { // the guesses of model m at token n
    parent.replaceChildren();
    if (!slots.length || m < 0) return;
    const own = slots.subarray(m * size * SLOTS * 2, (m + 1) * size * SLOTS * 2);
    if (!own.some((x) => x)) return void make("div", "", `${names()[m]}: no guesses are given.`, parent);
    const pairs = Array.from({ length: SLOTS }, (_, k) => own.subarray((n * SLOTS + k) * 2, (n * SLOTS + k + 1) * 2))
      .filter(([, word]) => word > 0);
    make("div", "", `${names()[m]} ${pairs.length ? "expected:" : "expected nothing here."}`, parent);
    const list = make("ol", "", undefined, parent);
    for (const [p, word] of pairs) {
      const hit = words[word] === visible(model.get("tokens")[n]);
      const row = make("li", hit ? "hit" : "miss", undefined, list);
      make("span", "loss-word", words[word], row).title = words[word];
      make("span", "", undefined, make("span", "loss-track", undefined, row)).style.width = `${p / 655.35}%`;
      make("span", "loss-chance", `${(p / 65535).toFixed(3)}${hit ? " ✓" : ""}`, row);
    }
  }

  function tell() { // about the token under the mouse, or the chosen one
    const chosen = clamp(model.get("token"), size);
    const n = hover ?? chosen;
    spans.forEach((span, i) => {
      span.tabIndex = i === chosen ? 0 : -1; // one tab stop
      span.setAttribute("aria-selected", i === chosen);
      span.classList.toggle("on", i === n);
    });
    status.replaceChildren();
    make("span", "loss-head", `Token ${n + 1} of ${size}: “${visible(model.get("tokens")[n])}”. `, status);
    losses.forEach((list, m) => {
      const said = Number.isNaN(list[n]) ? "no prediction"
        : `probability ${chance(Math.exp(-list[n] * nats()))}, loss ${list[n].toFixed(3)} ${model.get("unit")}`;
      make("span", losses.length > 1 && m === shown() ? "chosen" : "", `${names()[m]}: ${said}. `, status);
    });
    guesses.forEach((box, i) => expected(box, i ? compared() : shown(), n));
  }

  function choose(n) {
    hover = null;
    model.set("token", n);
    model.save_changes();
    tell();
    spans[n].focus();
  }

  function line(n, way) { // the token above or below
    const boxes = spans.map((span) => span.getClientRects()[0]);
    const down = (box) => way * (box.top - boxes[n].top);
    const far = (box) => 100 * down(box) + Math.abs(box.left - boxes[n].left);
    const there = [...boxes.keys()].filter((i) => down(boxes[i]) > 12);
    return there.reduce((best, i) => (far(boxes[i]) < far(boxes[best]) ? i : best), there[0] ?? n);
  }

  text.addEventListener("keydown", (event) => {
    const n = spans.indexOf(event.target);
    const to = { ArrowLeft: () => n - 1, ArrowRight: () => n + 1, ArrowUp: () => line(n, -1),
      ArrowDown: () => line(n, 1), Home: () => 0, End: () => size - 1 }[event.key];
    if (n < 0 || !to || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    choose(clamp(to(), size));
  });
  text.addEventListener("click", (event) => {
    const n = spans.indexOf(event.target);
    if (n >= 0) choose(n);
  });
  text.addEventListener("mouseover", (event) => {
    const n = spans.indexOf(event.target);
    if (n < 0 || n === hover) return;
    hover = n;
    tell();
  });
  text.addEventListener("mouseleave", () => { if (hover !== null) { hover = null; tell(); } });

  function draw() { paint(); tell(); }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [count, length] = model.get("shape");
    const all = new Float32Array(bytesOf(model.get("packed")));
    const guessed = bytesOf(model.get("guesses"));
    const fixed = 4 * count * length * SLOTS; // bytes
    if (all.length !== count * length || model.get("tokens").length !== length || names().length !== count) return;
    if (guessed.byteLength && guessed.byteLength < fixed) return;
    size = length;
    losses = Array.from({ length: count }, (_, m) =>
      Array.from(all.subarray(m * size, (m + 1) * size), (x) => (x < 0 ? NaN : x / nats())));
    slots = guessed.byteLength ? new Uint16Array(guessed, 0, fixed / 2) : [];
    words = guessed.byteLength ? new TextDecoder().decode(new Uint8Array(guessed, fixed)).split("\n") : [];
    alone = end(losses.flat());
    apart = end(losses.flatMap((one, m) => losses.slice(m + 1).flatMap((other) =>
      one.map((x, n) => Math.abs(x - other[n])))));
    text.setAttribute("aria-label", model.get("label"));
    text.replaceChildren();
    spans = model.get("tokens").map((token) => {
      const [, own, last] = visible(token, RUNNING).match(/^(.*?)(\n?)$/s);
      const span = make("span", "", own, text);
      text.append(last); // outside, where it has no colour
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", visible(token));
      return span;
    });
    hover = null;
    controls();
    draw();
  }

  const listeners = { "change:token": () => { if (size) tell(); } };
  for (const name of ["shown", "compared"]) listeners[`change:${name}`] = () => { if (size) draw(); };
  for (const name of ["packed", "shape", "guesses", "names", "tokens", "label", "unit"]) {
    listeners[`change:${name}`] = load;
  }
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  load();
  return () => {
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
