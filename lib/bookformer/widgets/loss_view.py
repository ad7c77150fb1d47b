"""A text, coloured by how surprised language models were at each token, with what they had expected instead.

Chapters: Neural language models, The pretraining pipeline, GPT. The script `loss_view.js` draws; this class checks
what it is given and packs it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible

MODELS, TOKENS, GUESSES = 5, 600, 5  # at most
TOLERANCE = 1e-6  # how far rounding may take a loss below 0
APART = 0.01  # how far a guess's probability may be from what the loss of the same token says
NONE = -1.0  # what travels in place of nan

Guesses = Sequence[Sequence[tuple[str, float]]]


class LossView(anywidget.AnyWidget):
    """Show each token of a text in the colour of its loss, under one model or as the difference of two.

    The losses travel as float32, a missing one as -1; guesses as four bytes each, two of them the probability in
    65535ths, and each word that was guessed once.

    Args:
        tokens: the text as 1 to 600 tokens, characters or larger.
        losses: for each of 1 to 5 models, by name, the cross-entropy of each token in nats, (N,); an array or a tensor.
            nan where a model predicted nothing, as for a first token.
        guesses: for each model, or some, what it thought likely at each token: N lists of at most 5 pairs of a token
            and its probability, in any order.
        label: what the text is, for a screen reader.
        unit: "nats" or "bits", in which the losses are shown.

    Raises:
        ValueError: no or too many tokens or models; a loss that is negative or infinite, or losses or guesses that are
            not one for each token; guesses that are not probabilities, or of a model without losses, or that disagree
            with the loss of their token, as happens when they stand one place off; a unit that is neither.
    """

    _esm = Path(__file__).with_name("loss_view.js")
    _css = Path(__file__).with_name("loss_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # the losses in nats as float32, model by model; -1 for none
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [models, tokens]
    exact = traitlets.Bool(True).tag(sync=True)  # four bytes a loss, nothing rounded
    guesses = traitlets.Bytes().tag(sync=True)  # as pack_guesses makes them; empty for none
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of the models, as shown
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as they are
    label = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Enum(["nats", "bits"]).tag(sync=True)
    shown = traitlets.Int().tag(sync=True)  # which model
    compared = traitlets.Int(-1).tag(sync=True)  # the model whose losses are taken off; -1 for none
    token = traitlets.Int().tag(sync=True)  # the token whose numbers are told

    def __init__(
        self,
        tokens: Sequence[str],
        losses: Mapping[str, object],
        guesses: Mapping[str, Guesses] | None = None,
        *,
        label: str = "Text, coloured by the loss of each token",
        unit: str = "nats",
    ) -> None:
        tokens = list(tokens)
        _check_tokens(tokens)
        table = _check_losses(losses, len(tokens))
        guesses = guesses or {}
        _check_guesses(guesses, tokens, dict(zip(losses, table, strict=True)))
        if unit not in ("nats", "bits"):
            raise ValueError(f"unit must be 'nats' or 'bits', got {unit!r}")
        predicted = ~np.isnan(table).all(axis=0)  # (N,)
        super().__init__(
            packed=np.where(np.isnan(table), NONE, table).astype("<f4").tobytes(),
            shape=list(table.shape),
            guesses=pack_guesses([guesses.get(name, [[]] * len(tokens)) for name in losses]) if guesses else b"",
            names=[visible(name) for name in losses],
            tokens=tokens,
            label=label,
            unit=unit,
            token=int(predicted.argmax()),
        )

    @traitlets.validate("shown", "compared", "token")
    def _exists(self, proposal: dict) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        first, size = -1 if name == "compared" else 0, self.shape[name == "token"]
        if not first <= value < size:
            raise ValueError(f"{name} {value} is not there: they run from {first} to {size - 1}")
        return value

    def table(self, start: int = 0, stop: int | None = None) -> list[tuple[str, ...]]:
        """The same as text, for a page that can't show the widget: rows of a token and its loss under each model.

        Args:
            start: the first token.
            stop: the token after the last; all that follow when None.

        Returns:
            A row of headings, then one for each token, all of them strings; "–" where nothing was predicted.

        Raises:
            ValueError: there is no such part of the text.
        """
        models, size = self.shape
        stop = size if stop is None else stop
        if not 0 <= start < stop <= size:
            raise ValueError(f"there is no part from {start} to {stop} of a text of {size} tokens")
        losses = np.frombuffer(self.packed, "<f4").reshape(models, size) / (1 if self.unit == "nats" else math.log(2))
        cells = [["–" if x < 0 else f"{x:.3f}" for x in losses[:, n]] for n in range(start, stop)]
        rows = [(visible(token), *row) for token, row in zip(self.tokens[start:stop], cells, strict=True)]
        return [("token", *(f"{name} ({self.unit})" for name in self.names)), *rows]

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"LossView(models={self.shape[0]}, tokens={self.shape[1]})"


def pack_guesses(guesses: Sequence[Guesses]) -> bytes:
    """The guesses of M models at N tokens as bytes, the likeliest first.

    M * N * 5 pairs of 16-bit numbers: a probability in 65535ths, and a word's number, 0 for no guess. Then the words
    as they are shown, in UTF-8, each after a line end; line ends fill up the last four bytes.
    """
    words = sorted({visible(word) for rows in guesses for row in rows for word, _ in row})
    numbers = {word: n for n, word in enumerate(words, 1)}
    slots = np.zeros((len(guesses), len(guesses[0]), GUESSES, 2), dtype="<u2")
    for m, rows in enumerate(guesses):
        for n, row in enumerate(rows):
            likeliest = sorted(row, key=lambda pair: -float(pair[1]))
            for k, (word, p) in enumerate(likeliest):
                slots[m, n, k] = round(min(float(p), 1) * 65535), numbers[visible(word)]
    text = "".join(f"\n{word}" for word in words).encode()
    return slots.tobytes() + text + b"\n" * (-len(text) % 4)


def _check_tokens(tokens: list) -> None:
    if not 1 <= len(tokens) <= TOKENS:
        raise ValueError(f"{len(tokens)} tokens can not be shown: give 1 to {TOKENS}")
    for n, token in enumerate(tokens):
        if not isinstance(token, str):
            raise ValueError(f"token {n} is {token!r}: give the tokens as strings, not as ids")


def _check_losses(losses: Mapping[str, object], size: int) -> np.ndarray:
    """As (M, N)."""
    if not isinstance(losses, Mapping) or not 1 <= len(losses) <= MODELS:
        given = f"{len(losses)} models" if isinstance(losses, Mapping) else type(losses).__name__
        raise ValueError(f"losses must be a dict from the names of 1 to {MODELS} models, got {given}")
    rows = {name: as_array(row) for name, row in losses.items()}
    for name, row in rows.items():
        if row.shape != (size,):
            raise ValueError(f"the losses of {name!r} have shape {row.shape} and do not fit {size} tokens")
        wrong = (row < -TOLERANCE) | np.isinf(row)
        if wrong.any():
            n = int(wrong.argmax())
            raise ValueError(f"the loss of {name!r} at token {n} is {row[n]:.4g}: give nats, finite and at least 0")
    return np.stack([row.clip(0) for row in rows.values()])


def _check_guesses(guesses: Mapping[str, Guesses], tokens: list[str], losses: dict[str, np.ndarray]) -> None:
    unknown = [name for name in guesses if name not in losses]
    if unknown:
        raise ValueError(f"guesses of {unknown[0]!r}, of which there are no losses: there are {list(losses)}")
    for name, rows in guesses.items():
        if len(rows) != len(tokens):
            raise ValueError(f"{len(rows)} lists of guesses of {name!r} do not fit {len(tokens)} tokens")
        for n, row in enumerate(rows):
            where = f"{name!r} at token {n}"
            if len(row) > GUESSES:
                raise ValueError(f"{len(row)} guesses of {where}: give at most {GUESSES}")
            chances = {word: float(p) for word, p in row}
            if len(chances) < len(row):
                raise ValueError(f"a word is guessed twice by {where}: {[word for word, _ in row]}")
            if not all(0 <= p <= 1 for p in chances.values()) or sum(chances.values()) > 1 + APART:
                raise ValueError(f"the guesses of {where} are not probabilities: {chances}")
            said, loss = chances.get(tokens[n]), losses[name][n]
            if said is not None and not abs(said - math.exp(-loss)) <= APART:
                raise ValueError(
                    f"the guesses of {where} give {tokens[n]!r} a probability of {said:.4g}, its loss "
                    f"{math.exp(-loss):.4g}: are they one place off?"
                )
