// Computes and draws what SamplingView holds. Plain ES module, no dependency. Text reaches the page through textContent
// alone.

const ROWS = 16; // tokens
const TAIL = 240; // characters of a context
const MOST = 10000; // draws
const MARKED = 20; // so many draws have shares worth a mark
const ROUNDING = 1e-6; // a sum this little below p has reached it
const ENDS = [0.05, 0.1, 0.2, 0.5, 1]; // where the bars' scale may end
const MARKS = { " ": " ", "\n": "↵\n", "\t": "⇥", "\r": "␍" };

const odd = (c) => (/[\p{C}\p{Z}]/u.test(c) ? `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩` : c);
const running = (text) => [...text].map((c) => MARKS[c] ?? odd(c)).join("");
const whole = (n) => n.toLocaleString("en");
const fixed = (x, digits) => x.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const short = (x) => String(Number(x.toPrecision(4)));
const total = (list) => list.reduce((sum, x) => sum + x, 0);
const bits = (list) => Math.abs(total(list.map((p) => (p > 0 ? p * Math.log2(p) : 0))));

function chance(p) {
  if (p >= 0.0005) return p.toFixed(3);
  return p === 0 ? "0" : p < 0.00005 ? "<0.0001" : p.toFixed(4);
}

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function softmax(logits) { // the largest is 0
  const powers = logits.map(Math.exp);
  const sum = total(powers);
  return powers.map((x) => x / sum);
}

function change(logits, { temperature, k, p }) { // logits: the likeliest first
  const before = softmax(logits);
  const warmed = temperature ? softmax(logits.map((x) => x / temperature)) : logits.map((_, rank) => (rank ? 0 : 1));
  let left = temperature ? Math.min(k, logits.filter(Number.isFinite).length) : 1;
  if (p < 1) {
    const all = total(warmed.slice(0, left));
    let [sum, n] = [0, 0];
    do { sum += warmed[n]; n += 1; } while (n < left && sum / all < p - ROUNDING);
    left = n;
  }
  const kept = warmed.slice(0, left);
  const sum = total(kept);
  return { before, warmed, after: kept.map((x) => x / sum) };
}

