"""What a language model may write next, and how temperature, top-k and top-p change it.

Chapter: GPT. The script `sampling_view.js` computes and draws; this class checks what it is given, packs it, and
computes the same numbers for a page on which no script runs. Papers: Fan et al. 2018 (top-k), Holtzman et al. 2020
(top-p).
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible

CONTEXTS, TOKENS, ROWS = 8, 4096, 16  # at most; the script has the last number too
COLDEST, HOTTEST = 0.1, 3.0  # temperatures above 0
MOST_DRAWS = 10_000
ROUNDING = 1e-6  # a sum of probabilities this little below p has reached it; the script has this number too
NEVER = 1.0  # what travels in place of minus infinity: no other number is above 0


class SamplingView(anywidget.AnyWidget):
    """Move temperature, top-k and top-p, see what they leave of a model's distribution, and draw from it.

    In this order: the logits are divided by the temperature; the k likeliest tokens are kept; of these the smallest set
    whose probability, as a share of what top-k kept, reaches p; what is left is divided by its sum. Of equally likely
    tokens those with the lowest ids are kept. Temperature 0 leaves the likeliest token alone.

    Args:
        contexts: 1 to 8 texts, after each of which the model was asked for the next token.
        logits: what it said, (C, V), an array or a tensor; minus infinity for a token that can not come.
        tokens: the V tokens of the vocabulary, 2 to 4,096, in the order of their ids.
        temperature: 0, or from 0.1 to 3.
        top_k: how many tokens are kept, 1 to V; all when None.
        top_p: the probability to reach, above 0, at most 1; 1 keeps all.
        label: what the widget is called, for a screen reader.
        seed: what the draws start from, a whole number from 0 to 2^32 - 1.

    Raises:
        ValueError: logits that are not (C, V), that do not fit the contexts or the tokens, that hold nan or infinity,
            or a row without a token that can come; no or too many contexts or tokens, or such that are not strings; a
            setting outside its range.
    """

    _esm = Path(__file__).with_name("sampling_view.js")
    _css = Path(__file__).with_name("sampling_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # float32, row by row: the logits less the largest of their row
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [C, V]
    exact = traitlets.Bool(True).tag(sync=True)  # four bytes a logit
    contexts = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as they are
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as shown: spaces and line ends visible
    label = traitlets.Unicode().tag(sync=True)
    context = traitlets.Int().tag(sync=True)  # the place of the one shown
    temperature = traitlets.Float(1.0).tag(sync=True)
    top_k = traitlets.Int(None, allow_none=True).tag(sync=True)
    top_p = traitlets.Float(1.0).tag(sync=True)
    draws = traitlets.Int().tag(sync=True)  # how many tokens are drawn
    seed = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        contexts: Sequence[str],
        logits: object,
        tokens: Sequence[str],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        label: str = "The distribution of the next token",
        seed: int = 0,
    ) -> None:
        _check_texts("context", contexts, 1, CONTEXTS)
        _check_texts("token", tokens, 2, TOKENS)
        rows = as_array(logits)
        _check_logits(rows, len(contexts), len(tokens))
        below = rows - rows.max(axis=1, keepdims=True)  # (C, V), none above 0
        super().__init__(
            packed=np.where(np.isneginf(below), NEVER, below).astype("<f4").tobytes(),
            shape=list(rows.shape),
            contexts=list(contexts),
            tokens=[visible(token) for token in tokens],
            label=label,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )

    @traitlets.validate("context", "temperature", "top_k", "top_p", "draws", "seed")
    def _fits(self, proposal: dict) -> float | None:
        self._check_setting(proposal["trait"].name, proposal["value"])
        return proposal["value"]

    def _check_setting(self, name: str, value: float | None) -> None:
        contexts, size = self.shape
        if name == "context" and not 0 <= value < contexts:
            raise ValueError(f"context {value} is not there: they run from 0 to {contexts - 1}")
        if name == "temperature" and value != 0 and not COLDEST <= value <= HOTTEST:
            raise ValueError(
                f"temperature must be 0 (the likeliest token alone) or from {COLDEST} to {HOTTEST:g}, got {value}"
            )
        if name == "top_k" and value is not None and not 1 <= value <= size:
            raise ValueError(f"top_k must be from 1 to the {size} tokens of the vocabulary, or None, got {value}")
        if name == "top_p" and not 0 < value <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {value}")
        if name == "draws" and not 0 <= value <= MOST_DRAWS:
            raise ValueError(f"draws must be from 0 to {MOST_DRAWS}, got {value}")
        if name == "seed" and not 0 <= value < 2**32:
            raise ValueError(f"seed must be from 0 to 2^32 - 1, got {value}")

    def probabilities(
        self,
        context: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """The distribution that tokens are drawn from, by id.

        Args:
            context: the place of the context.
            temperature: the widget's own when None; so for the two others. A `top_k` of V keeps all.
            top_k: how many tokens are kept.
            top_p: the probability to reach.

        Returns:
            (V,), with 0 for what is cut.

        Raises:
            ValueError: there is no such context, or a setting is outside its range.
        """
        order, _, _, after = self._ranked(context, temperature, top_k, top_p)
        by_id = np.zeros(len(order))
        by_id[order[: len(after)]] = after
        return by_id

    def table(
        self,
        context: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        rows: int = ROWS,
    ) -> list[tuple[str, str, str]]:
        """The bars as text: the likeliest tokens, with their probability as the model has it and as it is drawn.

        Args:
            context: as in `probabilities`, as are the three settings.
            temperature: as there.
            top_k: as there.
            top_p: as there.
            rows: how many tokens to list, at least 1.

        Returns:
            A row of headings, one for each token, and one for all the others together; "cut" where top-k or top-p
            took a token away, "never" where the model did.

        Raises:
            ValueError: as `probabilities`; `rows` below 1.
        """
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        order, before, _, after = self._ranked(context, temperature, top_k, top_p)
        found = [("token", "before", "after")]
        for rank, i in enumerate(order[:rows]):
            lost = "cut" if before[rank] else "never"
            last = chance(after[rank]) if rank < len(after) else lost
            found.append((self.tokens[i], chance(before[rank]), last))
        if rows < len(order):
            others = f"{len(order) - rows:,} other{'s' * (len(order) - rows > 1)}"
            lost = "cut" if before[rows] else "never"
            left = chance(after[rows:].sum()) if len(after) > rows else lost
            found.append((others, chance(before[rows:].sum()), left))
        return found

    def sentence(
        self,
        context: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> str:
        """What the widget says about the distribution: the tokens left, their probability before, and the entropy.

        Args:
            context: as in `probabilities`, as are the three settings.
            temperature: as there.
            top_k: as there.
            top_p: as there.

        Raises:
            ValueError: as `probabilities`.
        """
        _, before, warmed, after = self._ranked(context, temperature, top_k, top_p)
        temperature, top_k, top_p = self._settings(temperature, top_k, top_p)
        left, (h0, h) = len(after), (_bits(before), _bits(after))
        said = f"Temperature {temperature:.4g}"
        said += "" if top_k is None else f", top-k {top_k:,}"
        said += "" if top_p == 1 else f", top-p {top_p:.4g}"
        it = "is left. It" if left == 1 else "are left. They"
        at_this = "" if temperature in (0, 1) else f", and {warmed[:left].sum():.3f} at this temperature"
        return (
            f"{said}: {left:,} of {self.shape[1]:,} tokens {it} had {before[:left].sum():.3f} of the probability "
            f"before{at_this}. Entropy {h:.3f} bits, as of {2**h:,.1f} equally likely tokens "
            f"(before: {h0:.3f} bits, {2**h0:,.1f} tokens)."
        )

    def _settings(
        self, temperature: float | None, top_k: int | None, top_p: float | None
    ) -> tuple[float, int | None, float]:
        return (
            self.temperature if temperature is None else temperature,
            self.top_k if top_k is None else top_k,
            self.top_p if top_p is None else top_p,
        )

    def _ranked(
        self, context: int, temperature: float | None, top_k: int | None, top_p: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The ids, the likeliest first; and so the probabilities before, at the temperature, and of what is left."""
        temperature, top_k, top_p = self._settings(temperature, top_k, top_p)
        settings = {"context": context, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        for name, value in settings.items():
            self._check_setting(name, value)
        logits = np.frombuffer(self.packed, "<f4").reshape(self.shape)[context].astype(float)
        logits[logits == NEVER] = -np.inf
        order = np.argsort(-logits, kind="stable")  # of equal ones the lowest id first
        logits = logits[order]
        before = _softmax(logits)
        warmed = _softmax(logits / temperature) if temperature else np.eye(1, len(order))[0]
        left = 1 if temperature == 0 else min(top_k or len(order), int(np.isfinite(logits).sum()))
        if top_p < 1:
            reached = warmed[:left].cumsum() / warmed[:left].sum() >= top_p - ROUNDING
            left = int(reached.argmax()) + 1
        return order, before, warmed, warmed[:left] / warmed[:left].sum()

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"SamplingView(contexts={self.shape[0]}, tokens={self.shape[1]})"


def chance(p: float) -> str:
    """A probability as the widget writes it."""
    if p >= 0.0005:
        return f"{p:.3f}"
    return "0" if p == 0 else "<0.0001" if p < 0.00005 else f"{p:.4f}"


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)  # the largest is 0
    return powers / powers.sum()


def _bits(p: np.ndarray) -> float:
    p = p[p > 0]
    return abs(float((p * np.log2(p)).sum()))


def _check_texts(what: str, texts: Sequence[str], least: int, most: int) -> None:
    if isinstance(texts, str):
        raise ValueError(f"give a list of {what}s, not the text {texts[:20]!r}")
    if not least <= len(texts) <= most:
        raise ValueError(f"{len(texts)} {what}s can not be shown: give {least} to {most:,}")
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what} {n} is {text!r}: give the {what}s as strings, not as ids")


def _check_logits(logits: np.ndarray, contexts: int, tokens: int) -> None:
    if logits.shape != (contexts, tokens):
        raise ValueError(
            f"logits of shape {logits.shape} do not fit {contexts} contexts and {tokens} tokens: "
            f"they must be (C, V) = {(contexts, tokens)}"
        )
    wrong = np.isnan(logits) | np.isposinf(logits)
    if wrong.any():
        c, v = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"the logit of token {v} after context {c} is {logits[c, v]}: give numbers, or minus infinity")
    silent = np.isneginf(logits).all(axis=1)
    if silent.any():
        raise ValueError(f"no token can come after context {int(silent.argmax())}: all its logits are minus infinity")
