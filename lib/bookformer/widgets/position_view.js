// Draws what PositionView holds. Plain ES module, no dependency. Text reaches the page through textContent alone.

const SAME = 1e-4; // scores that differ by less than this part of the largest are the same: float32 rounds
const ROW = { strip: 40, height: 20, room: 104 }; // px: the strip of places stands 40 below the top of the row
const PLOT = { height: 108, left: 40, right: 6, top: 8, bottom: 18 };

const clamp = (x, size) => Math.min(Math.max(x, 0), size - 1);

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function draw(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

const label = (parent, x, y, kind, text) => draw(parent, "text", { x, y, class: `pos-tick ${kind}` }, text);

function number(x, digits) { // with a true minus, which screen readers speak, and no minus before zero
  const text = Math.abs(x).toFixed(digits);
  return x < 0 && Number(text) !== 0 ? `−${text}` : text;
}

function away(distance) { // in words
  if (distance === 0) return "the same place";
  return `${Math.abs(distance)} place${Math.abs(distance) === 1 ? "" : "s"} ${distance > 0 ? "back" : "ahead"}`;
}

function scheme(name, table, places, causal) { // table: the scores of one scheme, row by row
  const at = (i, j) => table[i * places + j];
  const bands = new Map(); // distance -> the lowest and the highest score of all pairs that far apart
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < places; i++) {
    for (let j = 0; j < (causal ? i + 1 : places); j++) {
      const score = at(i, j);
      const band = bands.get(i - j) ?? { low: score, high: score, pairs: 0 };
      bands.set(i - j, { low: Math.min(band.low, score), high: Math.max(band.high, score), pairs: band.pairs + 1 });
      [low, high] = [Math.min(low, score), Math.max(high, score)];
    }
  }
  const most = Math.max(Math.abs(low), Math.abs(high));
  const spread = high - low > SAME * most ? high - low : most || 1;
  const digits = Math.min(Math.max(2 - Math.floor(Math.log10(spread)), 2), 6);
  if (high - low <= SAME * most || low === high) [low, high] = [low - spread / 2, high + spread / 2]; // a flat curve
  return { name, at, bands, low, high, digits, same: (band) => band.high - band.low <= SAME * most };
}

function words({ bands, digits, same }, distance) { // what moving both together changes
  const band = bands.get(distance);
  if (band.pairs === 1) return "no other two places are this far apart";
  if (same(band)) return "same at every place";
  let d = digits;
  while (number(band.low, d) === number(band.high, d)) d += 1;
  return `between ${number(band.low, d)} and ${number(band.high, d)} at this distance`;
}

