"""What MergeView takes, refuses and sends, and the steps in Python. What its script makes of it: tests/book."""

import json
import random
from itertools import pairwise

import pytest

from bookformer.bpe import BPETokenizer
from bookformer.widgets import MergeView
from bookformer.widgets.merge_view import merge_steps, token_text

TEXT = "The cat sat on the mat, and the other cat that they'd  met sat there. 12 1234\n我们在这里, 我们不在那里。"
BPE = BPETokenizer.train(TEXT * 2, 310)
EVERY = [bytes([b]) for b in range(256)]


def sent(view, n=0):
    """The merges that travel, read as the script reads them: two digits to base 92 for each id."""
    tokens = BPETokenizer([]).tokens
    digits = [ord(char) - 35 for char in view.packed[n]]
    assert all(0 <= digit < 92 for digit in digits)
    ids = [92 * high + low for high, low in zip(digits[::2], digits[1::2], strict=True)]
    merges = []
    for left, right in zip(ids[::2], ids[1::2], strict=True):
        merges.append((tokens[left], tokens[right]))
        if tokens[left] + tokens[right] not in tokens:
            tokens.append(tokens[left] + tokens[right])
    return merges


@pytest.mark.parametrize(
    "merges",
    [
        [],
        BPE.merges,
        [(b, b) for b in EVERY],
        [(b"b", b"c"), (b"a", b"bc"), (b"a", b"b"), (b"ab", b"c"), (b"abc", b"abc")],  # one token, made twice
    ],
)
def test_every_merge_travels(merges):
    view = MergeView({"one": merges, "two": merges[:1]}, ["a"])
    assert sent(view) == list(merges)
    assert sent(view, 1) == list(merges[:1])


def many():
    """4,096 merges whose tokens have bytes of every kind."""
    return [(a, b) for a in EVERY[:64] for b in EVERY[192:256]]


def test_the_largest_vocabulary_travels_and_takes_little_room():
    merges = [*many()[:-1], (many()[-2][0] + many()[-2][1], b"\x00")]
    assert sent(MergeView({"large": merges}, ["a"])) == merges
    assert len(json.dumps(MergeView({"large": merges[:2048]}, ["a"]).packed[0])) < 10_000  # escapes and all


def test_names_and_texts_travel_unchanged():
    view = MergeView({"a b": BPE.merges, "</script>": []}, [" \n<b>", "二"], label="Your text")
    assert view.names == ["a b", "</script>"]
    assert (view.texts, view.text, view.label) == ([" \n<b>", "二"], " \n<b>", "Your text")
    assert (view.vocabulary, view.step) == (0, None)


def test_the_repr_is_the_same_every_time():
    assert (
        repr(MergeView({"x": BPE.merges, "y": []}, ["a", "b"])) == f"MergeView(merges=[{len(BPE.merges)}, 0], texts=2)"
    )


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ({}, "there is room for 1 to 3 vocabularies, got 0"),
        ({name: [] for name in "abcd"}, "there is room for 1 to 3 vocabularies, got 4"),
        ({"big": [*many(), (b"z", b"z")]}, "the vocabulary 'big' has 4097 merges, more than 4096"),
        ({"ok": [], "x": [(b"a", b"b"), (b"ab", b"cd")]}, "'x': merge 1 joins b'ab' and b'cd', but no merge .* b'cd'"),
        ({"x": [(b"a", b"bc"), (b"b", b"c")]}, "'x': merge 0 joins b'a' and b'bc', but no merge before it makes b'bc'"),
        ({"x": [(b"a", b"")]}, "'x': merge 0 joins b'a' and b'', but no merge before it makes b''"),
        ({"x": [(b"a", b"b"), (b"a", b"b")]}, "'x': merge 1 joins b'a' and b'b', as merge 0 does"),
        ({"x": [("a", "b")]}, r"'x': merge 0 is no pair of bytes: \('a', 'b'\)"),
        ({"x": [(b"a", b"b", b"c")]}, "'x': merge 0 is no pair of bytes"),
        ({"x": [b"ab"]}, "'x': merge 0 is no pair of bytes: b'ab'"),
        ({"x": [7]}, "'x': merge 0 is no pair of bytes: 7"),
    ],
)
def test_what_are_no_merges_is_refused(merges, message):
    with pytest.raises(ValueError, match=message):
        MergeView(merges, ["a"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts must be a list of at least one text, got none"),
        ("ab", "texts must be a list of at least one text, got the text 'ab'"),
        (["a", "好" * 201], "a text has 201 characters, more than 200: '好好"),
        (["a", "ab\ud800"], r"'\\ud800' at index 2 of a text is half of a surrogate pair"),
    ],
)
def test_what_are_no_texts_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        MergeView({"x": []}, texts)