function mulberry32(seed) { // whole numbers of 32 bits in, numbers from 0 to 1 out
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function drawn(after, draws, seed) { // how often each rank, and the last one
  const random = mulberry32(seed);
  const ends = [];
  after.reduce((sum, p, rank) => { ends[rank] = sum + p; return ends[rank]; }, 0);
  const counts = after.map(() => 0);
  let last = 0;
  for (let n = 0; n < draws; n += 1) {
    const u = random();
    let high = ends.length - 1; // the first end above u
    for (let low = 0; low < high;) {
      const middle = (low + high) >> 1;
      if (ends[middle] > u) high = middle; else low = middle + 1;
    }
    last = high;
    counts[last] += 1;
  }
  return { counts, last };
}

function render({ model, el }) {
  const root = make("div", "samp", undefined, el);
  root.setAttribute("role", "group");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  const choice = make("label", "samp-choice", "Context ", root);
  const select = make("select", "", undefined, choice);
  const text = make("p", "samp-context", undefined, root);
  const sliders = make("div", "samp-sliders", undefined, root);
  const bar = make("div", "samp-bar", undefined, root);
  const status = make("p", "samp-status", undefined, root);
  status.setAttribute("role", "status");
  const table = make("table", "samp-table", undefined, root);
  make("p", "samp-note", "Outline: before; filled: after; dashed: cut. The logits are divided by the temperature; " +
    "the k likeliest tokens are kept; of these the fewest whose probability, as a share of theirs, reaches p; that " +
    "is divided by its sum. After a change the tokens are drawn again, with the same random numbers. A diamond " +
    `marks a token's share of the draws, from ${MARKED} on.`, root);

  let rows = [], ids = []; // of each context: its logits, the likeliest first, and their ids

  function put(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  const size = () => model.get("shape")[1];
  const now = () => Math.min(Math.max(model.get("context"), 0), rows.length - 1);
  const settings = () =>
    ({ temperature: model.get("temperature"), k: model.get("top_k") ?? size(), p: model.get("top_p") });

  const tracks = [["temperature", "Temperature"], ["top_k", "top-k"], ["top_p", "top-p"]].map(([name, title]) => {
    const label = make("label", "samp-slider", undefined, sliders);
    make("span", "", title, label);
    const value = make("span", "samp-value", undefined, label);
    const input = make("input", "", undefined, label);
    Object.assign(input, { type: "range", min: 0, step: 1 });
    input.setAttribute("aria-label", title);
    const one = { name, input, value, values: [] };
    input.addEventListener("input", () => {
      const to = one.values[input.value];
      put({ [name]: name === "top_k" && to === size() ? null : to });
    });
    return one;
  });

  function button(name, click) {
    const node = make("button", "", name, bar);
    node.type = "button";
    node.addEventListener("click", click);
    return node;
  }

  const add = (n) => put({ draws: Math.min(model.get("draws") + n, MOST) });
  const adders = [1, 100].map((n) => button(`Draw ${n}`, () => add(n)));
  button("Reset", () => put({ temperature: 1, top_k: null, top_p: 1, draws: 0 }));

  function scales() { // the values of each slider
    const [temperature, k, p] = tracks;
    temperature.values = [0, ...Array.from({ length: 30 }, (_, i) => Math.round(10 * 10 ** (i / 20)) / 100), 3];
    k.values = [];
    for (let n = 1; n < size(); n = Math.max(n + 1, Math.round(n * 1.1))) k.values.push(n);
    k.values.push(size());
    p.values = Array.from({ length: 100 }, (_, i) => (i + 1) / 100);
  }

  function setSliders({ temperature, k, p }) {
    const words = [temperature ? short(temperature) : "0 (greedy)", k === size() ? "all" : whole(k),
      p === 1 ? "1 (all)" : short(p)];
    [temperature, k, p].forEach((x, i) => {
      const { input, value, values } = tracks[i];
      input.max = values.length - 1;
      input.value = Math.max(values.findLastIndex((y) => y <= x), 0);
      input.setAttribute("aria-valuetext", words[i]);
      value.textContent = words[i];
    });
  }

  function say({ temperature, p }, { before, warmed, after }) {
    const left = after.length;
    const k = model.get("top_k");
    const set = `Temperature ${short(temperature)}${k === null ? "" : `, top-k ${whole(k)}`}${
      p === 1 ? "" : `, top-p ${short(p)}`}`;
    const share = (list) => total(list.slice(0, left)).toFixed(3);
    const at = temperature === 0 || temperature === 1 ? "" : `, and ${share(warmed)} at this temperature`;
    const [h0, h] = [bits(before), bits(after)];
    return `${set}: ${whole(left)} of ${whole(size())} tokens ${left === 1 ? "is left. It" : "are left. They"} had ${
      share(before)} of the probability before${at}. Entropy ${h.toFixed(3)} bits, as of ${
      fixed(2 ** h, 1)} equally likely tokens (before: ${h0.toFixed(3)} bits, ${fixed(2 ** h0, 1)} tokens).`;
  }

  function line(body, name, before, after, lost, count, barred) { // a row, and where its bars go
    const row = make("tr", lost ? "cut" : "", undefined, body);
    const head = make("th", "", undefined, row);
    head.scope = "row";
    head.colSpan = barred ? 1 : 2;
    make("span", barred ? "samp-token" : "samp-others", name, head).title = name;
    const cell = barred && make("td", "samp-bars", undefined, row);
    if (cell) cell.setAttribute("aria-hidden", "true");
    for (const words of [chance(before), lost || chance(after), count]) make("td", "", words, row);
    return cell && make("div", "samp-track", undefined, cell);
  }

  function bars({ before, after }, { counts }, draws) {
    const names = model.get("tokens");
    const shown = Math.min(ROWS, before.length);
    const times = (count) => (draws ? whole(count) : "");
    const share = (rank) => (draws >= MARKED ? (counts[rank] ?? 0) / draws : 0);
    const most = Math.max(before[0], after[0], ...after.slice(0, shown).map((_, rank) => share(rank)));
    const end = ENDS.find((x) => x >= most) ?? 1;
    const width = (x) => `${(100 * x) / end}%`;
    table.replaceChildren();
    const head = make("tr", "", undefined, make("thead", "", undefined, table));
    for (const title of ["token", "", "before", "after", "drawn"]) {
      const cell = make(title ? "th" : "td", title ? "" : "samp-bars", title, head);
      if (title) cell.scope = "col";
      else for (const edge of ["0", String(end)]) make("span", "", edge, make("div", "samp-axis", undefined, cell));
    }
    const body = make("tbody", "", undefined, table);
    for (let rank = 0; rank < shown; rank += 1) {
      const lost = rank < after.length ? "" : before[rank] ? "cut" : "never";
      const name = names[ids[now()][rank]];
      const track = line(body, name, before[rank], after[rank], lost, times(counts[rank] ?? 0), true);
      make("span", "samp-after", undefined, track).style.width = width(after[rank] ?? 0);
      make("span", "samp-before", undefined, track).style.width = width(before[rank]);
      if (share(rank)) make("span", "samp-share", undefined, track).style.left = width(share(rank));
    }
    const others = before.length - shown;
    if (!others) return;
    const rest = (list) => total(list.slice(shown));
    line(body, `${whole(others)} other${others > 1 ? "s" : ""}`, rest(before), rest(after),
      after.length > shown ? "" : before[shown] ? "cut" : "never", times(rest(counts)), false);
  }

  function draw() {
    if (!rows.length) return;
    const set = settings();
    const draws = Math.min(Math.max(model.get("draws"), 0), MOST);
    const found = change(rows[now()], set);
    const sample = drawn(found.after, draws, model.get("seed"));
    select.value = now();
    const context = [...model.get("contexts")[now()]];
    text.textContent = `${context.length > TAIL ? "…" : ""}${running(context.slice(-TAIL).join(""))}▁`;
    setSliders(set);
    for (const node of adders) node.setAttribute("aria-disabled", draws === MOST);
    const last = model.get("tokens")[ids[now()][sample.last]];
    const told = draws > 1 ? `${whole(draws)} tokens are drawn, the last is` : "One token is drawn:";
    status.textContent = say(set, found) + (draws ? ` ${told} “${last}”.` : "");
    bars(found, sample, draws);
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [count, length] = model.get("shape");
    const { buffer, byteOffset, byteLength } = model.get("packed");
    const all = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
    if (all.length !== count * length || model.get("tokens").length !== length) return;
    if (model.get("contexts").length !== count) return;
    const logits = Array.from({ length: count }, (_, c) =>
      Array.from(all.subarray(c * length, (c + 1) * length), (x) => (x > 0 ? -Infinity : x)));
    ids = logits.map((row) => row.map((_, id) => id).sort((a, b) => (row[a] === row[b] ? a - b : row[b] - row[a])));
    rows = logits.map((row, c) => ids[c].map((id) => row[id]));
    for (const node of [root, table]) node.setAttribute("aria-label", model.get("label"));
    choice.hidden = count === 1;
    select.replaceChildren(...model.get("contexts").map((context, c) => {
      const words = [...running(context).replace(/\n/g, "")];
      const name = `${c + 1}: ${words.length > 40 ? "…" : ""}${words.slice(-40).join("")}`;
      return Object.assign(make("option", "", name), { value: c });
    }));
    scales();
    draw();
  }

  select.addEventListener("change", () => put({ context: Number(select.value) }));
  const listeners = {};
  for (const name of ["context", "temperature", "top_k", "top_p", "draws", "seed"]) listeners[`change:${name}`] = draw;
  for (const name of ["packed", "shape", "contexts", "tokens", "label"]) listeners[`change:${name}`] = load;
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  load();
  return () => {
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
