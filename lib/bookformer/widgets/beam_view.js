// Searches the tree that BeamView holds, and draws each step. Plain ES module, no dependency. Text reaches the page
// through textContent alone.

const ROW = 24; // px a line of the tree
const LETTER = 7.3; // px
const START = 24; // px before the first column
const MARKS = { " ": " ", "\n": "↵\n", "\t": "⇥", "\r": "␍" };

const odd = (c) => (/[\p{C}\p{Z}]/u.test(c) ? `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩` : c);
const running = (text) => [...text].map((c) => MARKS[c] ?? odd(c)).join("");
const are = (n) => (n === 1 ? "is" : "are");

function signed(x) { // with a true minus, and none before zero
  const text = Math.abs(x).toFixed(3);
  return x < 0 && Number(text) ? `−${text}` : text;
}

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

function fit(text, room) { // as much as there is room for; a Chinese character takes two letters
  let used = 0;
  const letters = [...text];
  for (let i = 0; i < letters.length; i += 1) {
    used += letters[i] > "\u2e80" ? 2 : 1;
    if (used * LETTER > room) return `${letters.slice(0, Math.max(i - 1, 1)).join("")}…`;
  }
  return text;
}

function grow(parents, logs) { // the tree, with what follows from it; -1 is the prompt
  const below = new Map([[-1, []]]);
  const [sums, length] = [{ "-1": 0 }, { "-1": 0 }];
  parents.forEach((parent, node) => {
    below.set(node, []);
    below.get(parent).push(node);
    sums[node] = sums[parent] + logs[node];
    length[node] = length[parent] + 1;
  });
  const path = (node) => (node < 0 ? [] : [...path(parents[node]), node]);
  return { parents, logs, below, sums, length, path, score: (node, power) => sums[node] / length[node] ** power };
}

function search({ below, score }, width, power) { // the hypotheses of each step, the best first
  const steps = [];
  let kept = [-1];
  while (kept.some((node) => below.get(node).length)) {
    const found = kept.flatMap((node) => (below.get(node).length ? below.get(node) : [node]));
    steps.push(found.sort((a, b) => score(b, power) - score(a, power)));
    kept = steps.at(-1).slice(0, width);
  }
  return steps;
}

