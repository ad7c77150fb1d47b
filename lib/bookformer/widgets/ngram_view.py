"""A count model of characters that answers while its reader types.

Chapter: Counting words: n-gram language models. This class counts a text and packs the counts; the script
`ngram_view.js` unpacks them and computes what `NGramModel` would.
"""

from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.ngram import NGramModel


class NGramView(anywidget.AnyWidget):
    """Type a context: see what each order of interpolated Kneser-Ney counted, and what it gives to each character.

    The page holds every n-gram of the text with its count, and not the text. The script computes from them the numbers
    of `NGramModel(order)`, exactly. A capital letter that the text has not is read as its small one.

    Args:
        text: what to count, character by character.
        order: n, the length of the longest window that is counted.
        context: what stands in the box at first.

    Raises:
        ValueError: as `NGramModel` does; an alphabet too large for the order, so that the script's numbers would not
            tell all n-grams apart; a context with a character that the text has not.
    """

    _esm = Path(__file__).with_name("ngram_view.js")
    _css = Path(__file__).with_name("ngram_view.css")

    packed = traitlets.Bytes().tag(sync=True)  # for each n-gram, sorted: how far from the last one, and its count
    alphabet = traitlets.List(traitlets.Unicode()).tag(sync=True)
    order = traitlets.Int().tag(sync=True)
    opening = traitlets.List(traitlets.Int()).tag(sync=True)  # the ids of the text's first n - 1 characters
    context = traitlets.Unicode().tag(sync=True)

    def __init__(self, text: str, order: int = 4, *, context: str = "") -> None:
        model = NGramModel(order).fit(text)
        if model.vocab_size**order > 2**53:
            raise ValueError(
                f"{model.vocab_size} characters are too many for order {order}: there are over 2^53 n-grams"
            )
        model.probabilities(context)  # which refuses an unknown character
        grams, counts = model.grams()
        codes = grams @ model.vocab_size ** np.arange(order - 1, -1, -1)  # (G,), rising
        steps = np.diff(codes, prepend=0)
        super().__init__(
            packed=pack(np.stack([steps, counts], axis=1).ravel()),
            alphabet=model.vocabulary,
            order=order,
            opening=[model.vocabulary.index(char) for char in text[: order - 1]],
            context=context,
        )

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        return f"NGramView(order={self.order}, characters={len(self.alphabet)}, bytes={len(self.packed)})"


def pack(numbers: np.ndarray) -> bytes:
    """Whole numbers of 0 and more as bytes: seven bits in each, lowest first; the eighth says that more follow."""
    lengths = np.ones(len(numbers), dtype=np.int64)
    for bits in range(7, 63, 7):
        lengths += numbers >= 1 << bits
    out = np.zeros(lengths.sum(), dtype=np.uint8)
    starts = np.cumsum(lengths) - lengths
    for i in range(lengths.max(initial=0)):
        some = lengths > i
        more = np.where(lengths[some] > i + 1, 128, 0)
        out[starts[some] + i] = (numbers[some] >> 7 * i & 127) | more
    return out.tobytes()
