// Asks, fits and draws what LabelView holds. Plain ES module, no dependency. Text reaches the page through textContent
// alone.

const FLAT = 1e-10; // a slope this small is none
const STEPS = 100;
const UNDECIDED = 1e-9; // rewards that differ by less are equal
const ENDS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]; // where the bars' scale may end
const MARKS = { " ": " ", "\n": "↵\n", "\t": "⇥", "\r": "␍" };
const KEYS = { 1: 0, 2: 1, ArrowLeft: 0, ArrowRight: 1 };

const odd = (c) => (/[\p{C}\p{Z}]/u.test(c) ? `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩` : c);
const running = (text) => [...text].map((c) => MARKS[c] ?? odd(c)).join("") || "∅";
const total = (list) => list.reduce((sum, x) => sum + x, 0);
const dot = (a, b) => total(a.map((x, i) => x * b[i]));
const most = (list) => Math.max(...list.map(Math.abs));
const count = (n, what, more = "s") => `${n} ${what}${n === 1 ? "" : more}`;
const surprise = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))); // log(1 + exp(x))
const sigmoid = (x) => Math.exp(-surprise(-x));

function signed(x) { // with a true minus, and no sign before zero
  const text = Math.abs(x).toFixed(2);
  return Number(text) === 0 ? text : `${x < 0 ? "−" : "+"}${text}`;
}

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function solve(matrix, right) { // by elimination; the matrix is positive definite, so that no pivot is 0
  const rows = matrix.map((row, i) => [...row, right[i]]);
  const n = rows.length;
  for (let i = 0; i < n; i += 1) {
    for (let j = i + 1; j < n; j += 1) {
      const times = rows[j][i] / rows[i][i];
      for (let k = i; k <= n; k += 1) rows[j][k] -= times * rows[i][k];
    }
  }
  const x = Array(n).fill(0);
  for (let i = n - 1; i >= 0; i -= 1) {
    x[i] = (rows[i][n] - total(x.slice(i + 1).map((y, k) => rows[i][i + 1 + k] * y))) / rows[i][i];
  }
  return x;
}

function fit(differences, choices, penalty, size) { // the weights, by Newton's method; the same as `fit` in Python
  const towards = choices.map((choice, n) => differences[n].map((x) => (choice ? -x : x))); // preferred less other
  const loss = (w) => total(towards.map((d) => surprise(-dot(w, d)))) + (penalty / 2) * dot(w, w);
  let w = Array(size).fill(0);
  for (let n = 0; n < STEPS; n += 1) {
    const doubt = towards.map((d) => sigmoid(-dot(w, d))); // what is left for the other text
    const slope = w.map((x, i) => penalty * x - total(towards.map((d, k) => d[i] * doubt[k])));
    if (most(slope) < FLAT) break;
    const bend = w.map((_, i) => w.map((__, j) =>
      (i === j ? penalty : 0) + total(towards.map((d, k) => d[i] * d[j] * doubt[k] * (1 - doubt[k])))));
    let step = solve(bend, slope);
    const to = () => w.map((x, i) => x - step[i]);
    while (loss(to()) > loss(w) && most(step) > FLAT) step = step.map((x) => x / 2);
    w = to();
  }
  return w;
}

