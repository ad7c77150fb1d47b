"""The digits are scikit-learn's; scenes hold what they say they hold, and draw all that can be drawn."""

import pytest
import torch
from torch.testing import assert_close

from bookformer.scenes import Scenes, load_digits, make_scenes, patches_of, varied

PAIRS = [(7, 2), (2, 7), (3, 9)]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits as theirs

    pictures, labels = digits
    assert torch.equal(pictures * 16, torch.tensor(theirs().images, dtype=torch.float32))
    assert labels.tolist() == theirs().target.tolist()


def test_no_picture_of_a_digit_is_there_twice(digits):
    assert len(digits[0].flatten(1).unique(dim=0)) == 1797


@pytest.fixture(scope="module")
def scenes(digits):
    return make_scenes(*digits, 600, torch.Generator().manual_seed(3), pairs=PAIRS, size=24, step=4)


def test_a_scene_is_its_two_digits_and_nothing_else(digits, scenes):
    pictures, labels = digits
    for i in range(50):
        left = scenes.pictures[i].clone()
        for (row, column), image, digit in zip(scenes.corners[i], scenes.images[i], scenes.digits[i], strict=True):
            square = left[row : row + 8, column : column + 8]
            assert torch.equal(square, pictures[image])
            assert labels[image] == digit
            square.zero_()
        assert not left.any()


def test_relations_are_what_the_corners_say(scenes):
    down, right = (scenes.corners[:, 1] - scenes.corners[:, 0]).unbind(-1)
    left_of = scenes.relations == 0
    assert ((right >= 8) & (right - down.abs() >= 4))[left_of].all()
    assert ((down >= 8) & (down - right.abs() >= 4))[~left_of].all()
    assert scenes.corners.min() == 0
    assert scenes.corners.max() == 16
    assert (scenes.corners % 4 == 0).all()


def test_all_places_that_fit_are_drawn():
    pictures, labels = torch.ones(10, 8, 8), torch.arange(10)
    drawn = make_scenes(pictures, labels, 3000, torch.Generator().manual_seed(0), pairs=PAIRS, size=20, step=4)
    along = range(0, 13, 4)
    fit_left = {
        (a, b, c, d)
        for a in along
        for b in along
        for c in along
        for d in along
        if d - b >= 8 and d - b - abs(c - a) >= 4
    }
    found = {tuple(c.flatten().tolist()) for c, r in zip(drawn.corners, drawn.relations, strict=True) if r == 0}
    assert found == fit_left


def test_pairs_relations_and_pictures_are_drawn_evenly(digits, scenes):
    assert {tuple(pair) for pair in scenes.digits.tolist()} == set(PAIRS)
    counts = [(scenes.digits == torch.tensor(pair)).all(1).sum().item() for pair in PAIRS]
    assert all(150 < n < 250 for n in counts)
    assert 240 < scenes.relations.sum() < 360
    sevens = scenes.images[scenes.digits == 7]
    assert 150 < len(sevens.unique()) <= (digits[1] == 7).sum()


def test_scenes_are_the_generators(digits):
    def draw(seed):
        return make_scenes(*digits, 20, torch.Generator().manual_seed(seed), pairs=PAIRS)

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.equal(draw(1).pictures, draw(2).pictures)


def test_captions_by_hand():
    nothing = torch.zeros(2, 2)
    scenes = Scenes(nothing, torch.tensor([[7, 2], [3, 9]]), torch.tensor([0, 1]), nothing, nothing)
    assert scenes.captions() == ["a seven left of a two", "a three above a nine"]


def test_the_patches_of_a_digit_by_hand():
    corners = torch.tensor([[[0, 0], [1, 9]]])
    nothing = torch.zeros(1, 12, 20)
    found = patches_of(Scenes(nothing, nothing, nothing, corners, nothing), 4)  # 3 rows of 5 patches
    assert found[0, 0].nonzero()[:, 0].tolist() == [0, 1, 5, 6]
    assert found[0, 1].nonzero()[:, 0].tolist() == [2, 3, 7, 8]  # rows 1 to 8, columns 9 to 16