def test_the_longest_text_is_taken():
    assert MergeView({"x": []}, ["𝒜" * 200]).text == "𝒜" * 200


@pytest.mark.parametrize("place", [-1, 1])
def test_a_vocabulary_that_is_not_there_can_not_be_chosen(place):
    view = MergeView({"x": []}, ["a"])
    with pytest.raises(ValueError, match=f"vocabulary {place} is not there: they run from 0 to 0"):
        view.vocabulary = place


def test_the_steps_by_hand():
    merges = [(b"a", b"a"), (b" ", b"b"), (b"aa", b"a"), (b"a", b" ")]
    assert merge_steps(merges, "aaa baa") == [
        [b"a", b"a", b"a", b" ", b"b", b"a", b"a"],
        [b"aa", b"a", b" ", b"b", b"aa"],  # from the left, everywhere
        [b"aa", b"a", b" b", b"aa"],
        [b"aaa", b" b", b"aa"],  # a and the space stand in two pieces
    ]


def test_the_lowest_rank_goes_first_wherever_it_stands():
    merges = [(b"x", b"y"), (b"b", b"c"), (b"a", b"b")]
    assert merge_steps(merges, "abc xy")[1:] == [
        [b"a", b"b", b"c", b" ", b"xy"],
        [b"a", b"bc", b" ", b"xy"],
    ]


def test_a_token_made_in_two_ways_is_merged_on_by_either():
    merges = [(b"b", b"c"), (b"a", b"bc"), (b"abc", b"d"), (b"a", b"b"), (b"ab", b"c")]
    assert merge_steps(merges[3:], "abc")[-1] == [b"abc"]
    assert merge_steps(merges, "abcd")[-1] == [b"abcd"]


@pytest.mark.parametrize("seed", range(20))
def test_the_last_step_is_what_the_tokenizer_makes(seed):
    letters = random.Random(seed)
    text = "".join(letters.choices(TEXT + "é\u0301🙂\t\ufeff\x85", k=80))
    steps = merge_steps(BPE.merges, text)
    assert steps[0] == [bytes([b]) for b in text.encode()]
    assert steps[-1] == [BPE.tokens[i] for i in BPE.encode(text)]
    assert all(b"".join(tokens) == text.encode() for tokens in steps)
    assert all(len(after) < len(before) for before, after in pairwise(steps))


def test_a_text_of_nothing_has_no_tokens():
    assert merge_steps(BPE.merges, "") == [[]]


def test_half_of_a_surrogate_pair_has_no_steps():
    with pytest.raises(ValueError, match=r"'\\udfff' at index 1 of a text is half of a surrogate pair"):
        merge_steps(BPE.merges, "a\udfff")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" the", "␣the"),
        (b"\n\t", "↵⇥"),
        ("你".encode(), "你"),
        ("你".encode()[:2], "⟨E4⟩⟨BD⟩"),
        (b" " + "你".encode()[:1], "␣⟨E4⟩"),
        ("你".encode()[2:] + "好".encode(), "⟨A0⟩好"),
        ("\ufeff".encode(), "⟨FEFF⟩"),
        (b"\xed\xa0\x80", "⟨ED⟩⟨A0⟩⟨80⟩"),  # a surrogate is no character
        (b"\xff\x00", "⟨FF⟩⟨0⟩"),
    ],
)
def test_a_token_is_shown_with_its_marks_and_its_bytes(token, shown):
    assert token_text(token) == shown
