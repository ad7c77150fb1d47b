// Merges a text as BPETokenizer does, with the merges that MergeView holds, and draws each step. Plain ES module, no
// dependency. Text reaches the page through textContent alone.

const LONGEST = 200; // characters
const PACE = 700; // ms a step while it plays
const ROOM = 2 ** 13; // more than there are ids
const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
// GPT-2's pattern. White space is what Unicode calls so: the \s of JavaScript has U+FEFF and lacks U+0085.
const PIECES = new RegExp("'(?:s|t|re|ve|m|ll|d)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
  "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

const hex = (number) => number.toString(16).toUpperCase();
const visible = (text) => [...text].map((c) => MARKS[c] ?? (/[\p{C}\p{Z}]/u.test(c)
  ? `⟨${hex(c.codePointAt(0))}⟩` : c)).join("") || "∅";
const plural = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

function make(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function tokenText(token) { // a token is a string with one character a byte; part of a character is shown in hex
  let text = "";
  for (let i = 0; i < token.length;) {
    const first = token.charCodeAt(i);
    const size = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    try {
      text += visible(decoder.decode(Uint8Array.from(token.slice(i, i + size), (c) => c.charCodeAt(0))));
      i += size;
    } catch {
      text += `⟨${hex(first)}⟩`;
      i += 1;
    }
  }
  return text;
}

function unpack(packed) { // id -> token, token -> id, and from a pair of ids to its merge
  const all = Array.from({ length: 256 }, (_, b) => b);
  const shaped = (b) => (b > 0x20 && b < 0x7f) || (b > 0xa0 && b !== 0xad);
  const tokens = [...all.filter(shaped), ...all.filter((b) => !shaped(b))].map((b) => String.fromCharCode(b));
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges = new Map();
  const id = (at) => 92 * (packed.charCodeAt(at) - 35) + packed.charCodeAt(at + 1) - 35;
  for (let at = 0; at < packed.length; at += 4) {
    const [left, right] = [id(at), id(at + 2)];
    const token = tokens[left] + tokens[right];
    if (!ids.has(token)) { // two merges can make one token
      ids.set(token, tokens.length);
      tokens.push(token);
    }
    merges.set(left * ROOM + right, { rank: at / 4, left, right, made: ids.get(token) });
  }
  return { tokens, ids, merges };
}

function join(pieces, merge) { // every occurrence of the pair, from the left, becomes one token
  const made = new Set(); // where, counted through the whole text
  let at = 0;
  const joined = pieces.map((piece) => {
    const next = [];
    for (let i = 0; i < piece.length; i += 1, at += 1) {
      const here = piece[i] === merge.left && piece[i + 1] === merge.right;
      if (here) made.add(at);
      next.push(here ? merge.made : piece[i]);
      if (here) i += 1;
    }
    return next;
  });
  return { pieces: joined, merge, made };
}

function mergeSteps({ ids, merges }, text) { // the pieces before any merge, and after each
  let pieces = (text.match(PIECES) ?? []).map((piece) =>
    Array.from(encoder.encode(piece), (b) => ids.get(String.fromCharCode(b))));
  const steps = [{ pieces, made: new Set() }];
  for (;;) {
    let first;
    for (const piece of pieces) {
      for (let i = 1; i < piece.length; i += 1) {
        const merge = merges.get(piece[i - 1] * ROOM + piece[i]);
        if (merge && !(first?.rank <= merge.rank)) first = merge;
      }
    }
    if (!first) return steps;
    steps.push(join(pieces, first));
    ({ pieces } = steps.at(-1));
  }
}

function render({ model, el }) {
  const root = make("div", "merge", undefined, el);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab keeps its keys to itself
  const box = make("label", "merge-box", undefined, root);
  const caption = make("span", "", undefined, box);
  const input = make("textarea", "", undefined, box);
  Object.assign(input, { rows: 2, spellcheck: false, autocomplete: "off", dir: "auto" });
  input.setAttribute("autocapitalize", "off");
  const examples = make("div", "merge-bar", undefined, root);
  examples.setAttribute("role", "group");
  examples.setAttribute("aria-label", "Examples");
  const bar = make("div", "merge-bar", undefined, root);
  const choice = make("label", "", "Vocabulary ", bar);
  const select = make("select", "", undefined, choice);
  const player = button(bar, "Play", () => (timer ? stop() : play()));
  const back = button(bar, "←", () => move(now() - 1));
  const next = button(bar, "→", () => move(now() + 1));
  back.setAttribute("aria-label", "One merge back");
  next.setAttribute("aria-label", "One merge on");
  const slider = make("input", "merge-slider", undefined, bar);
  Object.assign(slider, { type: "range", min: 0, step: 1 });
  slider.setAttribute("aria-label", "Merges done");
  const status = make("p", "merge-status", undefined, root);
  status.setAttribute("role", "status");
  const counts = make("p", "merge-counts", undefined, root);
  const list = make("ol", "merge-tokens", undefined, root);
  list.setAttribute("role", "list"); // which a list without marks is not, to some
  list.setAttribute("aria-label", "Tokens and their ids");
  make("p", "merge-note", "Each box is a token, with its id below it; ⟨E4⟩ is a byte that is only part of a " +
    "character. A gap is a cut that no token crosses. What the last merge made is outlined.", root);

  let vocabularies = [], steps = [], text = "", cut = 0; // cut: how long the text was, if it was too long
  let timer = null;

  function button(parent, name, click) {
    const node = make("button", "", name, parent);
    node.type = "button";
    node.addEventListener("click", click);
    return node;
  }

  const last = () => steps.length - 1;
  const now = () => Math.min(Math.max(model.get("step") ?? last(), 0), last());

  function put(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  function go(step) { // the end is told as null, so that a new text is merged to its own end
    const to = Math.min(Math.max(step, 0), last());
    put({ step: to === last() ? null : to });
  }

  function move(step) { stop(); go(step); }

  function write(written) { // half of a surrogate pair can't be written in UTF-8
    stop();
    put({ step: null, text: written.replace(/\p{Cs}/gu, "\ufffd") });
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    player.textContent = "Play";
  }

  function play() {
    if (!last()) return;
    if (now() === last()) go(0);
    player.textContent = "Pause";
    timer = setInterval(() => {
      go(now() + 1);
      if (now() === last() || !root.isConnected) stop();
    }, PACE);
  }

  function draw() {
    const { tokens } = vocabularies[model.get("vocabulary")] ?? vocabularies[0];
    const { pieces, merge, made } = steps[now()];
    const name = (id) => tokenText(tokens[id]);
    const characters = [...text].length;
    let at = 0;
    const items = pieces.flatMap((piece) => piece.map((id, i) => {
      const item = make("li", at % 2 ? "odd" : "even");
      item.classList.toggle("cut", i === 0 && at > 0);
      item.classList.toggle("made", made.has(at));
      item.dataset.id = id;
      item.title = `bytes ${[...tokens[id]].map((c) => hex(c.charCodeAt(0)).padStart(2, "0")).join(" ")}`;
      make("span", "merge-token", name(id), item);
      make("span", "merge-id", String(id), item);
      at += 1;
      return item;
    }));
    list.replaceChildren(...items);
    const bytes = encoder.encode(text).length;
    const ratio = characters ? `, ${(at / characters).toFixed(2)} tokens per character` : "";
    counts.textContent = `${plural(characters, "character")}, ${plural(bytes, "byte")}, ${plural(at, "token")} now${ratio}`;
    const told = [];
    if (cut) told.push(`The text has ${cut} characters: only the first ${LONGEST} are merged.`);
    if (!characters) told.push("There is no text, and no token.");
    else if (merge) {
      told.push(`Step ${now()} of ${last()}, merge ${merge.rank}: ${name(merge.left)} + ${name(merge.right)} → ${
        name(merge.made)}, ${plural(made.size, "place")}. ${plural(at, "token")} now.`);
    } else told.push(`Step 0 of ${last()}: each byte is a token.`);
    if (characters && now() === last()) told.push("No other merge fits.");
    status.textContent = told.join(" ");
    Object.assign(slider, { max: last(), value: now(), disabled: !last() });
    slider.setAttribute("aria-valuetext", `${now()} of ${last()}`);
    back.setAttribute("aria-disabled", now() === 0);
    next.setAttribute("aria-disabled", now() === last());
    player.setAttribute("aria-disabled", !last());
  }

  function refresh() { // after a change of the text or the vocabulary
    if (!vocabularies.length) return;
    const whole = model.get("text");
    if (input.value !== whole) input.value = whole;
    const characters = [...whole];
    cut = characters.length > LONGEST ? characters.length : 0;
    text = characters.slice(0, LONGEST).join("");
    select.value = model.get("vocabulary");
    steps = mergeSteps(vocabularies[model.get("vocabulary")] ?? vocabularies[0], text);
    draw();
  }

  function load() { // after a change of what there is; its parts may arrive one by one
    const names = model.get("names");
    if (!names.length || model.get("packed").length !== names.length) return;
    vocabularies = model.get("packed").map(unpack);
    caption.textContent = model.get("label");
    select.replaceChildren(...names.map((name, i) => Object.assign(make("option", "", name), { value: i })));
    examples.replaceChildren();
    for (const example of model.get("texts")) { // a single space between words needs no mark
      button(examples, visible(example).replace(/(?<=[^␣])␣(?=[^␣])/gu, " "), () => write(example));
    }
    refresh();
  }

  input.addEventListener("input", () => write(input.value));
  select.addEventListener("change", () => { stop(); put({ step: null, vocabulary: Number(select.value) }); });
  slider.addEventListener("input", () => move(Number(slider.value)));
  const listeners = { "change:text": refresh, "change:vocabulary": refresh, "change:step": () => steps.length && draw() };
  for (const trait of ["names", "packed", "texts", "label"]) listeners[`change:${trait}`] = load;
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  load();
  return () => {
    stop();
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
