"""Beam search, step by step, on a small tree of continuations that a model has filled.

Chapter: GPT. The script `beam_view.js` searches and draws; this class checks the tree, packs it, and searches as the
script does, for a page on which no script runs. Both search as `generate.beam_search` does.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.tokenizers import visible

BRANCHES, DEPTH, NODES = 5, 5, 800  # at most
TOLERANCE = 1e-4  # how far rounding may take a logarithm above 0, or the probabilities of siblings above 1

Tree = Mapping[tuple[int, ...], Sequence[tuple[str, float]]]


class BeamView(anywidget.AnyWidget):
    """Choose a width, and see at each step which hypotheses are extended, kept and dropped.

    At each step every kept hypothesis is extended by each of its tokens; one that has ended stays as it is. Of all
    these the `width` best are kept, by the sum of their log-probabilities, divided by the number of their tokens to the
    power `length_power`. Beside what the beam ends with stand the greedy path, of width 1, and the best path of all.

    The tree holds for each path the tokens that may come next. A path is a tuple of places: () is the prompt, (0,) the
    prompt and the first of its tokens, (0, 2) that and the third token after it. A path without tokens has ended. If
    the b likeliest tokens of each path are in the tree, a beam of a width of at most b finds what it would find in the
    whole vocabulary. A model fills one like this:

        tree, level = {}, {(): prompt_ids}  # prompt_ids: (1, T)
        for _ in range(depth):
            below = {}
            for path, ids in level.items():
                top = model(ids)[0, -1].log_softmax(-1).topk(branches)
                tree[path] = [(tokens[i], logp) for i, logp in zip(top.indices.tolist(), top.values.tolist())]
                below |= {(*path, n): torch.cat([ids, i.view(1, 1)], dim=1) for n, i in enumerate(top.indices)}
            level = below

    Args:
        prompt: the text that is written on.
        tree: for each path at most 5 pairs of a token and its log-probability in nats, the likeliest first; 5 steps
            deep and 800 pairs at most.
        width: how many hypotheses are kept, 1 to the most tokens that any path has.
        length_power: 0 to 1; 0 compares sums, which favours what ends early.
        label: what the widget is called, for a screen reader.

    Raises:
        ValueError: a tree without tokens, with too many or too deep, with a path that it does not lead to, with tokens
            that are no strings, or with numbers that are not the log-probabilities of siblings, the likeliest first; a
            setting outside its range.
    """

    _esm = Path(__file__).with_name("beam_view.js")
    _css = Path(__file__).with_name("beam_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # the log-probability of each node as float32, level by level
    exact = traitlets.Bool(True).tag(sync=True)  # four bytes each
    parents = traitlets.List(traitlets.Int()).tag(sync=True)  # the number of the node before each; -1 is the prompt
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of each node, as shown
    prompt = traitlets.Unicode().tag(sync=True)  # as it is
    label = traitlets.Unicode().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    length_power = traitlets.Float().tag(sync=True)
    step = traitlets.Int(1).tag(sync=True)  # the one shown, or the last if there are fewer

    def __init__(
        self, prompt: str, tree: Tree, *, width: int = 2, length_power: float = 0.0, label: str = "Beam search"
    ) -> None:
        if not isinstance(prompt, str):
            raise ValueError(f"the prompt is {prompt!r}: give it as a string, not as ids")
        parents, tokens, logs = _flatten(tree)
        super().__init__(
            packed=np.array(logs, "<f4").clip(max=0).tobytes(),
            parents=parents,
            tokens=[visible(token) for token in tokens],
            prompt=prompt,
            label=label,
            width=width,
            length_power=length_power,
        )

    @traitlets.validate("width", "length_power", "step")
    def _fits(self, proposal: dict) -> float:
        self._check_setting(proposal["trait"].name, proposal["value"])
        return proposal["value"]

    def _check_setting(self, name: str, value: float) -> None:
        if name == "width":
            most = max(map(self.parents.count, {*self.parents}))
            if not 1 <= value <= most:
                raise ValueError(f"width must be from 1 to {most}, the most tokens that a path has, got {value}")
        if name == "length_power" and not 0 <= value <= 1:
            raise ValueError(f"length_power must be from 0 to 1, got {value}")
        if name == "step" and not 1 <= value <= DEPTH:
            raise ValueError(f"step must be from 1 to {DEPTH}, got {value}")

    def table(
        self, step: int | None = None, *, width: int | None = None, length_power: float | None = None
    ) -> list[tuple[str, ...]]:
        """The steps as text: each hypothesis, the log-probability of its last token, its sum, and what became of it.

        Args:
            step: which one, from 1; all of them when None.
            width: the widget's own when None.
            length_power: the widget's own when None.

        Returns:
            A row of headings, then one for each hypothesis, the best of a step first; "–" for the log-probability of
            one that had ended before. The score, which is the sum divided by the length to the power, has a column
            when the power is not 0.

        Raises:
            ValueError: there is no such step, or a setting is outside its range.
        """
        width, power = self._settings(width, length_power)
        nodes, steps = _Nodes(self), self._search(width, power)
        if step is not None and not 1 <= step <= len(steps):
            raise ValueError(f"there is no step {step}: a beam of width {width} makes steps 1 to {len(steps)}")
        rows = [("step", "hypothesis", "log p", "sum", *(["score"] if power else []), "fate")]
        for number, candidates in enumerate(steps, 1):
            for rank, node in enumerate(candidates if step in (None, number) else []):
                log = signed(nodes.logs[node]) if nodes.length[node] == number else "–"
                score = [signed(nodes.score(node, power))] if power else []
                fate = "kept" if rank < width else "dropped"
                fate += "" if nodes.below.get(node) else ", ended"
                rows.append((str(number), nodes.text(node), log, signed(nodes.sums[node]), *score, fate))
        return rows

    def paths(self, *, width: int | None = None, length_power: float | None = None) -> dict[str, tuple[str, float]]:
        """Where the searches end: the text and the sum of the log-probabilities of "beam", "greedy" and "best".

        Args:
            width: the widget's own when None.
            length_power: the widget's own when None.

        Raises:
            ValueError: a setting is outside its range.
        """
        nodes = _Nodes(self)
        ends = self._ends(*self._settings(width, length_power))
        return {name: (nodes.text(node), nodes.sums[node]) for name, node in ends.items()}

    def sentence(self, *, width: int | None = None, length_power: float | None = None) -> str:
        """Whether the beam found the best path of the tree, and if not, where it lost it.

        Args:
            width: the widget's own when None.
            length_power: the widget's own when None.

        Raises:
            ValueError: a setting is outside its range.
        """
        width, power = self._settings(width, length_power)
        nodes, best = _Nodes(self), self._ends(width, power)["best"]
        for number, candidates in enumerate(self._search(width, power), 1):
            lost = [node for node in candidates[width:] if node in nodes.path(best)]
            if lost:
                where = f"it drops “{nodes.text(lost[0])}” at step {number}"
                return f"A beam of width {width} does not find the best path: {where}."
        return f"A beam of width {width} finds the best path."

    def _settings(self, width: int | None, length_power: float | None) -> tuple[int, float]:
        settings = {
            "width": self.width if width is None else width,
            "length_power": self.length_power if length_power is None else length_power,
        }
        for name, value in settings.items():
            self._check_setting(name, value)
        return settings["width"], settings["length_power"]

    def _search(self, width: int, power: float) -> list[list[int]]:
        """The hypotheses of each step as nodes, the best first, so that the first `width` are those that are kept."""
        nodes, steps, kept = _Nodes(self), [], [-1]
        while any(nodes.below.get(node) for node in kept):
            found = [child for node in kept for child in nodes.below.get(node, [node])]
            steps.append(sorted(found, key=lambda node: -nodes.score(node, power)))
            kept = steps[-1][:width]
        return steps

    def _ends(self, width: int, power: float) -> dict[str, int]:
        nodes = _Nodes(self)
        leaves = [node for node in range(len(self.tokens)) if not nodes.below.get(node)]
        return {
            "beam": self._search(width, power)[-1][0],
            "greedy": self._search(1, power)[-1][0],
            "best": max(leaves, key=lambda node: nodes.score(node, power)),
        }

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"BeamView(tokens={len(self.tokens)}, width={self.width})"


class _Nodes:
    """The tree as the widget holds it, with what follows from it. A node is a number; -1 is the prompt."""

    def __init__(self, view: BeamView) -> None:
        self.parents, self.tokens = view.parents, view.tokens
        self.logs = np.frombuffer(view.packed, "<f4").astype(float).tolist()
        self.below: dict[int, list[int]] = {}
        self.sums, self.length = {-1: 0.0}, {-1: 0}
        for node, parent in enumerate(self.parents):
            self.below.setdefault(parent, []).append(node)
            self.sums[node] = self.sums[parent] + self.logs[node]
            self.length[node] = self.length[parent] + 1

    def score(self, node: int, power: float) -> float:
        return self.sums[node] / self.length[node] ** power

    def path(self, node: int) -> list[int]:
        return [] if node < 0 else [*self.path(self.parents[node]), node]

    def text(self, node: int) -> str:
        return "".join(self.tokens[i] for i in self.path(node))


def signed(x: float) -> str:
    """A logarithm as the widget writes it, with a true minus, and none before zero."""
    text = f"{abs(x):.3f}"
    return f"−{text}" if x < 0 and float(text) else text


def _flatten(tree: Tree) -> tuple[list[int], list[str], list[float]]:
    """The parents, tokens and log-probabilities of all nodes, level by level."""
    if not isinstance(tree, Mapping) or not tree.get(()):
        raise ValueError("the tree must be a dict that holds at () the tokens after the prompt, as pairs (token, logp)")
    parents, tokens, logs, queue = [], [], [], [((), -1)]
    for path, parent in queue:
        pairs = tree.get(path, ())
        _check_pairs(path, pairs)
        for n, (token, log) in enumerate(pairs):
            queue.append(((*path, n), len(tokens)))
            parents.append(parent)
            tokens.append(token)
            logs.append(float(log))
        if len(tokens) > NODES:
            raise ValueError(f"the tree has more than {NODES} tokens: take fewer branches or steps")
    unknown = [path for path in tree if path not in {path for path, _ in queue}]
    if unknown:
        raise ValueError(f"the tree does not lead to the path {unknown[0]!r}: there is no such token")
    return parents, tokens, logs


def _check_pairs(path: tuple[int, ...], pairs: Sequence[tuple[str, float]]) -> None:
    if len(pairs) > BRANCHES:
        raise ValueError(f"{len(pairs)} tokens after the path {path}: give at most {BRANCHES}")
    if pairs and len(path) >= DEPTH:
        raise ValueError(f"the path {path} goes on: the tree must be at most {DEPTH} steps deep")
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"after the path {path} stands {pair!r}: give pairs of a token, as a string, and its logp")
    logs = np.array([float(log) for _, log in pairs])
    if not (np.isfinite(logs) & (logs <= TOLERANCE)).all() or np.exp(logs).sum() > 1 + TOLERANCE:
        raise ValueError(
            f"the numbers after the path {path} are not log-probabilities, finite and of at most 1 together: "
            f"{logs.tolist()}"
        )
    if any(first < second for first, second in pairwise(logs)):
        raise ValueError(f"the tokens after the path {path} must stand with the likeliest first, got {logs.tolist()}")
