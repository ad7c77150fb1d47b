// Draws what PictureView holds. Plain ES module, no dependency. Text reaches the page through textContent alone.

const ROWS = 5; // patches in the table
const PRINTED = 3; // patches with their share printed on the picture
const SIDE = 360; // px: the longer side of the picture at most
const ROOM = 30; // px: a patch so wide has room for a number

const clamp = (x, size) => Math.min(Math.max(x, 0), size - 1);
const total = (list) => list.reduce((sum, x) => sum + x, 0);

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

function unpack(bytes, exact) {
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return exact ? new Float32Array(copy) : new Uint8Array(copy);
}

function render({ model, el }) {
  const root = make("div", "pic", undefined, el);
  root.setAttribute("role", "group");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  const bar = make("div", "pic-bar", undefined, root);
  const caption = make("div", "pic-words", undefined, root);
  caption.setAttribute("role", "listbox");
  caption.setAttribute("aria-label", "Words of the caption");
  caption.setAttribute("aria-orientation", "horizontal");
  const body = make("div", "pic-body", undefined, root);
  const figure = make("div", "pic-figure", undefined, body);
  figure.tabIndex = 0;
  figure.setAttribute("role", "application");
  const canvas = make("canvas", "", undefined, figure);
  const svg = draw(figure, "svg", {});
  for (const node of [canvas, svg]) node.setAttribute("aria-hidden", "true");
  const table = make("table", "pic-table", undefined, body);
  const status = make("p", "pic-status", undefined, root);
  status.setAttribute("role", "status");
  make("p", "pic-note", "The thicker the outline of a patch, the more the chosen word attends to it; the bar under a " +
    "word is what it gives to all patches. Rows are counted from the top, columns from the left.", root);

  let pixels = [], packed = [], sums = []; // whole numbers up to 255, or float32
  let starts = []; // of each picture: how many rows of weights stand before its own
  let size = {}; // of pictures and patches
  let patch = null, hover = null; // the patch marked with the keys or a click; the one under the mouse

  const unit = () => (model.get("exact") ? 1 : 255);
  const number = (x) => Math.max(x, 0).toFixed(model.get("exact") ? 4 : 2);
  const where = (i) => `row ${Math.floor(i / size.columns) + 1}, column ${(i % size.columns) + 1}`;

  function now() { // whatever is asked for, only what is there
    const picture = clamp(model.get("picture"), size.pictures);
    const words = model.get("words")[picture];
    const head = model.get("head");
    return { picture, words, word: clamp(model.get("word"), words.length),
      layer: clamp(model.get("layer"), size.layers), head: head === "mean" ? head : clamp(head, size.heads) };
  }

  function mean(data, width, word) { // of one word, over the heads that are shown: width numbers
    const { picture, words, layer, head } = now();
    const heads = head === "mean" ? [...Array(size.heads).keys()] : [head];
    const at = (h, i) => data[(starts[picture] + (layer * size.heads + h) * words.length + word) * width + i];
    return Array.from({ length: width }, (_, i) => total(heads.map((h) => at(h, i))) / (unit() * heads.length));
  }

  const given = (word) => mean(packed, size.patches, word);
  const share = (word) => mean(sums, 1, word)[0];

  function put(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  // The controls: the picture, the layer, the head

  const turn = (by) => {
    const to = clamp(now().picture + by, size.pictures);
    if (to === now().picture) return;
    put({ picture: to, word: clamp(model.get("word"), model.get("words")[to].length) });
  };
  const pager = make("div", "pic-pager", undefined, bar);
  const pages = [["←", -1, "Picture before"], ["→", 1, "Next picture"]].map(([sign, by, name]) => {
    const button = make("button", "", sign, pager);
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.addEventListener("click", () => turn(by));
    return button;
  });
  const page = make("span", "pic-page");
  pages[0].after(page);
  const choices = [["Layer", "layer"], ["Head", "head"]].map(([title, name]) => {
    const label = make("label", "", `${title} `, bar);
    const select = make("select", "", undefined, label);
    select.addEventListener("change", () =>
      put({ [name]: select.value === "mean" ? "mean" : Number(select.value) }));
    return { name, label, select };
  });

  // The words

  function choose(word, focus) {
    if (word !== now().word) put({ word });
    if (focus) caption.children[word].focus();
  }

  caption.addEventListener("keydown", (event) => {
    const { word, words } = now();
    const to = { ArrowLeft: word - 1, ArrowRight: word + 1, Home: 0, End: words.length - 1 }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    choose(clamp(to, words.length), true);
  });
  caption.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose([...caption.children].indexOf(option), true);
  });

  function line() { // the caption, each word with its bar
    const { word, words } = now();
    const inside = caption.contains(document.activeElement);
    if (caption.children.length !== words.length) {
      caption.replaceChildren(...words.map(() => {
        const option = make("span", "pic-word");
        option.setAttribute("role", "option");
        make("span", "pic-name", undefined, option);
        make("span", "", undefined, make("span", "pic-share", undefined, option));
        return option;
      }));
    }
    [...caption.children].forEach((option, t) => {
      option.firstChild.textContent = words[t];
      option.lastChild.firstChild.style.width = `${100 * Math.min(share(t), 1)}%`;
      option.setAttribute("aria-label", `${words[t]}, ${number(share(t))} to patches`);
      option.setAttribute("aria-selected", t === word);
      option.tabIndex = t === word ? 0 : -1; // one tab stop
    });
    if (inside) caption.children[word].focus();
  }

  // The picture

  const marked = () => hover ?? patch;

  function paint() { // the pixels, as many on the screen as make each of them the same size
    const { picture } = now();
    const { height, width } = size;
    const room = Math.min((root.clientWidth || SIDE) - 2, SIDE);
    const zoom = Math.max(Math.floor(Math.min(room / width, SIDE / height)), 1);
    Object.assign(canvas, { width, height });
    for (const node of [canvas, svg]) {
      Object.assign(node.style, { width: `${width * zoom}px`, height: `${height * zoom}px` });
    }
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(width, height);
    for (let i = 0; i < width * height; i += 1) {
      const grey = Math.round((pixels[picture * width * height + i] * 255) / unit());
      image.data.set([grey, grey, grey, 255], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    size.cell = size.patch * zoom; // px
    figure.setAttribute("aria-label", `Picture ${picture + 1}, ${size.rows} rows and ${size.columns} columns of ` +
      "patches. Arrow keys mark a patch; the sentence below tells its share.");
  }

  function overlay(list, top) { // the outlines; list: what each patch is given; top: the thickest outline's share
    const { cell, columns } = size;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${columns * cell} ${size.rows * cell}`);
    const box = (i, inset) => ({ x: (i % columns) * cell + inset, y: Math.floor(i / columns) * cell + inset,
      width: cell - 2 * inset, height: cell - 2 * inset });
    for (let i = 0; i < list.length; i += 1) draw(svg, "rect", { ...box(i, 0), class: "pic-grid" });
    const most = Math.min(Math.max(cell / 7, 2), 7);
    list.forEach((x, i) => {
      const thick = most * (x / top);
      if (thick < 0.5) return;
      draw(svg, "rect", { ...box(i, thick / 2 + 0.5), "stroke-width": thick + 2, class: "pic-edge" });
      draw(svg, "rect", { ...box(i, thick / 2 + 0.5), "stroke-width": thick, class: "pic-outline" });
    });
    if (marked() !== null) {
      draw(svg, "rect", { ...box(marked(), 2), class: "pic-mark" });
      draw(svg, "rect", { ...box(marked(), 2), class: "pic-mark dashed" });
    }
    if (cell < ROOM) return;
    for (const i of order(list).slice(0, PRINTED)) {
      const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell];
      const text = list[i].toFixed(2);
      if (text === "0.00") continue;
      const wide = 7 * text.length + 2; // px, as the font is
      draw(svg, "rect", { x: x + 2.5, y: y + 2.5, width: wide, height: 15, rx: 2, class: "pic-tag" });
      draw(svg, "text", { x: x + 2.5 + wide / 2, y: y + 14, class: "pic-number" }, text);
    }
  }

  const order = (list) => list.map((_, i) => i).sort((a, b) => list[b] - list[a] || a - b);

  function under(event) { // the patch there
    const { left, top } = svg.getBoundingClientRect();
    const [column, row] = [(event.clientX - left) / size.cell, (event.clientY - top) / size.cell].map(Math.floor);
    return clamp(row, size.rows) * size.columns + clamp(column, size.columns);
  }
  svg.addEventListener("mousemove", (event) => {
    if (under(event) === hover) return;
    hover = under(event);
    show();
  });
  svg.addEventListener("mouseleave", () => { hover = null; show(); });
  svg.addEventListener("click", (event) => { // a second click lets go
    patch = under(event) === patch ? null : under(event);
    hover = null;
    show();
  });
  figure.addEventListener("keydown", (event) => {
    const at = patch ?? order(given(now().word))[0];
    const [row, column] = [Math.floor(at / size.columns), at % size.columns];
    const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column], Home: [0, 0], End: [size.rows - 1, size.columns - 1], Escape: [] }[event.key];
    if (!to || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    hover = null;
    if (!to.length) patch = null;
    else if (patch === null && event.key.startsWith("Arrow")) patch = at; // the largest first
    else patch = clamp(to[0], size.rows) * size.columns + clamp(to[1], size.columns);
    show();
  });

  // The words and numbers below

  function rows(list, all) {
    const found = order(list);
    const shown = found.slice(0, ROWS);
    const lines = shown.map((i) => [where(i), list[i]]);
    const others = found.length - shown.length;
    if (others) lines.push([`${others} other${others > 1 ? "s" : ""}`, all - total(shown.map((i) => list[i]))]);
    lines.push(["words", 1 - all]);
    table.replaceChildren();
    const head = make("tr", "", undefined, make("thead", "", undefined, table));
    for (const title of ["patch", "", "share"]) {
      const cell = make(title ? "th" : "td", "", title, head);
      if (title) cell.scope = "col";
    }
    const part = make("tbody", "", undefined, table);
    lines.forEach(([name, x], n) => {
      const row = make("tr", n < shown.length ? "" : "pic-rest", undefined, part);
      make("th", "", name, row).scope = "row";
      const track = make("div", "pic-track", undefined, make("td", "", undefined, row));
      track.parentNode.setAttribute("aria-hidden", "true");
      make("span", "", undefined, track).style.width = `${100 * Math.min(Math.max(x, 0), 1)}%`;
      make("td", "", number(x), row);
    });
  }

  function say(list, all) {
    const { picture, words, word, layer, head } = now();
    const heads = head === "mean" ? "mean over the heads" : `head ${head}`;
    const place = `Picture ${picture + 1}, word ${word + 1}, “${words[word]}”, in layer ${layer}, ${heads}: `;
    if (marked() !== null) {
      return `${place}the patch in ${where(marked())} gets ${number(list[marked()])} of its attention.`;
    }
    const first = order(list)[0];
    const patches = list.length === 1 ? "The one patch gets" : `All ${list.length} patches together get`;
    return `${place}the patch that it attends to most is ${where(first)}, with ${number(list[first])} of its ` +
      `attention. ${patches} ${number(all)}; the other ${number(1 - all)} goes to words, itself included.`;
  }

  function show() { // all that follows the choice
    if (!packed.length) return;
    const { picture, words, word, layer, head } = now();
    const list = given(word);
    const top = Math.max(...words.map((_, t) => Math.max(...given(t)))) || 1; // so that words can be compared
    page.textContent = `Picture ${picture + 1} of ${size.pictures}`;
    pages[0].setAttribute("aria-disabled", picture === 0);
    pages[1].setAttribute("aria-disabled", picture === size.pictures - 1);
    choices.forEach(({ select }, i) => { select.value = String([layer, head][i]); });
    line();
    overlay(list, top);
    rows(list, share(word));
    status.textContent = say(list, share(word));
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [pictures, height, width, side, layers, heads] = model.get("shape");
    const [rows, columns] = [height / side, width / side];
    const exact = model.get("exact");
    const [a, b, c] = ["pixels", "packed", "sums"].map((name) => unpack(model.get(name), exact));
    const words = model.get("words").map((one) => one.length);
    const before = words.map((_, n) => layers * heads * total(words.slice(0, n)));
    const all = layers * heads * total(words);
    if (words.length !== pictures || a.length !== pictures * height * width) return;
    if (b.length !== all * rows * columns || c.length !== all) return;
    [pixels, packed, sums, starts] = [a, b, c, before];
    size = { pictures, height, width, patch: side, layers, heads, rows, columns, patches: rows * columns };
    [patch, hover] = [null, null];
    for (const node of [root, table]) node.setAttribute("aria-label", model.get("label"));
    pager.hidden = pictures === 1;
    choices.forEach(({ name, label, select }) => {
      const count = name === "layer" ? layers : heads;
      const options = Array.from({ length: count }, (_, i) => String(i));
      if (name === "head" && count > 1) options.unshift("mean");
      select.replaceChildren(...options.map((text) => Object.assign(make("option", "", text), { value: text })));
      label.hidden = count === 1;
    });
    turned();
  }

  function turned() { // another picture, or another width
    if (!packed.length) return;
    hover = null;
    paint();
    show();
  }

  const listeners = { "change:picture": () => { patch = null; turned(); } };
  for (const name of ["word", "layer", "head"]) listeners[`change:${name}`] = show;
  for (const name of ["pixels", "packed", "sums", "exact", "shape", "words", "label"]) {
    listeners[`change:${name}`] = load;
  }
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);

  let width = 0; // the picture follows the room there is, which is known only once the widget stands in the page
  const watch = new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) {
      width = root.clientWidth;
      turned();
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
