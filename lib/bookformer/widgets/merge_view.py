"""Byte-pair encoding that merges what its reader types, one merge after the other.

Chapter: Tokens. This class checks the merges and packs them; the script `merge_view.js` cuts the text, merges it and
draws it, as `BPETokenizer` would. `merge_steps` does the same in Python, for a page on which no script runs.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

import anywidget
import traitlets

from bookformer.bpe import PIECES, BPETokenizer
from bookformer.tokenizers import visible

LONGEST = 200  # characters of a text; the script has this number too
MOST_VOCABULARIES, MOST_MERGES = 3, 4096


class MergeView(anywidget.AnyWidget):
    """Type a text: see it as bytes, and how the merges of a vocabulary join them, step by step, into tokens.

    Args:
        merges: for each name of a vocabulary its merges, pairs of tokens as bytes such as (b" t", b"he"), in order;
            3 vocabularies at most, of 4,096 merges at most.
        texts: examples to choose from, of 200 characters at most; the first stands in the box at first.
        label: what the box is called.

    Raises:
        ValueError: no vocabulary, no text, or more than there is room for; a merge that is no pair of bytes, joins
            what neither is a byte nor was merged before, or stands there twice; a text with half of a surrogate pair.
    """

    _esm = Path(__file__).with_name("merge_view.js")
    _css = Path(__file__).with_name("merge_view.css")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of the vocabularies
    packed = traitlets.List(traitlets.Unicode()).tag(sync=True)  # for each vocabulary its merges, four characters each
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    vocabulary = traitlets.Int().tag(sync=True)  # the place of its name
    step = traitlets.Int(None, allow_none=True).tag(sync=True)  # how many merges are done; all of them when None

    def __init__(
        self, merges: Mapping[str, Sequence[tuple[bytes, bytes]]], texts: Sequence[str], *, label: str = "Text"
    ) -> None:
        if not 1 <= len(merges) <= MOST_VOCABULARIES:
            raise ValueError(f"there is room for 1 to {MOST_VOCABULARIES} vocabularies, got {len(merges)}")
        if isinstance(texts, str) or not texts:
            given = f"the text {texts!r}" if texts else "none"
            raise ValueError(f"texts must be a list of at least one text, got {given}")
        for text in texts:
            _check_text(text)
            if len(text) > LONGEST:
                raise ValueError(f"a text has {len(text)} characters, more than {LONGEST}: {text[:20]!r}...")
        super().__init__(
            names=list(merges),
            packed=[_pack(name, pairs) for name, pairs in merges.items()],
            texts=list(texts),
            label=label,
            text=texts[0],
        )

    @traitlets.validate("vocabulary")
    def _exists(self, proposal: dict) -> int:
        value, last = proposal["value"], len(self.names) - 1
        if not 0 <= value <= last:
            raise ValueError(f"vocabulary {value} is not there: they run from 0 to {last}")
        return value

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        sizes = [len(packed) // 4 for packed in self.packed]
        return f"MergeView(merges={sizes}, texts={len(self.texts)})"


def merge_steps(merges: Sequence[tuple[bytes, bytes]], text: str) -> list[list[bytes]]:
    """The tokens of a text before any merge, and after each: first its bytes, last what `BPETokenizer` makes of it.

    A step joins one pair, everywhere in the text: of those that have a merge, the one whose merge was learnt first.

    Raises:
        ValueError: the text holds half of a surrogate pair, which UTF-8 can't write.
    """
    _check_text(text)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    pieces = [[bytes([b]) for b in piece[0].encode()] for piece in PIECES.finditer(text)]
    steps = [list(chain.from_iterable(pieces))]
    while found := {pair for piece in pieces for pair in pairwise(piece) if pair in ranks}:
        first = min(found, key=ranks.__getitem__)
        pieces = [_join(piece, first) for piece in pieces]
        steps.append(list(chain.from_iterable(pieces)))
    return steps


def token_text(token: bytes) -> str:
    """A token as the widget shows it: as `visible` does, and bytes that are only part of a character in hex."""
    decoded = token.decode("utf-8", "surrogateescape")
    return "".join(f"⟨{ord(c) - 0xDC00:X}⟩" if "\udc80" <= c <= "\udcff" else visible(c) for c in decoded)


def _join(tokens: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    joined, at = [], 0
    while at < len(tokens):
        size = 2 if tuple(tokens[at : at + 2]) == pair else 1
        joined.append(b"".join(tokens[at : at + size]))
        at += size
    return joined


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{half!r} at index {error.start} of a text is half of a surrogate pair: UTF-8 can't write it"
        ) from None


def _pack(name: str, merges: Sequence[tuple[bytes, bytes]]) -> str:
    """For each merge the ids of its two parts, each as two digits to base 92, the characters from # to ~.

    A page writes any other character as an escape of six, which would make a Chinese vocabulary three times as large.
    """
    if len(merges) > MOST_MERGES:
        raise ValueError(f"the vocabulary {name!r} has {len(merges)} merges, more than {MOST_MERGES}")
    for at, pair in enumerate(merges):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(part, bytes) for part in pair):
            raise ValueError(f"the vocabulary {name!r}: merge {at} is no pair of bytes: {pair!r}")
    try:
        tokens = BPETokenizer(merges).tokens
    except ValueError as error:
        raise ValueError(f"the vocabulary {name!r}: {error}") from None
    ids = {token: i for i, token in enumerate(tokens)}
    return "".join(chr(35 + digit) for pair in merges for part in pair for digit in divmod(ids[part], 92))
