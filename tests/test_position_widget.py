"""What PositionView takes, refuses and sends. How it behaves in a page is tested in tests/book."""

import numpy as np
import pytest
import torch
import traitlets

from bookformer.widgets import PositionView

SCORES = 3 * torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
NAMES = ["learned", "rotary"]


def sent(view):
    return np.frombuffer(view.packed, "<f4").reshape(view.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_travel_unchanged_as_float32(dtype):
    view = PositionView(SCORES.to(dtype), NAMES)
    assert view.exact is True
    assert np.array_equal(sent(view), SCORES.to(dtype).float().numpy())


def test_a_slice_and_a_transposed_table_travel_in_their_own_order():
    scores = SCORES.transpose(1, 2)[:1]
    assert np.array_equal(sent(PositionView(scores, NAMES[:1])), scores.numpy())


def test_tensors_that_need_a_gradient_are_taken():
    assert PositionView(SCORES.clone().requires_grad_(), NAMES).shape == [2, 4, 4]


def test_names_and_tokens_are_made_visible():
    view = PositionView(SCORES, ["a b", "<script>"], query_token=" the", key_token="\n", others="\u202e")
    assert view.names == ["a␣b", "<script>"]
    assert (view.query_token, view.key_token, view.others) == ("␣the", "↵", "⟨202E⟩")


def test_the_query_stands_after_the_key_at_first():
    view = PositionView(SCORES, NAMES)
    assert (view.query, view.key, view.causal, view.others) == (2, 1, True, None)


def test_the_repr_is_the_same_every_time():
    assert repr(PositionView(SCORES, NAMES)) == "PositionView(schemes=2, places=4)"


def spoilt(value):
    scores = SCORES.clone()
    scores[1, 2, 3] = value
    return scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES[0], r"must be \(schemes, places, places\), none of them 0; got shape \(4, 4\)"),
        (SCORES[:0], r"none of them 0; got shape \(0, 4, 4\)"),
        (SCORES[:, :0, :0], r"none of them 0; got shape \(2, 0, 0\)"),
        (SCORES[:, :3], r"got shape \(2, 3, 4\)"),
        (SCORES[:1], "2 names can not name 1 schemes"),
        (spoilt(float("nan")), r"\(scheme, query, key\) = \(1, 2, 3\) is nan: give the scores before the mask"),
        (spoilt(float("inf")), r"= \(1, 2, 3\) is inf"),
        (spoilt(float("-inf")), r"= \(1, 2, 3\) is -inf"),
    ],
)
def test_what_are_not_scores_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        PositionView(scores, NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "0 names can not name 2 schemes"),
        ("ab", "'ab' can not name 2 schemes: give a list"),
        (["rotary", "rotary"], "the name 'rotary' stands for 2 schemes"),
    ],
)
def test_every_scheme_has_its_own_name(names, message):
    with pytest.raises(ValueError, match=message):
        PositionView(SCORES, names)


@pytest.mark.parametrize(("name", "value"), [("query", 4), ("query", -1), ("key", 4), ("key", -1)])
def test_no_token_stands_where_no_place_is(name, value):
    with pytest.raises(ValueError, match=f"{name} {value} is not there: the places run from 0 to 3"):
        PositionView(SCORES, NAMES, **{name: value})
    view = PositionView(SCORES, NAMES)
    with pytest.raises(ValueError, match=f"{name} {value} is not there"):
        setattr(view, name, value)


@pytest.mark.parametrize("query", [1.5, "1"])
def test_a_place_is_a_whole_number(query):
    with pytest.raises(traitlets.TraitError):
        PositionView(SCORES, NAMES, query=query)
