"""What PictureView takes, refuses, sends and tells. How it behaves in a page is tested in tests/book."""

import numpy as np
import pytest
import torch
import traitlets

from bookformer.widgets import PictureView

NAN, INF = float("nan"), float("inf")
RANDOM = torch.Generator().manual_seed(0)
PICTURES = torch.rand(3, 4, 6, generator=RANDOM)
WORDS = [["a", " seven"], ["two", "\n", "<b>"], ["x"]]


def given(words, patches=6, others=2):
    """Weights over patches and a few words, of which those over words are cut off."""
    return torch.rand(2, 4, words, patches + others, generator=RANDOM).softmax(-1)[..., :patches]


WEIGHTS = [given(len(caption)) for caption in WORDS]


def view(**changes):
    made = {"pictures": PICTURES, "words": WORDS, "weights": WEIGHTS, "patch": 2} | changes
    return PictureView(made.pop("pictures"), made.pop("words"), made.pop("weights"), **made)


def one(rows, **changes):
    """A view of one picture of 2 x 2 patches whose words give what the rows say, in one layer and head."""
    weights = np.array(rows, dtype=float)[None, None]
    words = [[f"w{n}" for n in range(len(rows))]]
    return PictureView(np.zeros((1, 2, 2)), words, [weights], patch=1, **changes)


