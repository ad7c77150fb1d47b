"""Attention scores of two tokens that can be moved: what a position scheme makes of where they stand.

Chapter: Positions. The script `position_view.js` draws; this class checks what it is given and packs it.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible


class PositionView(anywidget.AnyWidget):
    """Show what one query token scores one key token, wherever the two stand, under several position schemes.

    Args:
        scores: (N, P, P), before the mask and the softmax; an array or a tensor. `scores[n, i, j]` is what scheme n
            gives when the query stands at place i and the key at place j.
        names: what to call the N schemes.
        query_token: the token that asks.
        key_token: the token that is asked.
        query: the place where the query stands first; the middle when None.
        key: the place where the key stands first; half as far from the left when None.
        others: the token that stands at every other place, told below the row; nothing is told when None.
        causal: a key after its query is hidden by the mask, as in a decoder: no score is shown there.

    Raises:
        ValueError: scores that are not (N, P, P), hold NaN or an infinity, or do not agree with the number of names;
            a name that stands for two schemes; a query or key at a place that is not there.
    """

    _esm = Path(__file__).with_name("position_view.js")
    _css = Path(__file__).with_name("position_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # the scores as float32, row by row
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [N, P, P]
    exact = traitlets.Bool(True).tag(sync=True)  # four bytes a score, nothing rounded
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as shown: spaces and line ends visible
    query_token = traitlets.Unicode().tag(sync=True)
    key_token = traitlets.Unicode().tag(sync=True)
    others = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    query = traitlets.Int().tag(sync=True)
    key = traitlets.Int().tag(sync=True)
    causal = traitlets.Bool().tag(sync=True)

    def __init__(
        self,
        scores: object,
        names: Sequence[str],
        *,
        query_token: str = "q",
        key_token: str = "k",
        query: int | None = None,
        key: int | None = None,
        others: str | None = None,
        causal: bool = True,
    ) -> None:
        scores = as_array(scores)
        _check_scores(scores, names)
        places = scores.shape[1]
        super().__init__(
            packed=scores.astype("<f4").tobytes(),
            shape=list(scores.shape),
            names=[visible(name) for name in names],
            query_token=visible(query_token),
            key_token=visible(key_token),
            others=None if others is None else visible(others),
            query=places // 2 if query is None else query,
            key=places // 4 if key is None else key,
            causal=causal,
        )

    @traitlets.validate("query", "key")
    def _exists(self, proposal: dict) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        if not 0 <= value < self.shape[1]:
            raise ValueError(f"{name} {value} is not there: the places run from 0 to {self.shape[1] - 1}")
        return value

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"PositionView(schemes={self.shape[0]}, places={self.shape[1]})"


def _check_scores(scores: np.ndarray, names: Sequence[str]) -> None:
    if scores.ndim != 3 or 0 in scores.shape or scores.shape[1] != scores.shape[2]:
        raise ValueError(f"scores must be (schemes, places, places), none of them 0; got shape {scores.shape}")
    if isinstance(names, str) or len(names) != len(scores):
        given = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ValueError(f"{given} can not name {len(scores)} schemes: give a list, one name for each")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"the name {twice[0]!r} stands for {list(names).count(twice[0])} schemes")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"the score at (scheme, query, key) = {at} is {scores[at]}: "
            "give the scores before the mask, every one of them a number"
        )
