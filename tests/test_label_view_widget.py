"""What LabelView takes, refuses, sends and fits. How it behaves in a page is tested in tests/book."""

import math

import numpy as np
import pytest
import torch
import traitlets
from sklearn.linear_model import LogisticRegression

from bookformer.widgets import LabelView
from bookformer.widgets.label_view import fit

INF, NAN = math.inf, math.nan
PAIRS = [("I thank you.", "Away!"), ("O joy!", "O woe!"), ("a", "b"), ("<b>", "\n")]
FEATURES = np.array([[[4, 1], [2, 1]], [[0, 1], [2, 2]], [[3, 5], [3, 2]], [[1, 1], [5, 2]]], dtype=float)
NAMES = ["words", "kind\nwords"]


def view(**changes):
    made = {"pairs": PAIRS, "features": FEATURES, "names": NAMES} | changes
    return LabelView(made.pop("pairs"), made.pop("features"), made.pop("names"), **made)


def some(choices, size, seed=0):
    """Differences, and choices that follow hidden weights."""
    random = np.random.default_rng(seed)
    differences = random.normal(size=(choices, size))
    p = 1 / (1 + np.exp(-differences @ random.normal(size=size)))
    return differences, [int(x) for x in random.uniform(size=choices) > p]


def test_differences_travel_as_float32_in_units_of_their_root_mean_square():
    made = view()
    differences = FEATURES[:, 0] - FEATURES[:, 1]
    assert differences.tolist() == [[2, 0], [-2, -1], [0, 3], [-4, -1]]
    scales = [math.sqrt(24 / 4), math.sqrt(11 / 4)]
    assert made.exact is True
    assert made.shape == [4, 2]
    assert np.frombuffer(made.packed, "<f4").reshape(4, 2) == pytest.approx(differences / scales)
    assert made.differences() == pytest.approx(differences / scales)
    assert np.square(made.differences()).mean(axis=0) == pytest.approx([1, 1])


def test_neither_the_order_of_a_pair_nor_the_unit_of_a_feature_changes_the_guesses():
    choices = [0, 1, 1, 0]
    swapped = view(features=FEATURES[:, ::-1], pairs=[pair[::-1] for pair in PAIRS], choices=[1 - c for c in choices])
    assert swapped.weights() == pytest.approx(view(choices=choices).weights())
    assert 1 - swapped.guesses() == pytest.approx(view(choices=choices).guesses())
    other = view(features=FEATURES * [1000, 0.01] + [5, -7], choices=choices)
    assert other.weights() == pytest.approx(view(choices=choices).weights(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_taken(dtype):
    made = view(features=torch.tensor(FEATURES, dtype=dtype).requires_grad_())
    assert made.packed == view().packed


def test_texts_stay_as_they_are_and_names_keep_their_spaces():
    made = view(names=["two words", "\n"])
    assert made.pairs == [list(pair) for pair in PAIRS]
    assert made.names == ["two words", "↵"]


def test_it_opens_without_a_choice():
    made = view()
    assert (made.choices, made.penalty) == ([], 1.0)
    assert made.weights().tolist() == [0, 0]
    assert made.guesses().tolist() == []
    assert made.sentence() == "No choice yet: all weights are 0, and the model has no guess."
    assert made.table() == [("feature", "weight", "last pair"), ("words", "0.00", ""), ("kind↵words", "0.00", "")]


@pytest.mark.parametrize(("choices", "size"), [(1, 3), (5, 2), (40, 4), (100, 12)])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_fit_is_that_of_a_logistic_regression_without_a_constant(choices, size, penalty):
    differences, chosen = some(choices, size)
    reference = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-12, solver="newton-cholesky")
    if len(set(chosen)) == 1:  # it wants both: the same pair, turned round, says the same
        reference.fit(np.concatenate([differences, -differences]), [*chosen, *(1 - c for c in chosen)],
                      sample_weight=[0.5] * 2 * choices)  # fmt: skip
    else:
        reference.fit(differences, chosen)
    assert fit(differences, chosen, penalty) == pytest.approx(-reference.coef_[0], abs=1e-6)


def test_at_the_fit_the_slope_is_none():
    """Also where all choices agree, so that only the penalty keeps the weights from growing for ever."""
    for choices in ([0] * 30, [1] * 30, some(30, 3)[1]):
        differences = np.abs(some(30, 3)[0]) * 20
        w = torch.tensor(fit(differences, choices, 0.01), requires_grad=True)
        signs = 1 - 2 * torch.tensor(choices)
        loss = -torch.nn.functional.logsigmoid(signs * (torch.tensor(differences) @ w)).sum() + 0.005 * (w * w).sum()
        loss.backward()
        assert w.grad.abs().max().item() < 1e-7


def test_a_step_that_goes_too_far_is_halved():
    """Here Newton's whole steps jump to and fro for ever."""
    differences = np.array([[-57.0, -8.0], [7.0, -17.0], [164.0, -172.0]])
    w = fit(differences, [0, 0, 0], 0.01)
    slope = 0.01 * w - differences.T @ (1 / (1 + np.exp(differences @ w)))
    assert np.abs(slope).max() < 1e-7


def test_known_weights_are_found_again():
    random = np.random.default_rng(0)
    true = np.array([2.0, -1.0, 0.0])
    differences = random.normal(size=(20_000, 3))
    choices = (random.uniform(size=20_000) > 1 / (1 + np.exp(-differences @ true))).astype(int)
    assert fit(differences, choices.tolist(), 1.0) == pytest.approx(true, abs=0.1)


def test_one_choice_by_hand():
    """One feature, one choice: w solves penalty * w = d * sigmoid(-w d), here with d = 1 and w = 0.5."""
    penalty = 1 / (1 + math.exp(0.5)) / 0.5
    assert fit([[1.0]], [0], penalty).tolist() == pytest.approx([0.5])
    assert fit([[1.0]], [1], penalty).tolist() == pytest.approx([-0.5])
    assert fit([[-1.0]], [0], penalty).tolist() == pytest.approx([-0.5])


def test_a_stronger_penalty_holds_the_weights_nearer_to_0():
    sizes = [np.abs(view(choices=[0, 0, 1, 1], penalty=penalty).weights()).sum() for penalty in (0.1, 1, 10)]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2] > 0