def sent(made, name):
    return np.frombuffer(getattr(made, name), "<f4" if made.exact else np.uint8) / (1 if made.exact else 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pixels_and_weights_travel_as_8_bit_numbers(dtype):
    made = view(pictures=PICTURES.to(dtype), weights=[one.to(dtype) for one in WEIGHTS])
    assert made.shape == [3, 4, 6, 2, 2, 4]
    assert np.abs(sent(made, "pixels") - PICTURES.to(dtype).float().numpy().ravel()).max() <= 0.002
    flat = torch.cat([one.flatten() for one in WEIGHTS])
    assert len(made.packed) == len(flat)
    assert np.abs(sent(made, "packed") - flat.to(dtype).float().numpy()).max() <= 0.002


def test_exact_ones_travel_unchanged():
    made = view(exact=True)
    assert np.array_equal(sent(made, "pixels"), PICTURES.numpy().ravel())
    assert np.array_equal(sent(made, "packed"), np.concatenate([one.numpy().ravel() for one in WEIGHTS]))


def test_rounding_may_take_a_number_a_little_past_its_range():
    made = view(
        pictures=torch.tensor([[[-1e-4, 1 + 1e-4]]]), words=[["a"]], weights=[torch.ones(1, 1, 1, 2) / 2], patch=1
    )
    assert sent(made, "pixels").tolist() == [0, 1]


def test_tensors_that_need_a_gradient_are_taken():
    made = view(pictures=PICTURES.clone().requires_grad_(), weights=[one.clone().requires_grad_() for one in WEIGHTS])
    assert made.shape[0] == 3


def test_words_are_made_visible():
    assert view().words == [["a", "␣seven"], ["two", "↵", "<b>"], ["x"]]


def test_it_opens_on_the_first_word_and_the_mean_over_heads():
    made = view()
    assert (made.picture, made.word, made.layer, made.head, made.exact) == (0, 0, 0, "mean", False)


def test_each_row_is_found_again():
    for exact, off in ((False, 0.002), (True, 1e-6)):
        made = view(exact=exact)
        for n, weights in enumerate(WEIGHTS):
            for word in range(weights.shape[2]):
                for layer in range(2):
                    for head in range(4):
                        expected = weights[layer, head, word].reshape(2, 3)
                        found = made.attention(n, word, layer=layer, head=head)
                        assert np.abs(found - expected.numpy()).max() <= off
                    expected = weights[layer, :, word].mean(0).reshape(2, 3)
                    found = made.attention(n, word, layer=layer, head="mean")
                    assert np.abs(found - expected.numpy()).max() <= off


def test_patches_are_counted_row_by_row():
    weights = torch.zeros(1, 1, 1, 6)
    weights[..., 4] = 0.5
    made = view(pictures=PICTURES[:1], words=[["x"]], weights=[weights], exact=True)
    assert made.attention().tolist() == [[0, 0, 0], [0, 0.5, 0]]
    assert "is row 2, column 2, with 0.5000 of" in made.sentence()


def test_the_widgets_own_choice_holds_where_none_is_given():
    made = view(picture=1, word=2, layer=1, head=3)
    assert np.array_equal(made.attention(), made.attention(1, 2, layer=1, head=3))
    for other in ({"picture": 0, "word": 1}, {"word": 1}, {"layer": 0}, {"head": "mean"}):
        assert not np.array_equal(made.attention(), made.attention(**other))
    assert made.sentence().startswith("Picture 2, word 3, “<b>”, in layer 1, head 3: ")
    assert made.sentence(2).startswith("Picture 3, word 1, “x”, in layer 1, head 3: ")  # which has one word


def test_the_sentence_by_hand():
    made = one([[0.1, 0.2, 0.05, 0], [0, 0, 0, 0.9]])
    assert made.sentence() == (
        "Picture 1, word 1, “w0”, in layer 0, mean over the heads: the patch that it attends to most is row 1, column "
        "2, with 0.20 of its attention. All 4 patches together get 0.35; the other 0.65 goes to words, itself included."
    )
    assert made.sentence(word=1, head=0).startswith(
        "Picture 1, word 2, “w1”, in layer 0, head 0: the patch that it attends to most is row 2, column 2, with 0.90"
    )
    alone = view(pictures=PICTURES[:1, :2, :2], words=[["x"]], weights=[torch.full((1, 1, 1, 1), 0.25)], exact=True)
    assert alone.sentence().endswith("The one patch gets 0.2500; the other 0.7500 goes to words, itself included.")


def test_of_equal_patches_the_first_is_the_largest():
    made = one([[0.1, 0.3, 0.3, 0.3]])
    assert "is row 1, column 2, with 0.30" in made.sentence()
    assert [row[0] for row in made.table()[1:5]] == [
        "row 1, column 2", "row 2, column 1", "row 2, column 2", "row 1, column 1",
    ]  # fmt: skip


def test_the_table_by_hand():
    assert one([[0.1, 0.2, 0.05, 0]]).table() == [
        ("patch", "share"), ("row 1, column 2", "0.20"), ("row 1, column 1", "0.10"), ("row 2, column 1", "0.05"),
        ("row 2, column 2", "0.00"), ("words", "0.65"),
    ]  # fmt: skip
    weights = torch.tensor([0.3, 0.2, 0.1, 0.05, 0.04, 0.03]).reshape(1, 1, 1, 6)
    made = view(pictures=PICTURES[:1], words=[["x"]], weights=[weights], exact=True)
    assert made.table()[4:] == [
        ("row 2, column 1", "0.0500"), ("row 2, column 2", "0.0400"), ("1 other", "0.0300"), ("words", "0.2800"),
    ]  # fmt: skip
    weights = torch.full((1, 1, 1, 24), 1 / 24)
    made = view(pictures=PICTURES[:1], words=[["x"]], weights=[weights], patch=1, exact=True)
    assert made.table()[-2:] == [("19 others", "0.7917"), ("words", "0.0000")]


def test_the_sum_is_not_that_of_rounded_weights():
    """Each weight of 0.0019 rounds to 0 of 255, yet 64 of them are 0.12."""
    weights = torch.full((1, 1, 1, 64), 0.0019)
    made = PictureView(torch.zeros(1, 8, 8), [["x"]], [weights], patch=1)
    assert made.attention().max() == 0
    assert "All 64 patches together get 0.12; the other 0.88" in made.sentence()


def test_the_sum_of_the_patches_is_that_of_the_word():
    made = view(exact=True)
    for word in range(3):
        sums = WEIGHTS[1][1, :, word].sum(-1)
        assert f"together get {sums[2]:.4f};" in made.sentence(1, word, layer=1, head=2)
        assert f"together get {sums.mean():.4f};" in made.sentence(1, word, layer=1, head="mean")


def test_a_half_is_rounded_up_as_the_script_does():
    weights = torch.zeros(1, 8, 1, 6)
    weights[0, 0, 0, 0] = 1  # of eight heads the mean is 0.125
    made = view(pictures=PICTURES[:1], words=[["x"]], weights=[weights])
    assert "with 0.13 of its attention. All 6 patches together get 0.13; the other 0.88 goes" in made.sentence()


def test_the_repr_is_the_same_every_time():
    assert repr(view()) == "PictureView(pictures=3, patch=2, layers=2, heads=4)"


def test_the_most_is_taken():
    made = PictureView(np.ones((24, 20, 20)), [["x"] * 64] * 24, [np.zeros((1, 1, 64, 400))] * 24, patch=1)
    assert made.sentence(23, 63).startswith("Picture 24, word 64, ")
    assert PictureView(np.ones((1, 256, 256)), [["x"]], [np.zeros((1, 1, 1, 1))], patch=256).shape[1] == 256


def spoilt(tensor, at, value):
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": PICTURES[0]}, r"pictures must be \(n, H, W\), none of them 0; got shape \(4, 6\)"),
        ({"pictures": PICTURES[:0]}, r"none of them 0; got shape \(0, 4, 6\)"),
        ({"pictures": torch.zeros(25, 4, 6)}, "25 pictures of 4 x 6 can not be shown: give at most 24, of at most 256"),
        ({"pictures": torch.zeros(3, 4, 257)}, "3 pictures of 4 x 257 can not be shown"),
        ({"pictures": 16 * PICTURES}, r"the pixel at \(picture, row, column\) = .* give pictures from 0 \(black\)"),
        ({"pictures": spoilt(PICTURES, (1, 2, 3), NAN)}, r"\(picture, row, column\) = \(1, 2, 3\) is nan"),
        ({"pictures": spoilt(PICTURES, (1, 2, 3), -0.1)}, r"\(picture, row, column\) = \(1, 2, 3\) is -0.1"),
        ({"patch": 4}, "patch must be a whole number that divides pictures of 4 x 6, got 4"),
        ({"patch": 3}, "divides pictures of 4 x 6, got 3"),
        ({"patch": 0}, "got 0"),
        ({"patch": -2}, "got -2"),
        ({"patch": 2.0}, "got 2.0"),
        ({"patch": True}, "got True"),
        ({"pictures": torch.zeros(3, 21, 20), "patch": 1}, "patches of 1 pixels make 420 of a picture: at most 400"),
        ({"words": "abc"}, "'abc' can not stand below 3 pictures: give a list of words for each"),
        ({"words": WORDS[:2]}, "2 captions can not stand below 3 pictures"),
        ({"words": [*WORDS[:2], "x"]}, "the caption of picture 2 is the text 'x': give its words as a list"),
        ({"words": [*WORDS[:2], []]}, "the caption of picture 2 has 0 words: give 1 to 64"),
        ({"words": [*WORDS[:2], ["x"] * 65]}, "the caption of picture 2 has 65 words"),
        ({"words": [["a", 7], *WORDS[1:]]}, "word 1 of picture 0 is 7: give the words as strings, not as ids"),
        ({"words": [["a"], *WORDS[1:]]}, "picture 0 are for 2 words and 6 patches: they do not fit 1 words and 6"),
        ({"weights": WEIGHTS[:2]}, "2 arrays of weights do not fit 3 pictures: give one for each"),
        ({"weights": [*WEIGHTS[:2], WEIGHTS[2][0]]}, r"2 must be \(layers, heads, words, patches\), .* \(4, 1, 6\)"),
        ({"weights": [*WEIGHTS[:2], WEIGHTS[2][:0]]}, r"none of them 0; got shape \(0, 4, 1, 6\)"),
        ({"weights": [*WEIGHTS[:2], WEIGHTS[2][..., :4]]}, "of picture 2 are for 1 words and 4 patches: .* 6 patches"),
        ({"weights": [*WEIGHTS[:2], WEIGHTS[2][:1]]}, "picture 2 have 1 layers of 4 heads, those of picture 0 2 of 4"),
        ({"weights": [*WEIGHTS[:2], WEIGHTS[2][:, :3]]}, "picture 2 have 2 layers of 3 heads"),
        ({"weights": [WEIGHTS[0], spoilt(WEIGHTS[1], (1, 2, 0, 4), NAN), WEIGHTS[2]]},
         r"of picture 1 at \(layer, head, word, patch\) = \(1, 2, 0, 4\) is nan, outside 0 to 1: give the weights"),
        ({"weights": [WEIGHTS[0], spoilt(WEIGHTS[1], (1, 2, 0, 4), -2.5), WEIGHTS[2]]}, "is -2.5, outside 0 to 1"),
        ({"weights": [WEIGHTS[0], spoilt(WEIGHTS[1], (1, 2, 0, 4), 1.5), WEIGHTS[2]]}, "is 1.5, outside 0 to 1"),
        ({"weights": [WEIGHTS[0], spoilt(WEIGHTS[1], (1, 2, 0), 0.2), WEIGHTS[2]]},
         r"of picture 1 at \(layer, head, word\) = \(1, 2, 0\) are 1.2 together: a word has 1 to give"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        view(**changes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("picture", 3, "picture 3 is not there: they run from 0 to 2"),
        ("picture", -1, "picture -1 is not there"),
        ("word", 2, "word 2 of picture 0 is not there: they run from 0 to 1"),
        ("word", -1, "word -1 of picture 0 is not there"),
        ("layer", 2, "layer 2 is not there: they run from 0 to 1"),
        ("head", 4, "head 4 is not there: they run from 0 to 3"),
        ("head", -1, "head -1 is not there"),
    ],
)
def test_what_is_not_there_can_not_be_shown(name, value, message):
    with pytest.raises(ValueError, match=message):
        view(**{name: value})
    made = view()
    with pytest.raises(ValueError, match=message):
        setattr(made, name, value)
    for method in (made.attention, made.table, made.sentence):
        with pytest.raises(ValueError, match=message):
            method(**{name: value})


def test_a_kernel_can_set_what_is_there():
    made = view(picture=1)
    for name, value in {"word": 2, "layer": 1, "head": 3}.items():
        setattr(made, name, value)
    assert (made.word, made.layer, made.head) == (2, 1, 3)


@pytest.mark.parametrize("head", ["all", None, 1.5])
def test_a_head_is_a_number_or_mean(head):
    with pytest.raises(traitlets.TraitError):
        view(head=head)
