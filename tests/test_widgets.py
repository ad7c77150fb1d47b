"""What AttentionView takes, refuses and sends. How it behaves in a page is tested in tests/book."""

import numpy as np
import pytest
import torch
import traitlets

from bookformer.widgets import AttentionView

WEIGHTS = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
QUERIES, KEYS = list("abcd"), list("vwxyz")


def sent(view):
    kind = "<f4" if view.exact else np.uint8
    return np.frombuffer(view.packed, kind).reshape(view.shape) / (1 if view.exact else 255)


def test_weights_travel_as_bytes_with_little_error():
    view = AttentionView(WEIGHTS, QUERIES, KEYS)
    assert len(view.packed) == WEIGHTS.numel()
    assert np.abs(sent(view) - WEIGHTS.numpy()).max() <= 0.002


def test_every_eighth_bit_value_is_at_most_0_002_off():
    weights = np.linspace(0, 1, 1001, dtype=np.float32)[None, None, None]
    assert np.abs(sent(AttentionView(weights, ["q"], ["k"] * 1001)) - weights).max() <= 0.002


def test_exact_weights_travel_unchanged():
    assert np.array_equal(sent(AttentionView(WEIGHTS, QUERIES, KEYS, exact=True)), WEIGHTS.numpy())


def test_tensors_that_need_a_gradient_are_taken():
    assert AttentionView(WEIGHTS.clone().requires_grad_(), QUERIES, KEYS).shape == [2, 3, 4, 5]


def test_tokens_are_made_visible_and_keys_default_to_queries():
    view = AttentionView(torch.eye(2)[None, None], [" ", "<script>"])
    assert view.query_tokens == view.key_tokens == ["␣", "<script>"]


def test_the_repr_is_the_same_every_time():
    assert repr(AttentionView(WEIGHTS, QUERIES, KEYS)) == "AttentionView(layers=2, heads=3, queries=4, keys=5)"


def spoilt(value):
    weights = WEIGHTS.clone()
    weights[1, 2, 3, 4] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS[0], r"must be \(layers, heads, queries, keys\), none of them 0; got shape \(3, 4, 5\)"),
        (WEIGHTS[:0], r"none of them 0; got shape \(0, 3, 4, 5\)"),
        (WEIGHTS[:, :, :3], "weights for 3 queries and 5 keys do not fit 4 query tokens and 5 key tokens"),
        (WEIGHTS[..., :4], "weights for 4 queries and 4 keys do not fit 4 query tokens and 5 key tokens"),
        (spoilt(float("nan")), r"\(layer, head, query, key\) = \(1, 2, 3, 4\) is nan, outside 0 to 1"),
        (spoilt(-2.5), r"= \(1, 2, 3, 4\) is -2.5, outside 0 to 1: give the weights after the softmax"),
        (spoilt(1.5), r"= \(1, 2, 3, 4\) is 1.5, outside 0 to 1"),
    ],
)
def test_what_are_not_weights_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        AttentionView(weights, QUERIES, KEYS)


@pytest.mark.parametrize(("name", "value", "last"), [("layer", 2, 1), ("head", 3, 2), ("query", -1, 3)])
def test_what_is_not_there_can_not_be_shown(name, value, last):
    with pytest.raises(ValueError, match=f"{name} {value} is not there: they run from 0 to {last}"):
        AttentionView(WEIGHTS, QUERIES, KEYS, **{name: value})
    view = AttentionView(WEIGHTS, QUERIES, KEYS)
    with pytest.raises(ValueError, match=f"{name} {value} is not there"):
        setattr(view, name, value)


def test_names_fit_the_layers():
    assert AttentionView(WEIGHTS, QUERIES, KEYS, layer_names=["early", "late"]).layer_names == ["early", "late"]
    with pytest.raises(ValueError, match="1 names do not fit 2 layers"):
        AttentionView(WEIGHTS, QUERIES, KEYS, layer_names=["early"])


@pytest.mark.parametrize("head", ["median", None, 1.5])
def test_a_head_is_a_number_or_mean_or_all(head):
    with pytest.raises(traitlets.TraitError):
        AttentionView(WEIGHTS, QUERIES, KEYS, head=head)