function render({ model, el }) {
  const root = make("div", "pos", undefined, el);
  const bar = make("div", "pos-bar", undefined, root);
  const row = make("div", "pos-row", undefined, root);
  const note = make("p", "pos-note", undefined, root);
  const panels = make("div", "pos-panels", undefined, root);
  const status = make("p", "pos-status", undefined, root);
  status.setAttribute("role", "status");

  let schemes = [], plots = [], size = 1;
  let together = false; // the button: a drag takes both
  let cell = 1; // px a place in the row

  function places() { // where the two stand, whatever is asked for
    return { query: clamp(model.get("query"), size), key: clamp(model.get("key"), size) };
  }
  const hidden = (query, key) => model.get("causal") && key > query;

  function move(who, to, both) { // both: the other one goes along, and the pair stops where one of them must
    const now = places();
    const other = who === "query" ? "key" : "query";
    let by = clamp(to, size) - now[who];
    if (both) by = clamp(now[other] + by, size) - now[other];
    if (!by) return;
    model.set(who, now[who] + by);
    if (both) model.set(other, now[other] + by);
    model.save_changes();
  }

  // The buttons

  make("span", "", "Move both", bar);
  const steps = [["←", -1, "left"], ["→", 1, "right"]].map(([sign, by, side]) => {
    const button = make("button", "", sign, bar);
    button.type = "button";
    button.setAttribute("aria-label", `Move both one place to the ${side}`);
    button.addEventListener("click", () => move("query", places().query + by, true));
    return button;
  });
  const toggle = make("button", "", "Keep the distance", bar);
  toggle.type = "button";
  toggle.setAttribute("aria-pressed", "false");
  toggle.addEventListener("click", () => { together = !together; toggle.setAttribute("aria-pressed", together); });

  const far = make("span", "pos-far", undefined, bar);

  // The row: the query above the strip of places, the key below it

  const strip = draw(row, "svg", { "aria-hidden": "true", height: ROW.room });
  const handles = Object.fromEntries(["query", "key"].map((who) => {
    const handle = make("div", `pos-handle pos-${who}`, undefined, row);
    handle.tabIndex = 0;
    handle.setAttribute("role", "slider");
    handle.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
    make("span", "pos-role", who, handle);
    make("span", "pos-token", undefined, handle);
    handle.addEventListener("keydown", (event) => {
      const at = places()[who];
      const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: size - 1 };
      if (!(event.key in to) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      move(who, to[event.key], event.shiftKey || together);
    });
    return [who, handle];
  }));

  function dragging(node, start) { // start(event): who is taken, and the place under the mouse as a function of x
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      const { who, place } = start(event);
      handles[who].focus({ preventScroll: true });
      const go = (moved) => move(who, place(moved.clientX), moved.shiftKey || together);
      node.setPointerCapture(event.pointerId);
      node.addEventListener("pointermove", go);
      node.addEventListener("lostpointercapture", () => node.removeEventListener("pointermove", go), { once: true });
      go(event);
    });
  }

  dragging(row, (event) => {
    const held = Object.keys(handles).find((who) => handles[who].contains(event.target));
    const box = row.getBoundingClientRect();
    if (!held) { // the place that was clicked
      const who = event.clientY - box.top < ROW.strip + ROW.height / 2 ? "query" : "key";
      return { who, place: (x) => Math.floor((x - box.left) / cell) };
    }
    const [from, x0] = [places()[held], event.clientX];
    return { who: held, place: (x) => from + Math.round((x - x0) / cell) };
  });

  function markRow() {
    const { query, key } = places();
    const width = root.clientWidth || 600;
    cell = width / size;
    strip.replaceChildren();
    strip.setAttribute("width", width);
    const [foot, line] = [ROW.strip + ROW.height, { y: ROW.strip, height: ROW.height }];
    for (let i = 0; i < size; i++) {
      const kind = hidden(query, i) ? "pos-cell hid" : "pos-cell";
      draw(strip, "rect", { ...line, x: i * cell + 0.5, width: Math.max(cell - 1, 1), rx: 2, class: kind });
      const every = size > 16 ? 8 : 4;
      if (i % every && i !== size - 1) continue;
      const near = (place) => Math.abs(i - place) * cell < 16; // no room beside its neighbour
      if (near(key) || (i === size - 1 && i % every && near(i - (i % every)))) continue;
      label(strip, Math.min((i + 0.5) * cell, width - 7), foot + 12, "", String(i));
    }
    const half = query === key ? ROW.height / 2 : ROW.height;
    const marks = { query: [query, ROW.strip, 28], key: [key, foot - half, 76] };
    for (const [who, [place, y, end]] of Object.entries(marks)) {
      const x = (place + 0.5) * cell;
      const wide = Math.max(cell - 1, 3);
      draw(strip, "line", { x1: x, x2: x, y1: y + half / 2, y2: end, class: `pos-${who}` });
      draw(strip, "rect", { x: x - wide / 2, y, width: wide, height: half, rx: 2, class: `pos-${who}` });
      const handle = handles[who];
      handle.title = handle.lastChild.textContent = model.get(`${who}_token`);
      handle.classList.toggle("hid", who === "key" && hidden(query, key));
      const room = { "aria-valuemin": 0, "aria-valuemax": size - 1, "aria-valuenow": place };
      for (const [name, value] of Object.entries(room)) handle.setAttribute(name, value);
      handle.setAttribute("aria-valuetext", who === "key" ? `${place}, ${away(query - key)}` : `${place}`);
      handle.setAttribute("aria-label", `Place of the ${who} token “${model.get(`${who}_token`)}”`);
      handle.style.left = `${Math.min(Math.max(x - handle.offsetWidth / 2, 0), width - handle.offsetWidth)}px`;
    }
    steps[0].setAttribute("aria-disabled", Math.min(query, key) === 0);
    steps[1].setAttribute("aria-disabled", Math.max(query, key) === size - 1);
  }

  // The panels

  function build() { // one panel a scheme, empty
    panels.replaceChildren();
    plots = schemes.map((one) => {
      const panel = make("div", "pos-panel", undefined, panels);
      const head = make("div", "pos-head", undefined, panel);
      make("span", "pos-name", one.name, head).title = one.name;
      const score = make("span", "pos-score", undefined, head);
      const svg = draw(panel, "svg", { "aria-hidden": "true", height: PLOT.height });
      dragging(svg, () => { // the x axis is the place of the key
        const box = svg.getBoundingClientRect();
        const wide = (box.width - PLOT.left - PLOT.right) / size;
        return { who: "key", place: (x) => Math.floor((x - box.left - PLOT.left) / wide) };
      });
      return { one, score, svg, told: make("div", "pos-told", undefined, panel) };
    });
  }

  function plot(svg, one) { // the curve, the band of what moving both can give, and the key on it
    const { query, key } = places();
    const width = svg.parentNode.clientWidth || 200;
    const bottom = PLOT.height - PLOT.bottom;
    const wide = (width - PLOT.left - PLOT.right) / size;
    const x = (j) => PLOT.left + (j + 0.5) * wide;
    const y = (score) => bottom - ((score - one.low) / (one.high - one.low)) * (bottom - PLOT.top - 3) - 3;
    const path = (list) => `M${list.map(([a, b]) => `${a.toFixed(2)} ${b.toFixed(2)}`).join("L")}`;
    const seen = Array.from({ length: size }, (_, j) => j).filter((j) => !hidden(query, j));
    svg.replaceChildren();
    svg.setAttribute("width", width);
    const [from, to, roof] = [PLOT.left, width - PLOT.right, PLOT.top - 4];
    const edge = PLOT.left + seen.length * wide; // what lies beyond is hidden by the mask
    draw(svg, "rect", { x: edge, y: roof, width: to - edge, height: bottom - roof, class: "pos-hid" });
    if (to - edge > 50) label(svg, (edge + to) / 2, (roof + bottom) / 2 + 4, "", "hidden");
    if (one.low < 0 && one.high > 0) draw(svg, "line", { x1: from, x2: to, y1: y(0), y2: y(0), class: "pos-zero" });
    draw(svg, "path", { d: path([[from, roof], [from, bottom], [to, bottom]]), class: "pos-axis" });
    for (const score of [one.low, one.high]) {
      label(svg, from - 4, y(score) + 4, "end", number(score, one.digits));
    }
    const ends = (side) => seen.map((j) => [x(j), y(one.bands.get(query - j)[side])]);
    draw(svg, "path", { d: `${path([...ends("low"), ...ends("high").reverse()])}Z`, class: "pos-band" });
    draw(svg, "line", { x1: x(query), x2: x(query), y1: roof, y2: bottom, class: "pos-query" });
    draw(svg, "path", { d: path(seen.map((j) => [x(j), y(one.at(query, j))])), class: "pos-curve" });
    if (Math.abs(x(query) - x(key)) > 18) label(svg, x(query), bottom + 12, "", String(query));
    label(svg, x(key), bottom + 12, "key", String(key));
    if (hidden(query, key)) return;
    const { low, high } = one.bands.get(query - key);
    draw(svg, "path", { d: `M${x(key) - 4} ${y(high)}h8m-4 0V${y(low)}m-4 0h8`, class: "pos-range" });
    draw(svg, "circle", { cx: x(key), cy: y(one.at(query, key)), r: 4.5, class: "pos-key" });
  }

  function mark() { // all that follows the places of the two
    const { query, key } = places();
    const distance = query - key;
    markRow();
    for (const { one, score, svg, told } of plots) {
      plot(svg, one);
      score.textContent = hidden(query, key) ? "—" : number(one.at(query, key), one.digits);
      const said = hidden(query, key) ? "hidden by the mask" : words(one, distance);
      told.textContent = said.startsWith("between") ? `${said}, depending on where the pair stands` : said;
      told.classList.toggle("same", said.startsWith("same"));
    }
    far.textContent = away(distance);
    const at = (who, place) => `“${model.get(`${who}_token`)}” at ${place}`;
    const tell = (one) => `${one.name} ${number(one.at(query, key), one.digits)} (${words(one, distance)})`;
    const told = hidden(query, key) ? "hidden by the mask" : schemes.map(tell).join("; ");
    status.textContent = `Query ${at("query", query)}, key ${at("key", key)}, ${away(distance)}: ${told}.`;
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [count, side] = model.get("shape");
    const bytes = model.get("packed");
    const scores = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    if (scores.length !== count * side * side || model.get("names").length !== count) return;
    size = side;
    const table = (n) => scores.subarray(n * size * size, (n + 1) * size * size);
    schemes = model.get("names").map((name, n) => scheme(name, table(n), size, model.get("causal")));
    const others = model.get("others");
    note.textContent = "Drag a token, or use the arrow keys: with Shift, both move. Grey band: the scores at each " +
      `distance, wherever the pair stands.${others === null ? "" : ` Every other place holds “${others}”.`}`;
    build();
    mark();
  }

  const listeners = {};
  for (const name of ["query", "key", "query_token", "key_token"]) listeners[`change:${name}`] = mark;
  for (const name of ["packed", "shape", "names", "others", "causal"]) listeners[`change:${name}`] = load;
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);

  let width = 0; // the places follow the room there is, which is known only once the widget stands in the page
  const watch = new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) {
      width = root.clientWidth;
      mark();
    }
  });
  load();
  watch.observe(root);
  return () => {
    watch.disconnect();
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
