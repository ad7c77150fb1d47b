"""Which patches of a picture each word of its caption attends to, laid over the picture itself.

Chapter: Pictures as prompts. The script `picture_view.js` draws; this class checks what it is given, packs it, and
tells the same in words for a page on which no script runs.
"""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bookformer.plots import as_array
from bookformer.tokenizers import visible

PICTURES, SIDE, PATCHES, WORDS = 24, 256, 400, 64  # at most
ROWS = 5  # patches in the table; the script has this number too
TOLERANCE = 1e-3  # how far rounding may take a pixel or a weight past 0 or 1
TOGETHER = 1e-2  # how far above 1 it may take the weights of one word


class PictureView(anywidget.AnyWidget):
    """Show what each word of a caption attends to in its picture, by layer and head.

    A patch is outlined the thicker, the more the word attends to it; the largest shares are printed as well. What a
    word does not give to the patches goes to words, itself included, and is told.

    Args:
        pictures: (n, H, W), each pixel from 0 (black) to 1 (white); an array or a tensor. 1 to 24 pictures of at most
            256 pixels a side.
        words: the caption of each picture, as 1 to 64 strings.
        weights: for each picture (n_layers, n_heads, n_words, n_patches): row t is what word t gives to each patch.
            Patches count from the top left, row by row. A row sums to at most 1.
        patch: the side of a patch in pixels; it divides H and W, into at most 400 patches.
        picture: the place of the picture shown first.
        word: the place of the word shown first.
        layer: the layer shown first.
        head: the head shown first: its number, or "mean" over the heads.
        label: what the widget is called, for a screen reader.
        exact: send pixels and weights as float32 and show four decimals. Otherwise they travel as 8-bit numbers, at
            most 0.002 off, and two decimals are shown; of patches that this makes equal the first counts as the
            largest.

    Raises:
        ValueError: pictures that are not (n, H, W), too many or too large, or with a pixel outside 0 to 1; a patch
            that does not divide them; captions or weights that are not one for each picture, or do not fit each
            other; weights outside 0 to 1, or above 1 together (scores, say); a picture, word, layer or head that is
            not there.
    """

    _esm = Path(__file__).with_name("picture_view.js")
    _css = Path(__file__).with_name("picture_view.css")

    pixels = traitlets.Bytes().tag(sync=True)  # the pictures, row by row
    packed = traitlets.Bytes().tag(sync=True)  # the weights, picture by picture, row by row
    sums = traitlets.Bytes().tag(sync=True)  # of each of these rows: many rounded weights would add up their errors
    exact = traitlets.Bool().tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # [pictures, H, W, patch, layers, heads]
    words = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)  # as shown: spaces visible
    label = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Int().tag(sync=True)
    word = traitlets.Int().tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    head = traitlets.Union([traitlets.Int(), traitlets.Enum(["mean"])]).tag(sync=True)

    def __init__(
        self,
        pictures: object,
        words: Sequence[Sequence[str]],
        weights: Sequence[object],
        *,
        patch: int,
        picture: int = 0,
        word: int = 0,
        layer: int = 0,
        head: int | str = "mean",
        label: str = "What each word of a caption attends to in its picture",
        exact: bool = False,
    ) -> None:
        pictures = as_array(pictures)
        _check_pictures(pictures, patch)
        _check_words(words, len(pictures))
        weights = [as_array(one) for one in weights]
        _check_weights(weights, words, (pictures.shape[1] // patch) * (pictures.shape[2] // patch))

        def pack(numbers: np.ndarray) -> bytes:
            numbers = numbers.clip(0, 1)
            return (numbers.astype("<f4") if exact else np.rint(numbers * 255).astype(np.uint8)).tobytes()

        super().__init__(
            pixels=pack(pictures),
            packed=b"".join(pack(one) for one in weights),
            sums=b"".join(pack(one.sum(axis=-1)) for one in weights),
            exact=exact,
            shape=[*pictures.shape, patch, *weights[0].shape[:2]],
            words=[[visible(word) for word in caption] for caption in words],
            label=label,
            picture=picture,
            word=word,
            layer=layer,
            head=head,
        )

    @traitlets.validate("picture", "word", "layer", "head")
    def _exists(self, proposal: dict) -> int | str:
        name, value = proposal["trait"].name, proposal["value"]
        self._check_place(name, value, self.picture)
        return value

    def _check_place(self, name: str, value: int | str, picture: int) -> None:
        if value == "mean" and name == "head":
            return
        count, layers, heads = self.shape[0], *self.shape[4:]
        if name == "word":
            self._check_place("picture", picture, picture)  # traits are validated in no certain order
            size, of = len(self.words[picture]), f" of picture {picture}"
        else:
            size, of = {"picture": count, "layer": layers, "head": heads}[name], ""
        if not 0 <= value < size:
            raise ValueError(f"{name} {value}{of} is not there: they run from 0 to {size - 1}")

    def attention(
        self,
        picture: int | None = None,
        word: int | None = None,
        *,
        layer: int | None = None,
        head: int | str | None = None,
    ) -> np.ndarray:
        """What one word gives to each patch, as the widget has it.

        Args:
            picture: the place of the picture; the widget's own when None, as are the three others.
            word: the place of the word.
            layer: the layer.
            head: the head, or "mean".

        Returns:
            (rows, columns).

        Raises:
            ValueError: there is no such picture, word, layer or head.
        """
        return self._row(self._place(picture, word, layer, head))[0]

    def table(
        self,
        picture: int | None = None,
        word: int | None = None,
        *,
        layer: int | None = None,
        head: int | str | None = None,
    ) -> list[tuple[str, str]]:
        """The five largest patches as text, then all others together, then what goes to words.

        Args:
            picture: as in `attention`, as are the three others.
            word: as there.
            layer: as there.
            head: as there.

        Raises:
            ValueError: as `attention`.
        """
        grid, share = self._row(self._place(picture, word, layer, head))
        order = np.argsort(-grid.ravel(), kind="stable")  # of equal ones the first first
        rows = [(self._where(i, grid), self._number(grid.ravel()[i])) for i in order[:ROWS]]
        rest = order[ROWS:]
        if len(rest):
            left = share - sum(grid.ravel()[i] for i in order[:ROWS])
            rows.append((f"{len(rest)} other{'s' * (len(rest) > 1)}", self._number(left)))
        return [("patch", "share"), *rows, ("words", self._number(1 - share))]

    def sentence(
        self,
        picture: int | None = None,
        word: int | None = None,
        *,
        layer: int | None = None,
        head: int | str | None = None,
    ) -> str:
        """What the widget says: the largest patch, its share, and how much goes to all patches and to words.

        Args:
            picture: as in `attention`, as are the three others.
            word: as there.
            layer: as there.
            head: as there.

        Raises:
            ValueError: as `attention`.
        """
        picture, word, layer, head = place = self._place(picture, word, layer, head)
        grid, share = self._row(place)
        largest = int(grid.argmax())
        heads = "mean over the heads" if head == "mean" else f"head {head}"
        patches = "The one patch gets" if grid.size == 1 else f"All {grid.size} patches together get"
        return (
            f"Picture {picture + 1}, word {word + 1}, “{self.words[picture][word]}”, in layer {layer}, {heads}: the "
            f"patch that it attends to most is {self._where(largest, grid)}, with {self._number(grid.max())} of its "
            f"attention. {patches} {self._number(share)}; the other {self._number(1 - share)} goes to words, itself "
            "included."
        )

    def _place(
        self, picture: int | None, word: int | None, layer: int | None, head: int | str | None
    ) -> tuple[int, int, int, int | str]:
        picture = self.picture if picture is None else picture
        self._check_place("picture", picture, picture)
        word = min(self.word, len(self.words[picture]) - 1) if word is None else word
        layer = self.layer if layer is None else layer
        head = self.head if head is None else head
        for name, value in {"word": word, "layer": layer, "head": head}.items():
            self._check_place(name, value, picture)
        return picture, word, layer, head

    def _row(self, place: tuple[int, int, int, int | str]) -> tuple[np.ndarray, float]:
        """The weights (rows, columns) of one word, and their sum; of whole numbers, so that no rounding is added."""
        picture, word, layer, head = place
        _, height, width, patch, layers, heads = self.shape
        rows, columns = height // patch, width // patch
        before = layers * heads * sum(map(len, self.words[:picture]))  # rows of the pictures before
        own = layers * heads * len(self.words[picture])
        kind, unit = ("<f4", 1) if self.exact else (np.uint8, 255)

        def chosen(data: bytes, size: int) -> np.ndarray:  # (heads, size)
            numbers = np.frombuffer(data, kind)[before * size : (before + own) * size].astype(float)
            of_layer = numbers.reshape(layers, heads, -1, size)[layer, :, word]
            return of_layer if head == "mean" else of_layer[head : head + 1]

        grid, share = chosen(self.packed, rows * columns), chosen(self.sums, 1)
        parts = unit * len(grid)
        return grid.sum(axis=0).reshape(rows, columns) / parts, float(share.sum()) / parts

    def _where(self, patch: int, grid: np.ndarray) -> str:
        row, column = divmod(int(patch), grid.shape[1])
        return f"row {row + 1}, column {column + 1}"

    def _number(self, share: float) -> str:  # a half is rounded up, as the script does
        digits = Decimal("0.0001" if self.exact else "0.01")
        return str(Decimal(max(float(share), 0.0)).quantize(digits, ROUND_HALF_UP))

    def __repr__(self) -> str:  # without an address, so that a stored output stays the same
        count, _, _, patch, layers, heads = self.shape
        return f"PictureView(pictures={count}, patch={patch}, layers={layers}, heads={heads})"


def _check_pictures(pictures: np.ndarray, patch: int) -> None:
    if pictures.ndim != 3 or 0 in pictures.shape:
        raise ValueError(f"pictures must be (n, H, W), none of them 0; got shape {pictures.shape}")
    count, height, width = pictures.shape
    if count > PICTURES or max(height, width) > SIDE:
        raise ValueError(
            f"{count} pictures of {height} x {width} can not be shown: give at most {PICTURES}, of at most {SIDE} "
            "pixels a side"
        )
    wrong = ~((pictures >= -TOLERANCE) & (pictures <= 1 + TOLERANCE))  # NaN is wrong too
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"the pixel at (picture, row, column) = {at} is {pictures[at]:.4g}: give pictures from 0 (black) to 1"
        )
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch must be a whole number that divides pictures of {height} x {width}, got {patch!r}")
    patches = (height // patch) * (width // patch)
    if patches > PATCHES:
        raise ValueError(f"patches of {patch} pixels make {patches} of a picture: at most {PATCHES} can be shown")


def _check_words(words: Sequence[Sequence[str]], count: int) -> None:
    if isinstance(words, str) or len(words) != count:
        given = repr(words[:20]) if isinstance(words, str) else f"{len(words)} captions"
        raise ValueError(f"{given} can not stand below {count} pictures: give a list of words for each")
    for n, caption in enumerate(words):
        if isinstance(caption, str):
            raise ValueError(f"the caption of picture {n} is the text {caption[:20]!r}: give its words as a list")
        if not 1 <= len(caption) <= WORDS:
            raise ValueError(f"the caption of picture {n} has {len(caption)} words: give 1 to {WORDS}")
        for t, word in enumerate(caption):
            if not isinstance(word, str):
                raise ValueError(f"word {t} of picture {n} is {word!r}: give the words as strings, not as ids")


def _check_weights(weights: list[np.ndarray], words: Sequence[Sequence[str]], patches: int) -> None:
    if len(weights) != len(words):
        raise ValueError(f"{len(weights)} arrays of weights do not fit {len(words)} pictures: give one for each")
    for n, (one, caption) in enumerate(zip(weights, words, strict=True)):
        if one.ndim != 4 or 0 in one.shape:
            raise ValueError(
                f"the weights of picture {n} must be (layers, heads, words, patches), none of them 0; got shape "
                f"{one.shape}"
            )
        if one.shape[2:] != (len(caption), patches):
            raise ValueError(
                f"the weights of picture {n} are for {one.shape[2]} words and {one.shape[3]} patches: they do not fit "
                f"{len(caption)} words and {patches} patches"
            )
        if one.shape[:2] != weights[0].shape[:2]:
            raise ValueError(
                f"the weights of picture {n} have {one.shape[0]} layers of {one.shape[1]} heads, those of picture 0 "
                f"{weights[0].shape[0]} of {weights[0].shape[1]}"
            )
        wrong = ~((one >= -TOLERANCE) & (one <= 1 + TOLERANCE))  # NaN is wrong too
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"the weight of picture {n} at (layer, head, word, patch) = {at} is {one[at]:.4g}, outside 0 to 1: "
                "give the weights after the softmax, not the scores"
            )
        sums = one.sum(axis=-1)
        if sums.max() > 1 + TOGETHER:
            at = tuple(int(i) for i in np.unravel_index(sums.argmax(), sums.shape))
            raise ValueError(
                f"the weights of picture {n} at (layer, head, word) = {at} are {sums.max():.4g} together: a word has 1 "
                "to give"
            )
