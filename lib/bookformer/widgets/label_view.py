"""Pairs of texts to choose from, and a small reward model that is fitted to the choices as they are made.

Chapter: Learning from human feedback. The script `label_view.js` asks, fits and draws; this class checks what it is
given, packs it, and computes the same numbers for a page on which no script runs. Paper: Bradley and Terry 1952.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible

PAIRS, LENGTH, FEATURES = 100, 1000, 12  # at most: pairs, characters of a text, features
LEAST, MOST = 0.01, 100.0  # penalties
FLAT = 1e-10  # a slope this small is none; the script has this number too, and the next two
STEPS = 100
UNDECIDED = 1e-9  # rewards that differ by less are equal: the model has no guess


class LabelView(anywidget.AnyWidget):
    """Ask which of two texts is better, pair by pair, and fit a linear reward to the choices made so far.

    The reward of a text is w . f, where f are its features, each divided by its scale: the root mean square of its
    difference within a pair, so that weights can be compared. The first text is preferred with probability
    sigmoid(w . (f1 - f2)). The weights w make the choices likeliest, less a penalty on their squares: see `fit`. Before
    each choice the model guesses what it will be; the guess is shown after the choice, so that it leads no one.

    Args:
        pairs: 1 to 100 pairs of texts of at most 1,000 characters, asked in this order.
        features: (n_pairs, 2, n_features), what the model knows of each text; an array or a tensor.
        names: of the 1 to 12 features, no two alike.
        choices: those already made, of the first pairs: 0 where the first text was preferred, 1 where the second.
        penalty: how strongly weights are held near 0, from 0.01 to 100.
        question: what is asked about each pair.
        label: what the widget is called, for a screen reader.

    Raises:
        ValueError: no or too many pairs, a pair that is not two different texts, or a text too long; features that do
            not fit the pairs or the names, or are not finite, or one that never differs within a pair; choices that
            are not 0 or 1, or more than there are pairs; a penalty outside its range.
    """

    _esm = Path(__file__).with_name("label_view.js")
    _css = Path(__file__).with_name("label_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # float32: the scaled differences, pair by pair
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [n, F]
    exact = traitlets.Bool(True).tag(sync=True)  # four bytes a number
    pairs = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)  # as they are
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as shown: line ends visible
    penalty = traitlets.Float().tag(sync=True)
    question = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    choices = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        features: object,
        names: Sequence[str],
        *,
        choices: Sequence[int] = (),
        penalty: float = 1.0,
        question: str = "Which text is better?",
        label: str = "Pairs of texts to choose from",
    ) -> None:
        _check_pairs(pairs)
        _check_names(names)
        features = as_array(features)
        _check_features(features, len(pairs), names)
        differences = features[:, 0].astype(float) - features[:, 1]  # (n, F)
        scales = np.sqrt(np.square(differences).mean(axis=0))  # (F,)
        if not scales.all():
            name = names[int((scales == 0).argmax())]
            raise ValueError(f"feature {name!r} is the same for both texts of every pair: it can decide nothing")
        super().__init__(
            packed=(differences / scales).astype("<f4").tobytes(),
            shape=[len(pairs), len(names)],
            pairs=[list(pair) for pair in pairs],
            names=["".join(c if c == " " else visible(c) for c in name) or "∅" for name in names],
            penalty=_penalty(penalty),
            question=question,
            label=label,
            choices=_choices(choices, len(pairs)),
        )

    @traitlets.validate("choices")
    def _could_be(self, proposal: dict) -> list[int]:
        return _choices(proposal["value"], self.shape[0])

    @traitlets.validate("penalty")
    def _in_range(self, proposal: dict) -> float:
        return _penalty(proposal["value"])

    def differences(self) -> np.ndarray:
        """(n, F): the first text's features less the second's, in units of their scales."""
        return np.frombuffer(self.packed, "<f4").astype(float).reshape(self.shape)

    def weights(self) -> np.ndarray:
        """(F,): the weights that are fitted to all choices."""
        return fit(self.differences()[: len(self.choices)], self.choices, self.penalty)

    def guesses(self) -> np.ndarray:
        """(n_choices,): the probability of the first text of each pair, fitted to the choices before it alone."""
        rewards = [self._before(k) for k in range(len(self.choices))]
        return np.array([_sigmoid(reward) for reward in rewards])

    def table(self) -> list[tuple[str, str, str]]:
        """The weights as text, and the difference that the pair labelled last has: headings, then a row a feature."""
        made = len(self.choices)
        last = map(signed, self.differences()[made - 1]) if made else [""] * self.shape[1]
        rows = zip(self.names, map(signed, self.weights()), last, strict=True)
        return [("feature", "weight", "last pair"), *rows]

    def sentence(self) -> str:
        """What the widget says: the last choice and its guess, the guesses so far, and how the fit agrees."""
        made = len(self.choices)
        if not made:
            return "No choice yet: all weights are 0, and the model has no guess."
        last = self.choices[-1]
        said = f"Pair {made}: the {('first', 'second')[last]} text was preferred. "
        for_last = _towards(self._before(made - 1), last)
        if made == 1:
            said += "There was nothing to guess from. "
        else:
            verdict = "no guess" if abs(for_last) < UNDECIDED else "right" if for_last > 0 else "wrong"
            said += f"Fitted to the {_count(made - 1, 'choice')} before, the model had given it "
            said += f"{_sigmoid(for_last):.2f}: {verdict}. "
        rewards = [_towards(self._before(k), choice) for k, choice in enumerate(self.choices)]
        guessed = [reward for reward in rewards if abs(reward) >= UNDECIDED]
        if guessed:
            right = sum(reward > 0 for reward in guessed)
            said += f"Of {_count(len(guessed), 'guess', 'es')} so far {right} {'was' if right == 1 else 'were'} right. "
        fitted = self.differences()[:made] @ self.weights()
        agrees = sum(_towards(x, choice) >= UNDECIDED for x, choice in zip(fitted, self.choices, strict=True))
        return f"{said}Fitted to all {made}, the model agrees with {agrees}." if made > 1 else said.rstrip()

    def _before(self, k: int) -> float:
        """The reward of pair k's first text less that of its second, fitted to the choices before it."""
        differences = self.differences()
        return float(differences[k] @ fit(differences[:k], self.choices[:k], self.penalty))

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"LabelView(pairs={self.shape[0]}, features={self.shape[1]})"


