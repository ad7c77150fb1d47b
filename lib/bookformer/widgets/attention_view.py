"""Attention weights that answer to the mouse and the keyboard.

Chapter: Attention. The script `attention_view.js` draws; this class checks what it is given and packs it.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible

TOLERANCE = 1e-3  # how far rounding may take a weight past 0 or 1


class AttentionView(anywidget.AnyWidget):
    """Show attention weights by layer and head, as a heatmap or as lines between two columns of tokens.

    Args:
        weights: (L, H, T, S), each between 0 and 1; an array or a tensor. Row t is what query t gives to each key.
        query_tokens: the T tokens that ask.
        key_tokens: the S tokens that are asked; the query tokens when None.
        layer: the layer shown first.
        head: the head shown first: its number, "mean" over the heads, or "all" side by side.
        query: the query marked first.
        layer_names: what to call the layers, such as the training steps at which one layer was looked at; their
            numbers when None.
        view: "heatmap" or "lines".
        exact: send the weights as float32 and show four decimals. Otherwise they travel as 8-bit numbers, at most
            0.002 off, and two decimals are shown.

    Raises:
        ValueError: weights that are not (L, H, T, S), hold NaN, are outside 0 to 1 (scores, say), or do not
            agree with the number of tokens or names; a layer, head or query that is not there.
    """

    _esm = Path(__file__).with_name("attention_view.js")
    _css = Path(__file__).with_name("attention_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # the weights, row by row
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [L, H, T, S]
    exact = traitlets.Bool().tag(sync=True)
    query_tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)  # as shown: spaces and line ends visible
    key_tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layer_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    head = traitlets.Union([traitlets.Int(), traitlets.Enum(["mean", "all"])]).tag(sync=True)
    query = traitlets.Int().tag(sync=True)
    view = traitlets.Enum(["heatmap", "lines"]).tag(sync=True)

    def __init__(
        self,
        weights: object,
        query_tokens: Sequence[str],
        key_tokens: Sequence[str] | None = None,
        *,
        layer: int = 0,
        head: int | str = 0,
        query: int = 0,
        view: str = "heatmap",
        exact: bool = False,
        layer_names: Sequence[str] | None = None,
    ) -> None:
        weights = as_array(weights)
        key_tokens = query_tokens if key_tokens is None else key_tokens
        _check_weights(weights, len(query_tokens), len(key_tokens))
        if layer_names is not None and len(layer_names) != len(weights):
            raise ValueError(f"{len(layer_names)} names do not fit {len(weights)} layers")
        packed = weights if exact else np.rint(weights.clip(0, 1) * 255).astype(np.uint8)
        super().__init__(
            packed=packed.astype(packed.dtype.newbyteorder("<")).tobytes(),
            shape=list(weights.shape),
            exact=exact,
            query_tokens=[visible(token) for token in query_tokens],
            key_tokens=[visible(token) for token in key_tokens],
            layer_names=list(layer_names) if layer_names is not None else [str(i) for i in range(len(weights))],
            layer=layer,
            head=head,
            query=query,
            view=view,
        )

    @traitlets.validate("layer", "query", "head")
    def _exists(self, proposal: dict) -> int | str:
        name, value = proposal["trait"].name, proposal["value"]
        size = self.shape[{"layer": 0, "head": 1, "query": 2}[name]]
        if isinstance(value, int) and not 0 <= value < size:
            raise ValueError(f"{name} {value} is not there: they run from 0 to {size - 1}")
        return value

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        layers, heads, queries, keys = self.shape
        return f"AttentionView(layers={layers}, heads={heads}, queries={queries}, keys={keys})"


def _check_weights(weights: np.ndarray, queries: int, keys: int) -> None:
    if weights.ndim != 4 or 0 in weights.shape:
        raise ValueError(f"weights must be (layers, heads, queries, keys), none of them 0; got shape {weights.shape}")
    if weights.shape[2:] != (queries, keys):
        raise ValueError(
            f"weights for {weights.shape[2]} queries and {weights.shape[3]} keys do not fit "
            f"{queries} query tokens and {keys} key tokens"
        )
    wrong = ~((weights >= -TOLERANCE) & (weights <= 1 + TOLERANCE))  # NaN is wrong too
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"the weight at (layer, head, query, key) = {at} is {weights[at]:.4g}, outside 0 to 1: "
            "give the weights after the softmax, not the scores"
        )