def test_a_digit_has_four_patches_wherever_it_stands(digits):
    scenes = make_scenes(*digits, 200, torch.Generator().manual_seed(3), pairs=PAIRS, step=1)
    found = patches_of(scenes, 4)
    assert (found.sum(-1) == 4).all()
    assert not found.all(1).any()  # none belongs to both


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "a scene to draw and a pair to draw from, got 0 and 3"),
        ({"pairs": []}, "got 1 and 0"),
        ({"pairs": [(1, 10)]}, "no picture of a digit 10 among 1797"),
        ({"pairs": [(-1, 1)]}, "no picture of a digit -1"),
        ({"size": 15}, "a scene of 15 pixels with a step of 4 has no place for two digits of 8 pixels"),
        ({"step": 0}, "a step of 0"),
        ({"labels": torch.arange(3)}, r"digits must be \(M, 8, 8\) with M labels, got \(1797, 8, 8\) and \(3,\)"),
        ({"pictures": torch.rand(1797, 8, 9)}, r"got \(1797, 8, 9\) and \(1797,\)"),
    ],
)
def test_scenes_that_can_not_be_drawn_are_refused(digits, changes, message):
    settings = {"pictures": digits[0], "labels": digits[1], "n": 1, "pairs": PAIRS} | changes
    with pytest.raises(ValueError, match=message):
        make_scenes(**settings, generator=torch.Generator())


def test_a_digit_that_none_wrote_is_named(digits):
    few = digits[1] != 9
    with pytest.raises(ValueError, match="no picture of a digit 9"):
        make_scenes(digits[0][few], digits[1][few], 1, torch.Generator(), pairs=PAIRS)


@pytest.mark.parametrize("patch", [0, 5])
def test_patches_of_digits_must_divide_the_scene(scenes, patch):
    with pytest.raises(ValueError, match=f"patches of {patch} by {patch} pixels do not divide pictures of 24 by 24"):
        patches_of(scenes, patch)


# The same digits, drawn otherwise


def redraw(pictures, times=1, seed=0, **sizes):
    return varied(pictures, times, torch.Generator().manual_seed(seed), **sizes)


def test_nothing_changed_is_the_same_picture(digits):
    some = digits[0][:20]
    assert_close(redraw(some, 3, turn=0, stretch=0, shift=0), some.repeat(3, 1, 1), atol=1e-6, rtol=0)


def test_a_shift_moves_by_pixels():
    picture = torch.zeros(1, 8, 8)
    picture[0, 4, 4] = 1
    moved = torch.cat([redraw(picture, 200, turn=0, stretch=0, shift=1.0)])
    there = torch.arange(8.0)
    rows, columns = (moved.sum(2) @ there), (moved.sum(1) @ there)
    for middle in (rows, columns):
        assert 2.99 < middle.min() < 3.1
        assert 4.9 < middle.max() < 5.01
    assert_close(moved.sum((1, 2)), torch.ones(200))


def test_a_turn_keeps_the_middle_and_moves_the_edge():
    picture = torch.zeros(1, 8, 8)
    picture[0, :, 3:5] = 1  # upright, through the middle
    turned = redraw(picture, 200, turn=0.5, stretch=0, shift=0)
    slope = (turned[:, 1] - turned[:, 6]) @ torch.arange(8.0) / 2  # columns from row 6 up to row 1
    assert -3.2 < slope.min() < -2.3  # five rows up, 5 tan(0.5) columns aside, or 2.73
    assert 2.3 < slope.max() < 3.2
    lying = redraw(picture.mT, 200, turn=0.5, stretch=0, shift=0)  # by the same angles
    lean = (lying[:, :, 1] - lying[:, :, 6]) @ torch.arange(8.0) / 2
    assert torch.allclose(lean, -slope, atol=1e-4)  # what turns one way lets the two lean to opposite sides


def test_a_stretch_keeps_the_middle_and_changes_the_width():
    picture = torch.zeros(1, 8, 8)
    picture[0, :, 2:6] = 1
    ink = redraw(picture, 200, turn=0, stretch=0.5, shift=0)[:, 4].sum(1)
    assert 2.4 < ink.min() < 3  # about 4 / 1.5
    assert 6 < ink.max() < 8.1


def test_each_time_is_another_and_all_stay_pictures(digits):
    some = digits[0][:50]
    drawn = redraw(some, 2)
    assert drawn.shape == (100, 8, 8)
    assert not torch.allclose(drawn[:50], drawn[50:])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert ((drawn[:50] - some) ** 2).mean() < ((drawn[1:50] - some[:-1]) ** 2).mean() / 4  # each near its own
    assert torch.equal(drawn, redraw(some, 2))
    assert not torch.equal(drawn, redraw(some, 2, seed=1))


@pytest.mark.parametrize(("shape", "times"), [((3, 8, 8), 0), ((3, 8, 7), 1), ((0, 8, 8), 1)])
def test_nothing_to_draw_is_refused(shape, times):
    with pytest.raises(ValueError, match=r"there must be pictures \(M, 8, 8\) and times, got"):
        redraw(torch.zeros(shape), times)
