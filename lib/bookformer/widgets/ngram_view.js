// Draws what NGramView holds, and computes from its counts what NGramModel would: interpolated Kneser-Ney with three
// discounts. Plain ES module, no dependency. Text reaches the page through textContent alone.

const COLOURS = ["#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]; // by order
const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
const SHOWN = 8; // candidates

const visible = (text) => [...text].map((c) => MARKS[c] ?? (/[\p{C}\p{Z}]/u.test(c)
  ? `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩` : c)).join("");
const colour = (order) => COLOURS[order === 0 ? 0 : 1 + (order - 1) % (COLOURS.length - 1)];

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function unpack(view) { // seven bits a byte, lowest first; the eighth says that more follow
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const numbers = [];
  for (let i = 0; i < bytes.length;) {
    let number = 0, unit = 1;
    do {
      number += (bytes[i] & 127) * unit;
      unit *= 128;
    } while (bytes[i++] & 128);
    numbers.push(number);
  }
  return numbers;
}

function discounts(table) { // what is taken off a count of 0, 1, 2, and 3 or more
  const n = [0, 0, 0, 0, 0];
  for (const count of table.values()) if (count < 5) n[count] += 1;
  if (!n[1] || !n[2]) return [0, 0.5, 0.5, 0.5];
  const y = n[1] / (n[1] + 2 * n[2]);
  if (!n[3] || !n[4]) return [0, y, y, y];
  const three = [1, 2, 3].map((i) => i - (i + 1) * y * n[i + 1] / n[i]);
  return three.every((d) => d > 0) ? [0, ...three] : [0, y, y, y];
}

function count(model) { // for each order its table, from the code of an m-gram to its count, and its discounts
  const [size, order, opening] = [model.get("alphabet").length, model.get("order"), model.get("opening")];
  const numbers = unpack(model.get("packed"));
  const tables = Array.from({ length: order + 1 }, () => new Map());
  for (let i = 0, code = 0; i < numbers.length; i += 2) {
    code += numbers[i];
    tables[order].set(code, numbers[i + 1]);
  }
  for (let m = order - 1; m > 0; m -= 1) { // after how many characters each occurs; the start of the text is one more
    const add = (code) => tables[m].set(code, (tables[m].get(code) ?? 0) + 1);
    for (const code of tables[m + 1].keys()) add(code % size ** m);
    add(opening.slice(0, m).reduce((sum, id) => sum * size + id, 0));
  }
  return { size, order, tables, taken: tables.map(discounts) };
}

function predict({ size, order, tables, taken }, context) { // ids; what each order contributes, longest first
  const levels = [];
  let left = 1;
  for (let m = Math.min(order, context.length + 1); m > 0; m -= 1) {
    const suffix = context.slice(context.length - m + 1);
    const base = suffix.reduce((sum, id) => sum * size + id, 0) * size;
    const counts = Array.from({ length: size }, (_, id) => tables[m].get(base + id) ?? 0);
    const total = counts.reduce((a, b) => a + b, 0);
    const off = counts.map((c) => taken[m][Math.min(c, 3)]);
    const passed = total ? off.reduce((a, b) => a + b, 0) / total : 1;
    const shares = counts.map((c, id) => (total ? left * (c - off[id]) / total : 0));
    const kinds = counts.filter((c) => c > 0).length;
    levels.push({ order: m, suffix, total, kinds, discounts: taken[m].slice(1), passed, shares });
    left *= passed;
  }
  levels.push({ order: 0, suffix: [], shares: Array(size).fill(left / size) });
  const p = levels[0].shares.map((_, id) => levels.reduce((sum, level) => sum + level.shares[id], 0));
  return { levels, p };
}

function render({ model, el }) {
  const root = make("div", "ngram", undefined, el);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its keys to itself
  const bar = make("label", "ngram-bar", "Context ", root);
  const input = make("input", "", undefined, bar);
  Object.assign(input, { type: "text", spellcheck: false, autocomplete: "off" });
  input.setAttribute("autocapitalize", "off");
  const status = make("p", "ngram-status", undefined, root);
  status.setAttribute("role", "status");
  const list = make("ol", "ngram-list", undefined, root);
  const frame = make("div", "ngram-frame", undefined, root);
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "What each order counted after this context");
  make("p", "ngram-note", "Choose a character to write it. The longest order counts how often each came; the orders " +
    "below count after how many different characters.", root);

  let counted = null;

  function idsOf(text) { // or the first character that is not known
    const alphabet = model.get("alphabet");
    const ids = [];
    for (const char of text) {
      const id = [char, char.toLowerCase()].map((c) => alphabet.indexOf(c)).find((i) => i >= 0);
      if (id === undefined) return { unknown: char };
      ids.push(id);
    }
    return { ids };
  }

  const name = (id) => visible(model.get("alphabet")[id]);
  const quoted = (ids) => (ids.length ? `“${ids.map(name).join("")}”` : "nothing");
  const orderName = (order) => (order === 0 ? "uniform" : `order ${order}`);

  function sum(levels, p, id) { // a probability as the sum of its shares
    const parts = levels.map((level) => `${level.shares[id].toFixed(4)} (${orderName(level.order)})`);
    return `“${name(id)}” ${p[id].toFixed(4)} = ${parts.join(" + ")}`;
  }

  function candidates(levels, p, order) {
    const top = p[order[0]];
    for (const id of order) {
      const button = make("button", "", undefined, make("li", "", undefined, list));
      button.type = "button";
      button.dataset.id = id;
      button.setAttribute("aria-label", `Write ${sum(levels, p, id)}`);
      make("span", "ngram-char", name(id), button);
      const track = make("span", "ngram-track", undefined, button);
      for (const level of levels) {
        const part = make("span", "", undefined, track);
        part.style.width = `${100 * level.shares[id] / top}%`;
        part.style.background = colour(level.order);
      }
      make("span", "ngram-p", p[id].toFixed(4), button);
      const tell = () => { status.textContent = `${sum(levels, p, id)}.`; };
      button.addEventListener("focus", tell);
      button.addEventListener("mouseenter", tell);
      button.addEventListener("click", () => write(model.get("context") + model.get("alphabet")[id]));
    }
  }

  function counts(levels) {
    const table = make("table", "", undefined, frame);
    const head = make("tr", "", undefined, make("thead", "", undefined, table));
    for (const title of ["order", "context", "count", "next", "discounts", "passed on"]) {
      make("th", "", title, head).scope = "col";
    }
    const body = make("tbody", "", undefined, table);
    for (const { order, suffix, total, kinds, discounts: off, passed } of levels) {
      const row = make("tr", "", undefined, body);
      const first = make("th", "", undefined, row);
      first.scope = "row";
      make("span", "ngram-key", undefined, first).style.background = colour(order);
      make("span", "", orderName(order).replace("order ", ""), first);
      const cells = order === 0 ? ["", "", "", "", ""] : [suffix.length ? suffix.map(name).join("") : "–", total.toLocaleString("en"),
        String(kinds), off.map((d) => d.toFixed(3)).join(" "), passed.toFixed(4)];
      for (const text of cells) make("td", "", text, row);
    }
  }

  function draw() {
    const { ids, unknown } = idsOf(model.get("context"));
    list.replaceChildren();
    frame.replaceChildren();
    if (!counted) return;
    if (unknown !== undefined) {
      status.textContent = `The model has never seen the character “${visible(unknown)}”: it knows ${
        model.get("alphabet").map(visible).join(" ")}. Take it away to go on.`;
      return;
    }
    const { levels, p } = predict(counted, ids);
    const order = p.map((_, id) => id).sort((a, b) => p[b] - p[a] || a - b).slice(0, SHOWN);
    candidates(levels, p, order);
    counts(levels);
    const seen = levels.find((level) => level.total);
    const spoken = seen.order === levels[0].order ? "" :
      ` ${quoted(levels[0].suffix)} was never seen; the longest context that was is ${quoted(seen.suffix)}.`;
    status.textContent = `After ${quoted(levels[0].suffix)}: ${sum(levels, p, order[0])}.${spoken}`;
  }

  function write(text) { // what is typed, or chosen
    model.set("context", text);
    model.save_changes();
  }

  function show() {
    const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
    if (input.value !== model.get("context")) input.value = model.get("context");
    draw();
    if (at >= 0) (list.querySelectorAll("button")[0] ?? input).focus(); // the likeliest of the next
  }

  function load() { // after a change of what was counted; its parts may arrive one by one
    const { byteLength } = model.get("packed");
    counted = byteLength && model.get("alphabet").length && model.get("opening").length === model.get("order") - 1
      ? count(model) : null;
    show();
  }

  input.addEventListener("input", () => write(input.value));
  const listeners = { "change:context": show };
  for (const trait of ["packed", "alphabet", "order", "opening"]) listeners[`change:${trait}`] = load;
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  load();
  return () => {
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
