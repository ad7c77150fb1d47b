"""What NGramView takes, refuses and sends. How it computes and behaves in a page is tested in tests/book."""

import numpy as np
import pytest

from bookformer.ngram import NGramModel
from bookformer.widgets import NGramView
from bookformer.widgets.ngram_view import pack

TEXT = "she sells sea shells by the sea shore, and the shells she sells are sea shells, sure"


def unpacked(data):
    numbers, number, unit = [], 0, 1
    for byte in data:
        number += (byte & 127) * unit
        unit *= 128
        if byte < 128:
            numbers.append(number)
            number, unit = 0, 1
    return numbers


@pytest.mark.parametrize("numbers", [[], [0], [127, 128, 129], [0, 2**14 - 1, 2**14, 2**21, 5], [2**53 - 1, 1, 2**60]])
def test_numbers_travel_as_bytes_and_come_back(numbers):
    assert unpacked(pack(np.array(numbers, dtype=np.int64))) == numbers


def test_small_numbers_take_one_byte_each():
    assert pack(np.arange(128)) == bytes(range(128))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_n_gram_and_its_count_travel(order):
    view = NGramView(TEXT, order)
    steps, counts = np.array(unpacked(view.packed)).reshape(-1, 2).T
    codes = np.cumsum(steps)
    ids = codes[:, None] // len(view.alphabet) ** np.arange(order - 1, -1, -1) % len(view.alphabet)
    grams = {"".join(view.alphabet[i] for i in row): count for row, count in zip(ids, counts, strict=True)}
    windows = [TEXT[i : i + order] for i in range(len(TEXT) - order + 1)]
    assert grams == {window: windows.count(window) for window in windows}
    assert "".join(view.alphabet[i] for i in view.opening) == TEXT[: order - 1]
    assert view.alphabet == NGramModel(order).fit(TEXT).vocabulary


def test_the_repr_is_the_same_every_time():
    view = NGramView(TEXT, 3)
    assert repr(view) == f"NGramView(order=3, characters={len(set(TEXT))}, bytes={len(view.packed)})"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ab", 3), "a text of 2 tokens is too short for order 3"),
        (("ab", 0), "order must be a whole number of at least 1, got 0"),
        (("".join(map(chr, range(300, 364))), 9), r"64 characters are too many for order 9: .* over 2\^53"),
    ],
)
def test_what_can_not_be_counted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NGramView(*arguments)


def test_a_context_is_made_of_known_characters():
    with pytest.raises(ValueError, match="token 'X' at index 4 is not among the"):
        NGramView(TEXT, 3, context="she X")
    assert NGramView(TEXT, 3, context="she ").context == "she "


def test_as_many_n_grams_as_a_script_can_tell_apart():
    assert NGramView("".join(map(chr, range(300, 364))), 8).order == 8  # 64^8 = 2^48