function render({ model, el }) {
  const root = make("div", "lab", undefined, el);
  root.setAttribute("role", "group");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its arrow keys to itself
  const asked = make("p", "lab-asked", undefined, root);
  const pair = make("div", "lab-pair", undefined, root);
  const bar = make("div", "lab-bar", undefined, root);
  const status = make("p", "lab-status", undefined, root);
  status.setAttribute("role", "status");
  const table = make("table", "lab-table", undefined, root);
  make("p", "lab-note", "Keys 1 and 2, or the left and the right arrow, choose a text. The weights are fitted anew " +
    "after each choice. A positive weight favours the text that has more of the feature, a negative one the text " +
    "that has less. Last pair: the first text's feature less the second's, in units of the typical difference. Each " +
    "weight times this, and all added up, is by how much the reward of the first text is larger.", root);

  let differences = [], size = 0; // of each pair, the first text's features less the second's

  function put(choices) {
    model.set("choices", choices);
    model.save_changes();
  }

  const pairs = () => model.get("pairs");
  const made = () => model.get("choices");
  const fitted = (n) => fit(differences.slice(0, n), made().slice(0, n), model.get("penalty"), size);

  function choose(which) {
    if (made().length < pairs().length) put([...made(), which]);
  }

  const texts = [0, 1].map((which) => {
    const button = make("button", "lab-text", undefined, pair);
    button.type = "button";
    make("span", "lab-role", undefined, button);
    make("span", "lab-words", undefined, button);
    button.addEventListener("click", () => choose(which));
    return button;
  });

  const [undo, again] = ["Undo", "Start again"].map((name) => {
    const node = make("button", "", name, bar);
    node.type = "button";
    return node;
  });
  undo.addEventListener("click", () => { if (made().length) put(made().slice(0, -1)); });
  again.addEventListener("click", () => { if (made().length) put([]); });

  root.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.repeat) return;
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    choose(KEYS[event.key]);
  });

  function ask(choices) { // the pair that is to be labelled, or the last one
    const done = choices.length === pairs().length;
    const at = done ? choices.length - 1 : choices.length;
    asked.textContent = done ? `All pairs are labelled, ${at + 1} of ${pairs().length}. This is the last.`
      : `Pair ${at + 1} of ${pairs().length}: ${model.get("question")}`;
    texts.forEach((button, which) => {
      const chosen = done && choices[at] === which;
      button.firstChild.textContent = `Text ${which + 1}${chosen ? ", preferred" : ""}`;
      button.lastChild.textContent = running(pairs()[at][which]);
      button.classList.toggle("chosen", chosen);
      button.setAttribute("aria-disabled", done);
    });
    for (const node of [undo, again]) node.setAttribute("aria-disabled", choices.length === 0);
  }

  function say(choices, weights) {
    const n = choices.length;
    if (!n) return "No choice yet: all weights are 0, and the model has no guess.";
    const towards = (reward, choice) => (choice ? -reward : reward);
    const rewards = choices.map((choice, k) => towards(dot(differences[k], fitted(k)), choice)); // fitted before it
    const last = rewards[n - 1];
    const verdict = Math.abs(last) < UNDECIDED ? "no guess" : last > 0 ? "right" : "wrong";
    let said = `Pair ${n}: the ${["first", "second"][choices[n - 1]]} text was preferred. `;
    said += n === 1 ? "There was nothing to guess from. "
      : `Fitted to the ${count(n - 1, "choice")} before, the model had given it ${
        sigmoid(last).toFixed(2)}: ${verdict}. `;
    const guesses = rewards.filter((reward) => Math.abs(reward) >= UNDECIDED);
    const right = guesses.filter((reward) => reward > 0).length;
    if (guesses.length) {
      said += `Of ${count(guesses.length, "guess", "es")} so far ${right} ${right === 1 ? "was" : "were"} right. `;
    }
    const agrees = choices.filter((choice, k) => towards(dot(differences[k], weights), choice) >= UNDECIDED).length;
    return n > 1 ? `${said}Fitted to all ${n}, the model agrees with ${agrees}.` : said.trimEnd();
  }

  function bars(choices, weights) {
    const end = ENDS.find((x) => x >= most(weights)) ?? Math.ceil(most(weights));
    table.replaceChildren();
    const head = make("tr", "", undefined, make("thead", "", undefined, table));
    for (const title of ["feature", "", "weight", "last pair"]) {
      const cell = make(title ? "th" : "td", title ? "" : "lab-bars", title, head);
      if (title) cell.scope = "col";
      const axis = title || make("div", "lab-axis", undefined, cell);
      if (!title) for (const edge of [`−${end}`, "0", `+${end}`]) make("span", "", edge, axis);
    }
    const body = make("tbody", "", undefined, table);
    weights.forEach((weight, i) => {
      const row = make("tr", "", undefined, body);
      const first = make("th", "", undefined, row);
      first.scope = "row";
      make("span", "lab-name", model.get("names")[i], first);
      const cell = make("td", "lab-bars", undefined, row);
      cell.setAttribute("aria-hidden", "true");
      const track = make("div", "lab-track", undefined, cell);
      make("span", "lab-zero", undefined, track);
      const fill = make("span", weight < 0 ? "lab-less" : "lab-more", undefined, track);
      fill.style.width = `${(50 * Math.abs(weight)) / end}%`;
      make("td", "", signed(weight), row);
      make("td", "", choices.length ? signed(differences[choices.length - 1][i]) : "", row);
    });
  }

  function draw() {
    const choices = made();
    if (!size || choices.length > pairs().length) return; // the parts may arrive one by one
    const weights = fitted(choices.length);
    ask(choices);
    status.textContent = say(choices, weights);
    bars(choices, weights);
  }

  function measure() { // the room that the largest pair needs, so that nothing below moves
    if (!size) return;
    pair.style.minHeight = "";
    const heights = pairs().map((both) => {
      texts.forEach((button, which) => { button.lastChild.textContent = running(both[which]); });
      return pair.offsetHeight;
    });
    pair.style.minHeight = `${Math.max(...heights)}px`;
    draw();
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const [n, length] = model.get("shape");
    const { buffer, byteOffset, byteLength } = model.get("packed");
    const all = Array.from(new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength)));
    if (all.length !== n * length || pairs().length !== n || model.get("names").length !== length) return;
    size = length;
    differences = pairs().map((_, k) => all.slice(k * size, (k + 1) * size));
    for (const node of [root, table]) node.setAttribute("aria-label", model.get("label"));
    measure();
  }

  const listeners = { "change:choices": draw, "change:penalty": draw, "change:question": draw };
  for (const name of ["packed", "shape", "pairs", "names", "label"]) listeners[`change:${name}`] = load;
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);

  let width = 0; // the texts follow the room there is, which is known only once the widget stands in the page
  const watch = new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) {
      width = root.clientWidth;
      measure();
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
