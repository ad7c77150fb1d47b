// Draws what AttentionView holds. Plain ES module, no dependency. Text reaches the page through textContent alone.

const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
  [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];

function colour(x) { // x in 0..1
  const at = Math.min(Math.max(x, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[i].map((c, n) => Math.round(c + (at - i) * (VIRIDIS[i + 1][n] - c)));
}

const largest = (rows) => rows.reduce((top, row) => row.reduce((a, b) => Math.max(a, b), top), 0) || 1;
const clamp = (x, size) => Math.min(Math.max(x, 0), size - 1);

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function unpack(model) { // the weights as numbers, row by row: layers, heads, queries, keys
  const bytes = model.get("packed");
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return model.get("exact") ? new Float32Array(copy) : Float32Array.from(new Uint8Array(copy), (b) => b / 255);
}

function paint(canvas, rows, top, cell, mark) { // rows: T arrays of S weights
  const [height, width] = [rows.length * cell, rows[0].length * cell];
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: width * ratio, height: height * ratio });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  rows.forEach((row, t) => row.forEach((w, s) => {
    const rgb = colour(w / top);
    pen.fillStyle = `rgb(${rgb})`;
    pen.fillRect(s * cell, t * cell, cell, cell);
    if (cell < 30) return;
    pen.fillStyle = rgb[1] > 140 ? "#000" : "#fff";
    pen.font = `${Math.floor(cell / 3)}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(w.toFixed(2), (s + 0.5) * cell, (t + 0.5) * cell);
  }));
  if (!mark) return;
  pen.strokeStyle = "#d55e00";
  pen.lineWidth = 2;
  pen.strokeRect(1, mark.query * cell + 1, width - 2, cell - 2);
  if (mark.key !== null) pen.strokeRect(mark.key * cell + 1, mark.query * cell + 1, cell - 2, cell - 2);
}

function render({ model, el }) {
  const root = make("div", "attn", undefined, el);
  const bar = make("div", "attn-bar", undefined, root);
  const figure = make("div", "attn-figure", undefined, root);
  const status = make("p", "attn-status", undefined, root);
  status.setAttribute("role", "status");
  figure.tabIndex = 0;
  figure.setAttribute("role", "application");
  figure.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  figure.setAttribute("aria-label",
    "Attention weights. Arrow up and down choose a query, left and right a key; the sentence below tells the values.");

  let weights, key = null, hover = null; // hover: { query, key } under the mouse

  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  function marked() { // whatever is asked for, only what is there
    const [, , queries, keys] = model.get("shape");
    const place = hover ?? { query: model.get("query"), key };
    return { query: clamp(place.query, queries), key: place.key === null ? null : clamp(place.key, keys) };
  }

  function rowsOf(head) { // (T, S) of one head, or of the mean over all
    const [layers, heads, queries, keys] = model.get("shape");
    const chosen = head === "mean" ? [...Array(heads).keys()] : [clamp(head, heads)];
    const layer = clamp(model.get("layer"), layers);
    return Array.from({ length: queries }, (_, t) => Array.from({ length: keys }, (_, s) => {
      const at = (h) => weights[((layer * heads + h) * queries + t) * keys + s];
      return chosen.reduce((sum, h) => sum + at(h), 0) / chosen.length;
    }));
  }

  function tell() {
    const { query, key } = marked();
    const [asks, asked] = [model.get("query_tokens"), model.get("key_tokens")];
    const name = (tokens, i) => `“${tokens[i]}” (${i})`;
    if (model.get("head") === "all") {
      status.textContent = "All heads of this layer, side by side, in one scale. Choose one to read its values.";
      return;
    }
    const row = rowsOf(model.get("head"))[query];
    const number = (w) => w.toFixed(model.get("exact") ? 4 : 2);
    if (key !== null) {
      status.textContent = `Query ${name(asks, query)} gives key ${name(asked, key)} a weight of ${number(row[key])}.`;
      return;
    }
    const order = row.map((w, s) => s).sort((a, b) => row[b] - row[a]);
    const first = order.slice(0, 5).filter((s, i) => i === 0 || row[s] >= 0.005);
    const rest = order.slice(first.length);
    const told = first.map((s) => `${name(asked, s)} ${number(row[s])}`).join(", ");
    const sum = number(rest.reduce((total, s) => total + row[s], 0));
    const more = rest.length ? `; the others together ${sum}` : "";
    status.textContent = `Query ${name(asks, query)} attends to ${told}${more}.`;
  }

  function tokens(parent, side, list, size) { // one clickable label a token
    list.forEach((text, i) => {
      const label = make("span", "attn-token", text, parent);
      if ([...text].length < 2) label.classList.add("short");
      label.style[side === "keys" ? "width" : "height"] = `${size}px`;
      label.title = text;
      const at = () => (side === "queries" ? { query: i, key: null } : { query: model.get("query"), key: i });
      label.dataset[side === "queries" ? "query" : "key"] = i;
      label.addEventListener("mouseenter", () => { hover = at(); mark(); });
      label.addEventListener("mouseleave", () => { hover = null; mark(); });
      label.addEventListener("click", () => choose(at()));
    });
  }

  function choose(place) { // a second click on the same cell lets go of its key
    key = place.key === key && place.query === model.get("query") ? null : place.key;
    hover = null;
    if (place.query !== model.get("query")) put("query", place.query); // draws by its change
    else mark();
  }

  let mark = () => {}; // redraws what the choice of a token changes, and says it

  function drawMap() {
    const rows = rowsOf(model.get("head"));
    const top = largest(rows);
    const map = make("div", "attn-map", undefined, figure);
    const room = (root.clientWidth || 600) - 60;
    const cell = Math.min(36, Math.max(16, Math.floor(room / rows[0].length)));
    tokens(make("div", "attn-keys", undefined, map), "keys", model.get("key_tokens"), cell);
    tokens(make("div", "attn-queries", undefined, map), "queries", model.get("query_tokens"), cell);
    const canvas = make("canvas", "", undefined, map);
    const at = (event) => ({ query: Math.floor(event.offsetY / cell), key: Math.floor(event.offsetX / cell) });
    canvas.addEventListener("mousemove", (event) => { hover = at(event); mark(); });
    canvas.addEventListener("mouseleave", () => { hover = null; mark(); });
    canvas.addEventListener("click", (event) => choose(at(event)));
    mark = () => { paint(canvas, rows, top, cell, marked()); light(); tell(); };
    scale(top);
  }

  function drawLines() {
    const rows = rowsOf(model.get("head"));
    const size = 22;
    const grid = make("div", "attn-lines", undefined, figure);
    tokens(make("div", "attn-queries", undefined, grid), "queries", model.get("query_tokens"), size);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("viewBox", `0 0 100 ${size * Math.max(rows.length, rows[0].length)}`);
    svg.setAttribute("preserveAspectRatio", "none");
    Object.assign(svg.style, { width: "100%", height: `${size * Math.max(rows.length, rows[0].length)}px` });
    grid.append(svg);
    tokens(make("div", "", undefined, grid), "lines", model.get("key_tokens"), size);
    mark = () => {
      const { query, key } = marked();
      svg.replaceChildren();
      rows.forEach((row, t) => row.forEach((w, s) => {
        if (w < 0.005) return;
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        const ends = { x1: 0, y1: (t + 0.5) * size, x2: 100, y2: (s + 0.5) * size };
        for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
        line.setAttribute("vector-effect", "non-scaling-stroke");
        const on = t === query && (key === null || key === s);
        if (on) line.classList.add("on");
        line.setAttribute("stroke-width", on ? 1 + 4 * w : 1);
        line.setAttribute("stroke-opacity", on ? 0.35 + 0.65 * w : 0.25 * w);
        svg.append(line);
      }));
      light();
      tell();
    };
  }

  function drawAll() {
    const [, heads, queries, keys] = model.get("shape");
    const all = Array.from({ length: heads }, (_, h) => rowsOf(h));
    const top = largest(all.flat());
    const cell = Math.max(2, Math.min(12, Math.floor(150 / Math.max(queries, keys))));
    const list = make("div", "attn-heads", undefined, figure);
    all.forEach((rows, h) => {
      const button = make("button", "", undefined, list);
      button.type = "button";
      button.setAttribute("aria-label", `Show head ${h} alone`);
      paint(make("canvas", "", undefined, button), rows, top, cell, null);
      make("span", "", `head ${h}`, button);
      button.addEventListener("click", () => put("head", h));
    });
    mark = tell;
    scale(top);
  }

  function light() { // the labels of the marked tokens
    const { query, key } = marked();
    for (const label of figure.querySelectorAll(".attn-token")) {
      label.classList.toggle("on", label.dataset.query === String(query) || label.dataset.key === String(key));
    }
  }

  function scale(top) {
    const box = make("div", "attn-scale", undefined, figure);
    make("span", "", "0", box);
    paint(make("canvas", "", undefined, box), [Array.from({ length: 40 }, (_, i) => i / 39)], 1, 3, null);
    box.lastChild.style.height = "10px";
    make("span", "", top.toFixed(2), box);
  }

  function controls() {
    bar.replaceChildren();
    const [layers, heads] = model.get("shape");
    const choice = (words, name, options) => {
      const label = make("label", "", `${words} `, bar);
      const select = make("select", "", undefined, label);
      for (const [value, text] of options) make("option", "", text, select).value = value;
      select.value = String(model.get(name));
      select.addEventListener("change", () => put(name, isNaN(select.value) ? select.value : Number(select.value)));
    };
    const names = model.get("layer_names").slice(0, layers);
    if (layers > 1) choice("Layer", "layer", names.map((text, i) => [i, text]));
    const each = Array.from({ length: heads }, (_, h) => [h, String(h)]);
    if (heads > 1) choice("Head", "head", [...each, ["mean", "mean"], ["all", "all"]]);
    for (const view of ["heatmap", "lines"]) {
      const button = make("button", "", view === "heatmap" ? "Heatmap" : "Lines", bar);
      button.type = "button";
      button.disabled = model.get("head") === "all" && view === "lines";
      button.setAttribute("aria-pressed", model.get("view") === view);
      button.addEventListener("click", () => put("view", view));
    }
  }

  function draw() { // everything, after a change of what is shown
    hover = null;
    const inside = figure.contains(document.activeElement);
    const focused = bar.contains(document.activeElement) ? [...bar.querySelectorAll("select, button")]
      .indexOf(document.activeElement) : -1;
    controls();
    if (focused >= 0) bar.querySelectorAll("select, button")[focused]?.focus();
    figure.replaceChildren();
    if (model.get("head") === "all") drawAll();
    else if (model.get("view") === "lines") drawLines();
    else drawMap();
    if (inside) figure.focus();
    mark();
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [layers, heads, queries, keys] = model.get("shape");
    const fresh = unpack(model);
    if (fresh.length !== layers * heads * queries * keys) return;
    if (model.get("query_tokens").length !== queries || model.get("key_tokens").length !== keys) return;
    weights = fresh;
    key = null;
    draw();
  }

  figure.addEventListener("keydown", (event) => {
    const [, , queries, keys] = model.get("shape");
    const query = model.get("query");
    const moves = {
      ArrowUp: { query: query - 1, key }, ArrowDown: { query: query + 1, key },
      ArrowLeft: { query, key: (key ?? keys) - 1 }, ArrowRight: { query, key: (key ?? -1) + 1 },
      Home: { query: 0, key }, End: { query: queries - 1, key }, Escape: { query, key: null },
    };
    const to = moves[event.key];
    const modified = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
    if (!to || modified || event.target !== figure || model.get("head") === "all") return;
    event.preventDefault();
    event.stopPropagation();
    if (to.query < 0 || to.query >= queries || to.key < 0 || to.key >= keys) return;
    choose(to);
  });

  const listeners = { "change:query": () => { hover = null; mark(); } };
  for (const name of ["layer", "head", "view"]) listeners[`change:${name}`] = draw;
  for (const name of ["packed", "shape", "exact", "query_tokens", "key_tokens", "layer_names"]) {
    listeners[`change:${name}`] = load;
  }
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);

  let width = 0; // the cells follow the room there is, which is known only once the widget stands in the page
  const watch = new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) {
      width = root.clientWidth;
      draw();
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