function render({ model, el }) {
  const root = make("div", "beam", undefined, el);
  root.setAttribute("role", "group");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  const text = make("p", "beam-prompt", undefined, root);
  const sliders = make("div", "beam-sliders", undefined, root);
  const bar = make("div", "beam-bar", undefined, root);
  const status = make("p", "beam-status", undefined, root);
  status.setAttribute("role", "status");
  const picture = draw(make("div", "beam-picture", undefined, root), "svg", { "aria-hidden": "true" });
  const table = make("table", "", undefined, root);
  table.setAttribute("aria-label", "The hypotheses of this step");
  const ends = make("table", "beam-ends", undefined, root);
  ends.setAttribute("aria-label", "Where the searches end");
  const verdict = make("p", "beam-verdict", undefined, root);
  verdict.setAttribute("aria-live", "polite");
  make("p", "beam-note", "Filled: kept; dashed: dropped; plain: kept at an earlier step, and given up since. ★: on " +
    "the best path of the tree. log p is the logarithm of the last token's probability, in nats; the " +
    "sum is that of all tokens.", root);

  let tree = null, leaves = [];

  function put(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  const name = (node) => tree.path(node).map((i) => model.get("tokens")[i]).join("");
  const most = () => Math.max(...[...tree.below.values()].map((nodes) => nodes.length));

  const [width, step, power] = [["width", "Width", 1, 1], ["step", "Step", 1, 1],
    ["length_power", "Length power", 0, 0.1]].map(([trait, title, min, by]) => {
    const label = make("label", "beam-slider", undefined, sliders);
    make("span", "", title, label);
    const value = make("span", "beam-value", undefined, label);
    const input = make("input", "", undefined, label);
    Object.assign(input, { type: "range", min, step: by });
    input.setAttribute("aria-label", title);
    input.addEventListener("input", () => put({ [trait]: Number(input.value) }));
    const set = (at, max, words) => {
      Object.assign(input, { max, value: at });
      input.setAttribute("aria-valuetext", words);
      value.textContent = words;
    };
    return { label, set };
  });
  power.label.title = "Hypotheses are compared by their sum divided by the number of their tokens to this power";

  const movers = [["←", "One step back", -1], ["→", "One step on", 1]].map(([sign, words, by]) => {
    const node = make("button", "", sign, bar);
    node.type = "button";
    node.setAttribute("aria-label", words);
    node.addEventListener("click", () => {
      const { steps, at } = now();
      put({ step: Math.min(Math.max(at + by, 1), steps.length) });
    });
    return node;
  });

  function now() { // the search, and where in it we are
    const [wide, exponent] = [Math.min(Math.max(model.get("width"), 1), most()), model.get("length_power")];
    const steps = search(tree, wide, exponent);
    return { wide, exponent, steps, at: Math.min(Math.max(model.get("step"), 1), steps.length) };
  }

  function fill(where, heads, rows) { // a table; in each row the first cell is what it is about
    where.replaceChildren();
    const head = make("tr", "", undefined, make("thead", "", undefined, where));
    for (const word of heads) make("th", "", word, head).scope = "col";
    const body = make("tbody", "", undefined, where);
    for (const [first, ...others] of rows) {
      const row = make("tr", "", undefined, body);
      make("th", "", first, row).scope = "row";
      for (const word of others) make("td", "", word, row);
    }
  }

  function numbers(node, exponent) { // the sum, and the score if it is another
    return [tree.sums[node], ...(exponent ? [tree.score(node, exponent)] : [])].map(signed);
  }

  function list({ wide, exponent, steps, at }) { // the hypotheses of this step
    const heads = ["hypothesis", "log p", "sum", ...(exponent ? ["score"] : []), "fate"];
    fill(table, heads, steps[at - 1].map((node, rank) => {
      const fate = `${rank < wide ? "kept" : "dropped"}${tree.below.get(node).length ? "" : ", ended"}`;
      const log = tree.length[node] === at ? signed(tree.logs[node]) : "–";
      return [name(node), log, ...numbers(node, exponent), fate];
    }));
    table.rows[Math.min(wide, steps[at - 1].length)].className = "last"; // that is kept
  }

  function compare({ wide, exponent, steps }) { // where the searches end
    const best = leaves.reduce((a, b) => (tree.score(b, exponent) > tree.score(a, exponent) ? b : a));
    const way = new Set(tree.path(best));
    const rows = [[`beam of width ${wide}`, steps.at(-1)[0]], ["greedy (width 1)", search(tree, 1, exponent).at(-1)[0]],
      [`best path of ${leaves.length}`, best]];
    fill(ends, ["at the end", "path", "sum", ...(exponent ? ["score"] : [])],
      rows.map(([title, node]) => [title, name(node), ...numbers(node, exponent)]));
    const at = steps.findIndex((found) => found.slice(wide).some((node) => way.has(node)));
    const lost = at < 0 ? null : steps[at].slice(wide).find((node) => way.has(node));
    verdict.textContent = lost === null ? `A beam of width ${wide} finds the best path.`
      : `A beam of width ${wide} does not find the best path: it drops “${name(lost)}” at step ${at + 1}.`;
    return way;
  }

  function paint({ wide, steps, at }, way) { // the kept of the steps before, and all of this one
    const alive = new Set(steps[at - 1].slice(0, wide).flatMap(tree.path));
    const shown = new Set([...steps.slice(0, at - 1).flatMap((found) => found.slice(0, wide)), ...steps[at - 1]]);
    const room = picture.parentNode.clientWidth || 600;
    const column = (room - START) / steps.length;
    const gap = Math.min(28, column / 5);
    const places = new Map();
    let lines = 0;
    (function lay(node) { // each end has a line of its own, and stands below those before
      const next = tree.below.get(node).filter((child) => shown.has(child));
      next.forEach(lay);
      const ys = next.map((child) => places.get(child).y);
      const y = ys.length ? (ys[0] + ys.at(-1)) / 2 : (lines++ + 0.5) * ROW;
      places.set(node, { x: START + (tree.length[node] - 1) * column, y });
    })(-1);
    picture.replaceChildren();
    for (const [key, value] of [["width", room], ["height", lines * ROW]]) picture.setAttribute(key, value);
    draw(picture, "circle", { cx: 4, cy: places.get(-1).y, r: 4, class: "beam-start" });
    const wideness = column - gap;
    const fate = (node) => (alive.has(node) ? "kept" : steps[at - 1].includes(node) ? "dropped" : "past");
    for (const [node, { x, y }] of places) {
      if (node < 0) continue;
      const from = places.get(tree.parents[node]);
      const start = tree.parents[node] < 0 ? 8 : from.x + wideness;
      const bend = (start + x) / 2;
      const d = `M${start} ${from.y}C${bend} ${from.y} ${bend} ${y} ${x} ${y}`;
      draw(picture, "path", { d, class: `beam-link ${fate(node)}` });
      const group = draw(picture, "g", { class: `beam-node ${fate(node)}` });
      group.dataset.node = node;
      draw(group, "rect", { x, y: y - ROW / 2 + 2, width: wideness, height: ROW - 4, rx: 4 });
      const number = wideness > 110 ? signed(tree.logs[node]) : "";
      const star = way.has(node) ? "★" : "";
      const space = wideness - 10 - LETTER * (number.length + (number ? 1 : 0) + 1.5 * star.length);
      draw(group, "text", { x: x + 5, y: y + 4 }, star + fit(model.get("tokens")[node], space));
      if (number) draw(group, "text", { x: x + wideness - 5, y: y + 4, class: "end" }, number);
    }
  }

  function show() {
    if (!tree) return;
    const found = now();
    const { wide, exponent, steps, at } = found;
    width.set(wide, most(), `${wide}`);
    step.set(at, steps.length, `${at} of ${steps.length}`);
    power.set(exponent, 1, String(Number(exponent.toPrecision(3))));
    power.label.hidden = new Set(leaves.map((node) => tree.length[node])).size === 1; // all paths are of one length
    movers[0].setAttribute("aria-disabled", at === 1);
    movers[1].setAttribute("aria-disabled", at === steps.length);
    const before = at === 1 ? [-1] : steps[at - 2].slice(0, wide);
    const live = before.filter((node) => tree.below.get(node).length).length;
    const who = at === 1 ? "the prompt is" : `${live} ${live === 1 ? "hypothesis" : "hypotheses"} ${are(live)}`;
    const ended = live < before.length ? ` and ${before.length - live} had ended` : "";
    const kept = Math.min(wide, steps[at - 1].length);
    const [first] = steps[at - 1];
    status.textContent = `Step ${at} of ${steps.length}: ${who} extended${ended}; of ${steps[at - 1].length} the best ${
      kept} ${are(kept)} kept. The best is “${name(first)}”, sum ${signed(tree.sums[first])}.`;
    list(found);
    paint(found, compare(found));
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const { buffer, byteOffset, byteLength } = model.get("packed");
    const logs = Array.from(new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength)));
    const parents = model.get("parents");
    if (!logs.length || logs.length !== parents.length || logs.length !== model.get("tokens").length) return;
    tree = grow(parents, logs);
    leaves = parents.map((_, node) => node).filter((node) => !tree.below.get(node).length);
    root.setAttribute("aria-label", model.get("label"));
    text.textContent = `${running(model.get("prompt"))}▁`;
    show();
  }

  const listeners = {};
  for (const trait of ["width", "step", "length_power"]) listeners[`change:${trait}`] = show;
  for (const trait of ["packed", "parents", "tokens", "prompt", "label"]) listeners[`change:${trait}`] = load;
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  let known = 0; // the tree follows the room there is, which is known only once the widget stands in the page
  const watch = new ResizeObserver(() => {
    if (root.clientWidth === known) return;
    known = root.clientWidth;
    show();
  });
  load();
  watch.observe(root);
  return () => {
    watch.disconnect();
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
