"""Sides that share nothing, and a few items of each class: by law and by hand."""

from collections import Counter

import pytest
import torch

from bookformer.splits import draw_labelled, labelled_batches, plain_text, require_no_shared_texts, split_groups


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_whole_groups_stay_together():
    groups = [i % 37 for i in range(500)]
    sides = split_groups(groups, [0.5, 0.2, 0.3], generator())
    assert sorted(i for side in sides for i in side) == list(range(500))
    assert all(side == sorted(side) for side in sides)
    on = [{groups[i] for i in side} for side in sides]
    assert [len(names) for names in on] == [18, 8, 11]  # ends at 18.5, 25.9 and 37, the half rounded to the even
    assert not on[0] & on[1] | on[0] & on[2] | on[1] & on[2]


def test_a_split_is_drawn():
    groups = list(range(100))
    assert split_groups(groups, [0.5, 0.5], generator(1)) == split_groups(groups, [0.5, 0.5], generator(1))
    assert split_groups(groups, [0.5, 0.5], generator(1)) != split_groups(groups, [0.5, 0.5], generator(2))
    assert split_groups(groups, [0.5, 0.5], generator(1))[0] != list(range(50))


@pytest.mark.parametrize("shares", [[], [0.5, 0.4], [1.2, -0.2], [1.0, 0.0]])
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ValueError, match="shares must be positive and make 1 together, got"):
        split_groups([1, 2, 3], shares, generator())


def test_too_few_groups():
    with pytest.raises(ValueError, match="2 groups are too few to be split in parts of"):
        split_groups([1, 1, 1, 2, 2], [0.4, 0.3, 0.3], generator())


def test_a_split_that_shares_texts():
    require_no_shared_texts(train=["A b."], validation=["a c"], test=["b a"])
    with pytest.raises(ValueError, match="train and test share 1 texts, such as 'A  b, c'"):
        require_no_shared_texts(train=["x", "A  b, c"], validation=["y"], test=["a B c."])
    with pytest.raises(ValueError, match="validation and test share 2 texts"):
        require_no_shared_texts(train=["x"], validation=["y", "z"], test=["z", "y"])
    with pytest.raises(ValueError, match="share 1 texts, such as '很好'"):
        require_no_shared_texts(train=["很好!"[:2]], test=["很好。"])


def test_texts_of_signs_alone_are_not_all_the_same():
    require_no_shared_texts(train=["!"], test=["?"])
    with pytest.raises(ValueError, match="share 1 texts"):
        require_no_shared_texts(train=["!"], test=["! "])


def test_as_many_of_each_class():
    labels = [0, 1, 2, 0, 1, 2, 2, 2, 1, 0, 0]
    drawn = draw_labelled(labels, 6, 3, generator())
    assert len(set(drawn)) == 6
    assert sorted(labels[i] for i in drawn) == [0, 0, 1, 1, 2, 2]
    assert drawn == draw_labelled(labels, 6, 3, generator())
    assert {tuple(draw_labelled(labels, 3, 3, generator(s))) for s in range(200)} == {
        (a, b, c) for a in (0, 3, 9, 10) for b in (1, 4, 8) for c in (2, 5, 6, 7)
    }


@pytest.mark.parametrize(
    ("labels", "n", "classes", "message"),
    [
        ([0, 1, 2], 2, 2, "label 2 is outside the 2 classes: they run from 0 to 1"),
        ([0, -1, 1], 2, 2, "label -1 is outside the 2 classes"),
        ([1, 1, 1], 2, 2, r"all 3 items are of one class \(\[1\]\)"),
        ([], 2, 2, "all 0 items are of one class"),
        ([0, 1], 3, 2, r"n \(3\) must be a multiple of the number of classes \(2\)"),
        ([0, 1], 0, 2, r"n \(0\) must be a multiple"),
        ([0, 0, 1], 4, 2, "class 1 has 1 items, fewer than 2"),
        ([0, 0, 1, 1], 3, 3, "class 2 has 0 items, fewer than 1"),
    ],
)
def test_labels_that_make_no_sense(labels, n, classes, message):
    with pytest.raises(ValueError, match=message):
        draw_labelled(labels, n, classes, generator())


def test_batches_of_labelled_texts():
    texts, labels = [[i] * (i + 1) for i in range(5)], torch.tensor([0, 1, 2, 3, 4])
    stream = labelled_batches(texts, labels, 9, 2, generator())
    batches = [next(stream) for _ in range(10)]
    for ids, real, y in batches:
        assert ids.shape == real.shape == (2, int(y.max()) + 1)
        assert (ids == torch.where(real, y[:, None], 9)).all()
        assert (real.sum(dim=1) == y + 1).all()
    seen = [label for _, _, y in batches for label in y.tolist()]
    assert all(Counter(seen[at : at + 5]) == Counter(range(5)) for at in (0, 5, 10, 15))  # four rounds
    assert len({tuple(seen[at : at + 5]) for at in (0, 5, 10, 15)}) > 1
    assert next(labelled_batches(texts, labels, 9, 12, generator()))[2].shape == (12,)  # more than there are
    for few in ([], texts[:3]):
        with pytest.raises(ValueError, match=rf"a label for each text, and a text: {len(few)}, 5"):
            labelled_batches(few, labels, 9, 2, generator())


def test_texts_in_a_form_to_be_compared():
    assert plain_text("  The CAT,\tsat! ") == "the cat sat"
    assert plain_text("１．很好。") == plain_text("1 很好")
    assert plain_text("ab") != plain_text("a b")
    assert plain_text("?!") == "?!"