def fit(differences: object, choices: Sequence[int], penalty: float = 1.0) -> np.ndarray:
    """The weights of a linear Bradley-Terry model, by Newton's method.

    They make the smallest sum of -log sigmoid(w . d) over all choices, d the features of the preferred text less the
    other's, plus penalty / 2 times the sum of their squares. Paper: Bradley and Terry 1952.

    Args:
        differences: (n, F), the first text's features less the second's.
        choices: for each of these 0 where the first text was preferred, 1 where the second.
        penalty: from 0.01 to 100.

    Returns:
        (F,), all 0 without choices.

    Raises:
        ValueError: differences that are not (n, F), or not finite; choices that are not one for each, or not 0 or 1;
            a penalty outside its range.
    """
    differences = np.asarray(differences, dtype=float)
    if differences.ndim != 2 or not differences.shape[1] or len(differences) != len(choices):
        raise ValueError(
            f"differences must be (choices, features), got shape {differences.shape} for {len(choices)} choices"
        )
    if not np.isfinite(differences).all():
        raise ValueError("differences must be finite numbers")
    choices, penalty = _choices(choices, len(choices)), _penalty(penalty)
    towards = np.where(np.array(choices)[:, None] == 1, -differences, differences)  # (n, F): preferred less the other

    def loss(w: np.ndarray) -> float:
        return np.logaddexp(0, -towards @ w).sum() + penalty / 2 * (w @ w)

    w = np.zeros(differences.shape[1])
    for _ in range(STEPS):
        doubt = _sigmoid(-towards @ w)  # (n,): what is left for the other text
        slope = penalty * w - towards.T @ doubt
        if np.abs(slope).max() < FLAT:
            break
        bend = (towards.T * (doubt * (1 - doubt))) @ towards + penalty * np.eye(len(w))
        step = np.linalg.solve(bend, slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > FLAT:
            step = step / 2
        w = w - step
    return w


def signed(x: float) -> str:
    """A number as the widget writes it: with its sign, a true minus, and none before zero."""
    text = f"{abs(x):.2f}"
    return text if float(text) == 0 else f"{'−' if x < 0 else '+'}{text}"


def _towards(reward: float, choice: int) -> float:
    return -reward if choice else reward


def _sigmoid(x: float | np.ndarray) -> float | np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _count(n: int, what: str, more: str = "s") -> str:
    return f"{n} {what}{more * (n != 1)}"


def _penalty(penalty: float) -> float:
    if not LEAST <= penalty <= MOST:
        raise ValueError(f"penalty must be from {LEAST} to {MOST:g}, got {penalty}")
    return float(penalty)


def _choices(choices: Sequence[int], pairs: int) -> list[int]:
    if len(choices) > pairs:
        raise ValueError(f"{len(choices)} choices are more than the {pairs} pairs")
    for k, choice in enumerate(choices):
        if choice not in (0, 1):
            raise ValueError(f"choice {k} is {choice!r}: give 0 for the first text or 1 for the second")
    return [int(choice) for choice in choices]


def _check_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    if not 1 <= len(pairs) <= PAIRS:
        raise ValueError(f"{len(pairs)} pairs can not be shown: give 1 to {PAIRS}")
    for n, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pair {n} is {pair!r}: give two texts")
        if pair[0] == pair[1]:
            raise ValueError(f"the texts of pair {n} are equal, {pair[0][:20]!r}: neither can be preferred")
        longest = max(map(len, pair))
        if longest > LENGTH:
            raise ValueError(f"a text of pair {n} has {longest} characters: give at most {LENGTH:,}")


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise ValueError(f"give a list of names, not the text {names[:20]!r}")
    if not 1 <= len(names) <= FEATURES:
        raise ValueError(f"{len(names)} features can not be shown: give 1 to {FEATURES}")
    for n, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"name {n} is {name!r}: give the names as strings")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"the name {twice[0]!r} stands for {list(names).count(twice[0])} features")


def _check_features(features: np.ndarray, pairs: int, names: Sequence[str]) -> None:
    if features.shape != (pairs, 2, len(names)):
        raise ValueError(
            f"features of shape {features.shape} do not fit {pairs} pairs and {len(names)} names: they must be "
            f"(n_pairs, 2, n_features) = {(pairs, 2, len(names))}"
        )
    wrong = ~np.isfinite(features)
    if wrong.any():
        n, text, at = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"feature {names[at]!r} of text {text} of pair {n} is {features[n, text, at]}: give numbers")
