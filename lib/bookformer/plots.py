"""Figures in the book's one style. Each function takes arrays and tokens, never a model, and returns a Figure.

Used by every chapter. A figure is for where widgets don't show: print, GitHub, a page without scripts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from bookformer.tokenizers import visible

STYLE = Path(__file__).with_name("book.mplstyle")  # for a chapter's own figures: plt.style.use(plots.STYLE)


def as_array(numbers: object) -> np.ndarray:
    """An array or a tensor, of any precision and on any device, as a float32 array."""
    return np.asarray(numbers.detach().float().cpu() if hasattr(numbers, "detach") else numbers, dtype=np.float32)


def heatmap(
    weights: object, query_tokens: Sequence[str], key_tokens: Sequence[str], *, titles: Sequence[str] = ("",)
) -> Figure:
    """Attention weights as one heatmap, or several side by side with one scale.

    Args:
        weights: (T, S), or (panels, T, S); an array or a tensor.
        query_tokens: T tokens, from top to bottom.
        key_tokens: S tokens, from left to right.
        titles: one for each panel.

    Raises:
        ValueError: the sizes disagree, or a token that the figure's font can't draw.
    """
    panels = as_array(weights)
    panels = panels[None] if panels.ndim == 2 else panels
    wanted = (len(titles), len(query_tokens), len(key_tokens))
    if panels.shape != wanted:
        raise ValueError(f"weights of shape {panels.shape} do not fit (titles, query tokens, key tokens) = {wanted}")
    for token in (*query_tokens, *key_tokens):
        if any(ord(char) >= 0x2E80 for char in token):
            raise ValueError(f"figures have no Chinese font, so {token!r} can't be drawn: use a widget or a table")
    with plt.style.context(STYLE):
        side = max(1.8, 0.22 * len(key_tokens))
        size = (len(panels) * (side + 0.5) + 1, 0.22 * len(query_tokens) + 0.9)
        fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for ax, panel, title in zip(axes[0], panels, titles, strict=True):
            image = ax.imshow(panel, vmin=0, vmax=panels.max(), aspect="auto")
            ax.set_xticks(range(len(key_tokens)), [visible(token) for token in key_tokens])
            ax.set_yticks(range(len(query_tokens)), [visible(token) for token in query_tokens])
            ax.set(title=title, xlabel="key")
        axes[0][0].set_ylabel("query")
        fig.colorbar(image, ax=axes[0], label="weight")
        plt.close(fig)  # the caller shows it, once
    return fig


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
) -> Figure:
    """Several lines over the same x, told apart by colour and by dash.

    Raises:
        ValueError: a line has not one value for each x.
    """
    for label, y in lines.items():
        if len(y) != len(x):
            raise ValueError(f"the line {label!r} has {len(y)} values for {len(x)} places on the x axis")
    with plt.style.context(STYLE):
        fig, ax = plt.subplots(figsize=(5.5, 3.2))
        for (label, y), dash in zip(lines.items(), ["-", "--", "-.", ":"] * len(lines), strict=False):
            ax.plot(x, y, dash, label=label, marker="o" if len(x) < 12 else None)
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
        if xscale == "log":
            ax.set_xticks(x, [f"{value:g}" for value in x])
            ax.minorticks_off()
        ax.legend(**({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(lines) > 4 else {}))  # beside, if long
        plt.close(fig)
    return fig
