"""What LossView takes, refuses and sends. How it behaves in a page is tested in tests/book."""

import math

import numpy as np
import pytest
import torch
import traitlets

from bookformer.widgets import LossView

TOKENS = ["to", " be", ",", "\n", "<b>"]
N = len(TOKENS)
NAN = float("nan")
LOSSES = {"n-gram": [NAN, 0.25, 1.5, 0.0, 7.0], "L STM": torch.tensor([2.0, 0.5, 1.0, 3.0, 0.125])}
GUESSES = {
    "L STM": [[], [(" be", math.exp(-0.5)), (" do", 0.3)], [("\n", 0.1), (";", 0.5), ("a", 0.2)], [], [("é", 1)]]
}


def view(**changes):
    return LossView(**{"tokens": TOKENS, "losses": LOSSES, "guesses": GUESSES} | changes)


def sent(view):
    return np.frombuffer(view.packed, "<f4").reshape(view.shape)


def guessed(view):
    """The guesses as the bytes have them: for each model and token a list of (word, 65535ths)."""
    models, size = view.shape
    fixed = models * size * 5 * 4
    assert len(view.guesses) % 4 == 0
    words = view.guesses[fixed:].decode().split("\n")
    slots = np.frombuffer(view.guesses[:fixed], "<u2").reshape(models, size, 5, 2)
    return [[[(words[w], int(p)) for p, w in row if w] for row in rows] for rows in slots]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_travel_unchanged_as_float32_and_a_missing_one_as_minus_one(dtype):
    numbers = torch.tensor([NAN, 0.0, 1.2345678, 7, 0.1], dtype=dtype)
    made = LossView(TOKENS, {"a": LOSSES["L STM"], "b": numbers})
    assert made.exact is True
    assert made.names == ["a", "b"]
    assert np.array_equal(sent(made)[0], LOSSES["L STM"].numpy())
    assert np.array_equal(sent(made)[1], [-1, *numbers[1:].float().tolist()])


def test_no_byte_is_a_nan_which_would_differ_from_itself():
    made = view()
    for data in (made.packed, made.guesses):
        assert np.isfinite(np.frombuffer(data, "<f4")).all()


def test_tensors_that_need_a_gradient_and_roundings_of_zero_are_taken():
    made = LossView("ab", {"a": torch.tensor([-1e-7, 1]).requires_grad_()})
    assert sent(made).tolist() == [[0, 1]]
    assert made.tokens == ["a", "b"]


def test_guesses_travel_sorted_with_their_probabilities():
    nobody, own = guessed(view())
    assert nobody == [[]] * N
    assert own[1] == [("␣be", round(math.exp(-0.5) * 65535)), ("␣do", round(0.3 * 65535))]
    assert own[2] == [(";", 32768), ("a", 13107), ("↵", 6554)]
    assert own[3] == []
    assert own[4] == [("é", 65535)]


def test_without_guesses_none_travel():
    assert view(guesses=None).guesses == b""


def test_guesses_take_four_bytes_each_and_a_word_is_sent_once():
    rows = [[(word, 0.2) for word in "abcde"]] * 600
    made = LossView("z" * 600, {"a": np.ones(600)}, {"a": rows})
    assert len(made.guesses) == 600 * 5 * 4 + 12
    assert len(made.packed) == 600 * 4


def test_tokens_stay_as_they_are_and_names_are_made_visible():
    made = view()
    assert made.tokens == TOKENS
    assert made.names == ["n-gram", "L␣STM"]


def test_it_opens_at_the_first_token_that_was_predicted():
    assert view().token == 0  # by the second model
    assert view(losses={"n-gram": LOSSES["n-gram"]}, guesses=None).token == 1
    assert view(losses={"a": [NAN] * N}, guesses=None).token == 0
    assert (view().shown, view().compared) == (0, -1)


def test_the_table_says_the_same_as_text():
    made = view()
    assert made.table(0, 2) == [
        ("token", "n-gram (nats)", "L␣STM (nats)"), ("to", "–", "2.000"), ("␣be", "0.250", "0.500"),
    ]  # fmt: skip
    assert [row[0] for row in made.table(3)[1:]] == ["↵", "<b>"]
    assert len(made.table()) == N + 1