def test_a_guess_knows_only_the_choices_before_it():
    choices = [0, 1, 1, 0]
    made, differences = view(choices=choices, penalty=0.3), view().differences()
    expected = [1 / (1 + math.exp(-differences[k] @ fit(differences[:k], choices[:k], 0.3))) for k in range(4)]
    assert made.guesses() == pytest.approx(expected)
    assert made.guesses()[0] == 0.5
    assert made.guesses()[:3] == pytest.approx(view(choices=choices[:3], penalty=0.3).guesses())


def test_the_weights_are_those_of_all_choices():
    choices = [0, 1, 1, 0]
    assert view(choices=choices).weights() == pytest.approx(fit(view().differences(), choices))
    assert view(choices=choices[:2]).weights() == pytest.approx(fit(view().differences()[:2], choices[:2]))


SINGLE = {"pairs": [("a", "b")] * 5, "features": [[[1], [0]], [[1], [0]], [[0], [1]], [[1], [1]], [[1], [0]]],
          "names": ["length"]}  # fmt: skip


def test_the_sentence_by_hand():
    """One feature, which the first text has more of, but in pair 2 less, in pair 3 as much."""
    p = [view(**SINGLE, choices=[0] * k).guesses() for k in range(1, 6)]
    assert view(**SINGLE, choices=[1]).sentence() == (
        "Pair 1: the second text was preferred. There was nothing to guess from."
    )
    assert view(**SINGLE, choices=[0, 0]).sentence() == (
        f"Pair 2: the first text was preferred. Fitted to the 1 choice before, the model had given it {p[1][1]:.2f}: "
        "right. Of 1 guess so far 1 was right. Fitted to all 2, the model agrees with 2."
    )
    assert view(**SINGLE, choices=[0, 0, 0]).sentence() == (
        f"Pair 3: the first text was preferred. Fitted to the 2 choices before, the model had given it {p[2][2]:.2f}: "
        "wrong. Of 2 guesses so far 1 was right. Fitted to all 3, the model agrees with 2."
    )
    assert f"had given it {1 - p[1][1]:.2f}: wrong. " in view(**SINGLE, choices=[0, 1]).sentence()
    assert view(**SINGLE, choices=[0, 0, 1, 0]).sentence() == (
        "Pair 4: the first text was preferred. Fitted to the 3 choices before, the model had given it 0.50: no guess. "
        "Of 2 guesses so far 2 were right. Fitted to all 4, the model agrees with 3."
    )
    assert p[1][1] > 0.5 > p[2][2]
    assert (
        view(**SINGLE, choices=[1, 0])
        .sentence()
        .endswith("Of 1 guess so far 0 were right. Fitted to all 2, the model agrees with 0.")
    )  # the two cancel out


def test_the_table_is_the_weights_as_text():
    made = view(choices=[0, 1, 0])
    weights = made.weights()
    assert weights.min() > 0.005
    assert made.table() == [
        ("feature", "weight", "last pair"),
        ("words", f"+{weights[0]:.2f}", "0.00"),
        ("kind↵words", f"+{weights[1]:.2f}", f"+{3 / math.sqrt(11 / 4):.2f}"),
    ]
    turned = view(choices=[1, 0, 1, 0])
    assert [row[2] for row in turned.table()[1:]] == [f"−{4 / math.sqrt(6):.2f}", f"−{1 / math.sqrt(11 / 4):.2f}"]


