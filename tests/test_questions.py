"""Questions about scenes: the rule, kept on every question."""

import pytest
import torch

from bookformer.data import HELD_OUT, clean, load_works
from bookformer.questions import make_questions, speeches

SCENE = """
Enter two Clowns.

First Clown.
Is she to be buried--in Christian burial,
[Aside.] that wilfully seeks?

SECOND CLOWN.
I tell thee she is.
No name:
x
"""


@pytest.fixture(scope="module")
def plays():
    works = load_works()
    return {name: clean(works[name]) for name in HELD_OUT}


def test_speeches_by_hand():
    assert speeches(SCENE) == [
        ("First Clown", "Is she to be buried in Christian burial, that wilfully seeks?".split()),
        ("SECOND CLOWN", "I tell thee she is. No name: x".split()),
    ]


def test_the_rule(plays):
    asked = make_questions(plays, 400, torch.Generator().manual_seed(0))
    assert len(asked) == 400
    for question, words, answer in asked:
        quote = question.removeprefix("Who says ").removesuffix("?")
        text = " ".join(words)
        assert len(quote.split()) == 4
        assert len(words) <= 4 * (9 + 4)
        if answer is None:
            assert quote not in text
        else:
            assert answer[-1].endswith(":")
            before = text[: text.index(quote)].split()
            at = max(i for i in range(len(before)) if before[i : i + len(answer)] == answer)
            between = before[at + len(answer) :]
            assert len(between) <= 9 - 4  # of one speech, which has nine words
    without = sum(answer is None for _, _, answer in asked)
    assert 40 < without < 160


def test_questions_are_drawn(plays):
    first, second, third = (make_questions(plays, 20, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first == second
    assert first != third
    none = make_questions(plays, 20, torch.Generator().manual_seed(0), share_unanswerable=0)
    assert all(answer is not None for _, _, answer in none)
    short = make_questions(plays, 20, torch.Generator().manual_seed(0), longest=5)
    assert max(len(words) for _, words, _ in short) <= 4 * (5 + 4)


def test_texts_without_speeches():
    with pytest.raises(ValueError, match="none of the 1 plays has 300 speeches"):
        make_questions({"one": SCENE}, 1, torch.Generator())
