"""Positions: against the papers' formulas, by their laws, and by hand."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers.models.t5.modeling_t5 import T5Attention

from bookformer.attention import MultiHeadAttention
from bookformer.config import POSITIONS, ModelConfig
from bookformer.positions import SCHEMES, alibi_slopes, distances, relative_bucket, rotate, sinusoids, turning

WITHIN = ("rotary", "relative", "alibi", "none")  # schemes that work on distances, inside attention


def config(positions, **sizes):
    return ModelConfig(
        **{"vocab_size": 5, "context_length": 64, "d_model": 16, "n_heads": 4, "positions": positions, **sizes}
    )


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_there_is_one_for_each_name():
    assert set(SCHEMES) == set(POSITIONS)


# --- sinusoids -----------------------------------------------------------------------------------------------------


def test_sinusoids_are_the_papers_formula():
    table = sinusoids(50, 8)
    for position in (0, 1, 49):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("shift", [1, 7, 1000])
def test_a_shift_is_one_rotation_whatever_the_position(shift):
    table, d = sinusoids(6000, 64), 64
    turned = torch.zeros(d, d, dtype=torch.float64)
    for pair in range(d // 2):
        angle = shift * 10_000 ** (-2 * pair / d)
        block = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        turned[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor(block, dtype=torch.float64)
    assert_close(table[:5000] @ turned.T, table[shift : 5000 + shift], atol=1e-6, rtol=0)


def test_the_product_of_sinusoids_knows_the_distance_but_not_the_direction():
    products = sinusoids(40, 16) @ sinusoids(40, 16).T
    for apart in (1, 5, 20):
        assert_close(products.diagonal(apart), products.diagonal(apart)[0].expand(40 - apart), atol=1e-12, rtol=0)
        assert_close(products.diagonal(apart), products.diagonal(-apart))


@pytest.mark.parametrize(("length", "width"), [(0, 8), (5, 7), (5, 0)])
def test_impossible_sinusoids(length, width):
    with pytest.raises(ValueError, match=f"got {length} and {width}"):
        sinusoids(length, width)


# --- rotary --------------------------------------------------------------------------------------------------------


def test_a_pair_is_turned_by_its_angle():
    x = torch.tensor([[1.0, 3.0, 0.0, 2.0]])
    assert_close(rotate(x, torch.tensor([[math.pi / 2, math.pi]])), torch.tensor([[-3.0, 1.0, 0.0, -2.0]]))


def test_turning_keeps_lengths_and_the_product_knows_the_distance_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    angles = turning(200, 8)
    qs, ks = rotate(q.expand(200, 8), angles), rotate(k.expand(200, 8), angles)
    assert_close(qs.norm(dim=1), q.norm().expand(200), atol=1e-12, rtol=0)
    scores = qs @ ks.T
    for apart in (-150, -3, 0, 1, 42):
        assert_close(scores.diagonal(apart), scores.diagonal(apart)[0].expand(200 - abs(apart)), atol=1e-10, rtol=0)
    assert (scores.diagonal(3)[0] - scores.diagonal(-3)[0]).abs() > 1e-3  # and the direction too


def test_angles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"angles \(5, 4\) do not fit the pairs of x \(6, 8\)"):
        rotate(torch.randn(6, 8), turning(5, 8))


# --- bias ----------------------------------------------------------------------------------------------------------


def test_slopes_of_alibi():
    assert alibi_slopes(8).tolist() == [2**-h for h in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2**-8]
    assert_close(alibi_slopes(6), torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]))


def test_alibi_by_hand():
    bias = SCHEMES["alibi"](config("alibi", n_heads=2), causal=True).bias(2, 3)  # the last two of three
    steep = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]) * -(2**-4)  # what is later, the mask hides
    assert_close(bias, torch.stack([steep, steep * 2**-4]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (16, 20), (8, 500)])
def test_buckets_are_those_of_t5(causal, buckets, furthest):
    apart = distances(300, 300)
    theirs = T5Attention._relative_position_bucket(-apart, not causal, buckets, furthest)
    assert_close(relative_bucket(apart, causal=causal, buckets=buckets, furthest=furthest), theirs)


@pytest.mark.parametrize("furthest", [17, 24, 40])
def test_near_distances_have_a_bucket_each_and_far_ones_share(furthest):
    buckets = relative_bucket(torch.arange(200), causal=True, furthest=furthest)
    assert buckets[:16].tolist() == list(range(16))
    assert (buckets[furthest:] == 31).all()
    assert (buckets.diff() >= 0).all()


@pytest.mark.parametrize(("causal", "exact"), [(True, 16), (False, 8)])
def test_the_furthest_distance_lies_beyond_those_with_a_bucket_each(causal, exact):
    with pytest.raises(ValueError, match=f"furthest \\({exact}\\) must be above the {exact} distances"):
        relative_bucket(torch.arange(5), causal=causal, furthest=exact)


def test_distances_are_query_minus_key():
    assert distances(2, 3).tolist() == [[1, 0, -1], [2, 1, 0]]


# --- all schemes, inside attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITHIN)
def test_scores_depend_on_the_distance_alone(name):
    scheme, layer = SCHEMES[name](config(name), causal=True), MultiHeadAttention(config(name))
    x = torch.randn(1, 1, 16).expand(1, 40, 16)  # the same token everywhere
    q, k = (scheme.rotate(layer._split(part(x), 4), 0) for part in (layer.q, layer.k))
    scores = q @ k.transpose(-2, -1)
    bias = scheme.bias(40, 40)
    scores = (scores if bias is None else scores + bias)[0].detach()  # (H, T, S)
    for apart in (0, -1, -20):
        lines = scores.diagonal(apart, dim1=1, dim2=2)
        assert_close(lines, lines[:, :1].expand_as(lines), atol=1e-5, rtol=0)
    if name != "none":
        assert (scores[:, 30, 29] - scores[:, 30, 10]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
def test_added_positions_are_a_row_for_each_place(name):
    scheme = SCHEMES[name](config(name), causal=True)
    whole = scheme.add(torch.arange(10))
    assert whole.shape == (10, 16)
    assert_close(scheme.add(torch.tensor([[3, 0], [9, 3]])), whole[torch.tensor([[3, 0], [9, 3]])])
    assert (whole[3] - whole[4]).abs().max() > 1e-3
    assert scheme.bias(4, 4) is None


@pytest.mark.parametrize("name", WITHIN)
def test_what_works_inside_attention_adds_nothing_outside(name):
    assert SCHEMES[name](config(name), causal=True).add(torch.arange(4)) is None


def test_a_context_has_no_positions():
    """Distances between two sequences mean nothing: cross-attention turns nothing."""
    layer = MultiHeadAttention(config("rotary"))
    x, context = torch.randn(1, 3, 16), torch.randn(1, 5, 16)
    with_scheme, _ = layer(x, context, positions=SCHEMES["rotary"](config("rotary"), causal=False))
    assert_close(with_scheme, layer(x, context)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_turned_and_stays_what_it_was(dtype):
    x, angles = torch.randn(2, 5, 6), torch.rand(5, 3) * 7
    found = rotate(x.to(dtype), angles)
    assert found.dtype == dtype
    assert_close(found.float(), rotate(x, angles), atol=0.03, rtol=0)


def test_what_lies_in_memory_in_another_order_is_turned_alike():
    x, angles = torch.randn(6, 5, 3), torch.rand(5, 3)
    assert_close(rotate(x.transpose(0, 2), angles), rotate(x.transpose(0, 2).contiguous(), angles), atol=0, rtol=0)


def test_cosines_and_sines_can_be_read_and_written():
    scheme = SCHEMES["rotary"](ModelConfig(vocab_size=11, context_length=7, d_model=16, n_heads=2), causal=True)
    x, angles = torch.randn(1, 2, 7, 8), turning(7, 8)
    assert_close(scheme.cos, angles.cos().float())
    assert_close(scheme.sin, angles.sin().float())
    scheme.cos.copy_((angles / 2).cos())
    scheme.sin.copy_((angles / 2).sin())
    assert_close(scheme.rotate(x, 0), rotate(x, angles / 2))