def test_the_repr_is_the_same_every_time():
    assert repr(view()) == "LabelView(pairs=4, features=2)"


def test_the_most_is_taken():
    random = np.random.default_rng(0)
    names = [f"f{n}" for n in range(12)]
    made = LabelView([("a" * 1000, "b")] * 100, random.normal(size=(100, 2, 12)), names, choices=[0, 1] * 50)
    assert made.sentence().startswith("Pair 100: the second text was preferred. Fitted to the 99 choices before")


def spoilt(value):
    features = FEATURES.copy()
    features[2, 1, 0] = value
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "0 pairs can not be shown: give 1 to 100"),
        ({"pairs": [("a", "b")] * 101}, "101 pairs can not be shown"),
        ({"pairs": [*PAIRS[:3], ("a",)]}, r"pair 3 is \('a',\): give two texts"),
        ({"pairs": [*PAIRS[:3], "ab"]}, "pair 3 is 'ab': give two texts"),
        ({"pairs": [("a", 7), *PAIRS[1:]]}, r"pair 0 is \('a', 7\): give two texts"),
        ({"pairs": [*PAIRS[:3], ("same", "same")]}, "the texts of pair 3 are equal, 'same': neither can be preferred"),
        ({"pairs": [*PAIRS[:3], ("a" * 1001, "b")]}, "a text of pair 3 has 1001 characters: give at most 1,000"),
        ({"names": "ab"}, "give a list of names, not the text 'ab'"),
        ({"names": []}, "0 features can not be shown: give 1 to 12"),
        ({"names": [str(n) for n in range(13)]}, "13 features can not be shown"),
        ({"names": ["a", "a"]}, "the name 'a' stands for 2 features"),
        ({"names": ["a", 1]}, "name 1 is 1: give the names as strings"),
        ({"names": ["a"]}, r"features of shape \(4, 2, 2\) do not fit 4 pairs and 1 names: .* = \(4, 2, 1\)"),
        ({"features": FEATURES[:3]}, r"features of shape \(3, 2, 2\) do not fit 4 pairs"),
        ({"features": FEATURES[:, 0]}, r"features of shape \(4, 2\)"),
        ({"features": spoilt(NAN)}, "feature 'words' of text 1 of pair 2 is nan: give numbers"),
        ({"features": spoilt(-INF)}, "feature 'words' of text 1 of pair 2 is -inf"),
        ({"features": FEATURES * [1, 0]}, "words' is the same for both texts of every pair: it can decide nothing"),
        ({"choices": [0, 2]}, "choice 1 is 2: give 0 for the first text or 1 for the second"),
        ({"choices": [-1]}, "choice 0 is -1"),
        ({"choices": [0.5]}, "choice 0 is 0.5"),
        ({"choices": "01"}, "choice 0 is '0'"),
        ({"choices": [0] * 5}, "5 choices are more than the 4 pairs"),
        ({"penalty": 0.009}, "penalty must be from 0.01 to 100, got 0.009"),
        ({"penalty": 101}, "got 101"),
        ({"penalty": NAN}, "got nan"),
    ],
)  # fmt: skip
def test_what_can_not_be_labelled_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        view(**changes)


@pytest.mark.parametrize(
    ("differences", "choices", "penalty", "message"),
    [
        ([1.0, 2.0], [0, 1], 1, r"differences must be \(choices, features\), got shape \(2,\) for 2 choices"),
        ([[1.0]], [0, 1], 1, r"got shape \(1, 1\) for 2 choices"),
        (np.zeros((2, 0)), [0, 1], 1, r"got shape \(2, 0\)"),
        ([[1.0], [NAN]], [0, 1], 1, "differences must be finite numbers"),
        ([[1.0]], [3], 1, "choice 0 is 3"),
        ([[1.0]], [0], 0, "penalty must be from 0.01 to 100, got 0"),
    ],
)
def test_what_can_not_be_fitted_is_refused(differences, choices, penalty, message):
    with pytest.raises(ValueError, match=message):
        fit(differences, choices, penalty)


def test_choices_may_be_an_array_or_a_tensor():
    for choices in (np.array([0, 1, 1]), torch.tensor([0, 1, 1]), [False, True, True]):
        assert view(choices=choices).choices == [0, 1, 1]


def test_a_kernel_can_set_what_could_be():
    made = view()
    made.choices = [1, 1]
    made.penalty = 3
    assert (made.choices, made.penalty) == ([1, 1], 3.0)
    with pytest.raises(ValueError, match="choice 0 is 2"):
        made.choices = [2]
    with pytest.raises(ValueError, match="5 choices are more than the 4 pairs"):
        made.choices = [0] * 5
    with pytest.raises(ValueError, match="penalty must be from"):
        made.penalty = 0
    with pytest.raises(traitlets.TraitError):
        made.choices = ["0"]