def test_the_table_is_in_the_unit_shown():
    assert view(unit="bits").table(1, 2) == [
        ("token", "n-gram (bits)", "L␣STM (bits)"),
        ("␣be", f"{0.25 / math.log(2):.3f}", f"{0.5 / math.log(2):.3f}"),
    ]


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (3, 3), (-1, 2), (5, None)])
def test_there_is_no_table_of_what_is_not_there(start, stop):
    with pytest.raises(ValueError, match=f"there is no part from {start} to {stop or 5} of a text of 5 tokens"):
        view().table(start, stop)


def test_the_repr_is_the_same_every_time():
    assert repr(view()) == "LossView(models=2, tokens=5)"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "0 tokens can not be shown: give 1 to 600"),
        ("a" * 601, "601 tokens can not be shown"),
        (["a", 7], "token 1 is 7: give the tokens as strings"),
    ],
)
def test_what_is_no_text_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        LossView(tokens, {"a": np.ones(len(tokens))})


def test_six_hundred_tokens_and_five_models_are_taken():
    assert LossView("a" * 600, {name: np.ones(600) for name in "abcde"}).shape == [5, 600]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "names of 1 to 5 models, got 0 models"),
        ({name: [1] * N for name in "abcdef"}, "got 6 models"),
        ([[1] * N], "got list"),
        ({"a": [1] * N, "b": [1] * 4}, r"the losses of 'b' have shape \(4,\) and do not fit 5 tokens"),
        ({"a": np.ones((N, 1))}, r"have shape \(5, 1\)"),
        ({"a": [0, 1, -0.5, 1, 1]}, "the loss of 'a' at token 2 is -0.5: give nats, finite and at least 0"),
        ({"a": [0, 1, 1, math.inf, 1]}, "the loss of 'a' at token 3 is inf"),
    ],
)
def test_what_are_not_losses_is_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        LossView(TOKENS, losses)


def row_of(*pairs):
    return [[], [], list(pairs), [], []]


@pytest.mark.parametrize(
    ("guesses", "message"),
    [
        ({"GRU": row_of()}, r"guesses of 'GRU', .* no losses: there are \['n-gram', 'L STM'\]"),
        ({"n-gram": [[]]}, "1 lists of guesses of 'n-gram' do not fit 5 tokens"),
        ({"n-gram": row_of(*((c, 0.1) for c in "abcdef"))}, "6 guesses of 'n-gram' at token 2: give at most 5"),
        ({"n-gram": row_of(("a", 0.1), ("a", 0.2))}, r"guessed twice by 'n-gram' at token 2: \['a', 'a'\]"),
        ({"n-gram": row_of(("a", 1.5))}, "of 'n-gram' at token 2 are not probabilities: {'a': 1.5}"),
        ({"n-gram": row_of(("a", -0.5))}, "are not probabilities"),
        ({"n-gram": row_of(("a", NAN))}, "are not probabilities"),
        ({"n-gram": row_of(("a", 0.7), ("b", 0.7))}, "are not probabilities: {'a': 0.7, 'b': 0.7}"),
        ({"n-gram": row_of((",", 0.5))}, "give ',' a probability of 0.5, its loss 0.2231: are they one place off"),
        ({"n-gram": [[("to", 0.5)], *[[]] * 4]}, "give 'to' a probability of 0.5, its loss nan"),
    ],
)
def test_what_are_not_guesses_is_refused(guesses, message):
    with pytest.raises(ValueError, match=message):
        view(guesses=guesses)


def test_a_loss_is_in_nats_or_bits():
    assert view(unit="bits").unit == "bits"
    with pytest.raises(ValueError, match="unit must be 'nats' or 'bits', got 'bans'"):
        view(unit="bans")


@pytest.mark.parametrize(
    ("name", "value", "range"),
    [("shown", 2, "0 to 1"), ("shown", -1, "0 to 1"), ("compared", 2, "-1 to 1"), ("compared", -2, "-1 to 1"),
     ("token", 5, "0 to 4"), ("token", -1, "0 to 4")],
)  # fmt: skip
def test_what_is_not_there_can_not_be_shown(name, value, range):
    made = view()
    with pytest.raises(ValueError, match=f"{name} {value} is not there: they run from {range}"):
        setattr(made, name, value)


def test_a_token_is_chosen_by_a_whole_number():
    with pytest.raises(traitlets.TraitError):
        view().token = 1.5
