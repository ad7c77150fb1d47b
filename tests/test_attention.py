"""Attention: against PyTorch's own, by its laws, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from bookformer.attention import KVCache, MultiHeadAttention, attention, causal_mask, padding_mask
from bookformer.config import ModelConfig

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CASES = {  # query heads, key heads, T, S, mask
    "plain": (1, 1, 5, 5, None),
    "causal": (4, 4, 6, 6, causal_mask(6)),
    "cross": (4, 4, 3, 7, None),
    "padded cross": (4, 4, 3, 7, padding_mask(torch.tensor([7, 2]), 7)),
    "grouped": (8, 2, 6, 6, causal_mask(6)),
    "one key head": (4, 1, 6, 6, None),
    "last queries of a longer text": (4, 2, 2, 6, causal_mask(2, 6)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def qkv(h, h_keys, t, s):
    return torch.randn(2, h, t, 16), torch.randn(2, h_keys, s, 16), torch.randn(2, h_keys, s, 16)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, need_weights):
    h, h_keys, t, s, mask = CASES[case]
    q, k, v = qkv(h, h_keys, t, s)
    ours, weights = attention(q, k, v, mask, need_weights=need_weights)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=h != h_keys)
    assert_close(ours, theirs, **CLOSE)
    assert (weights is not None) == need_weights


def test_by_hand():
    q, k = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    output, weights = attention(q, k, torch.tensor([[10.0], [20.0]]))
    heavy = math.exp(2 / math.sqrt(2)) / (1 + math.exp(2 / math.sqrt(2)))
    assert_close(weights, torch.tensor([[1 - heavy, heavy]]))
    assert_close(output, torch.tensor([[10 * (1 - heavy) + 20 * heavy]]))


@pytest.mark.parametrize("case", CASES)
def test_rows_of_weights_sum_to_one_and_hidden_keys_get_nothing(case):
    h, h_keys, t, s, mask = CASES[case]
    _, weights = attention(*qkv(h, h_keys, t, s), mask)
    assert_close(weights.sum(-1), torch.ones(2, h, t))
    if mask is not None:
        assert (weights.masked_select(~mask.expand(2, h, t, s)) == 0).all()


def test_a_group_of_query_heads_reads_its_own_key_head():
    q, k, v = qkv(4, 2, 5, 5)
    output, _ = attention(q, k, v)
    for head in range(4):
        alone, _ = attention(q[:, head], k[:, head // 2], v[:, head // 2])
        assert_close(output[:, head], alone)


def test_values_may_have_another_width():
    output, _ = attention(torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 2))
    assert output.shape == (3, 2)


@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients_reach_queries_keys_and_values(need_weights):
    tensors = [x.requires_grad_() for x in qkv(4, 2, 6, 6)]
    attention(*tensors, causal_mask(6), need_weights=need_weights)[0].sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in tensors)
    assert tensors[2].grad.abs().sum() > 0


class Largest(TorchDispatchMode):
    """While active, note the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)]
        self.numbers = max([self.numbers, *(x.numel() for x in tensors)])
        return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(512, 16), (1, 512, 16), (1, 1, 512, 16)])
def test_without_weights_no_table_of_weights_is_formed(shape, causal):
    q, k, v = torch.randn(3, *shape)
    with Largest() as asked:
        attention(q, k, v, causal=causal)
    with Largest() as fused:
        attention(q, k, v, causal=causal, need_weights=False)
    assert asked.numbers == 512 * 512
    assert fused.numbers == 512 * 16


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("t", [1, 2, 6])
@pytest.mark.parametrize("padding", [None, padding_mask(torch.tensor([6, 5]), 6)])
def test_causal_is_the_causal_mask(need_weights, t, padding):
    q, k, v = qkv(4, 2, t, 6)
    mask = causal_mask(t, 6) if padding is None else causal_mask(t, 6) & padding
    expected, _ = attention(q, k, v, mask)
    assert_close(attention(q, k, v, padding, causal=True, need_weights=need_weights)[0], expected, **CLOSE)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", [None, padding_mask(torch.tensor([6, 5]), 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_is_added_to_the_scores(need_weights, mask, causal):
    q, k, v = qkv(4, 2, 6, 6)
    bias = torch.randn(4, 6, 6)
    hidden = torch.zeros(2, 1, 6, 6)
    for one in (mask, causal_mask(6) if causal else None):
        hidden = hidden if one is None else hidden.masked_fill(~one, float("-inf"))
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden + bias, enable_gqa=True)
    ours, _ = attention(q, k, v, mask, bias=bias, causal=causal, need_weights=need_weights)
    assert_close(ours, theirs, **CLOSE)


def test_a_bias_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a bias of shape \(2, 5, 5\) does not broadcast to \(2, 4, 6, 6\)"):
        attention(*qkv(4, 4, 6, 6), bias=torch.zeros(2, 5, 5))


@pytest.mark.parametrize("wrong", [torch.full((6, 6), float("-inf")), torch.ones(6, 6, dtype=torch.bool)])
def test_a_bias_is_finite_numbers(wrong):
    with pytest.raises(ValueError, match="a bias holds finite numbers"):
        attention(*qkv(4, 4, 6, 6), bias=wrong)


def test_large_numbers_in_half_precision_do_not_overflow():
    q = torch.full((2, 128), 30.0, dtype=torch.float16)
    assert attention(q, q, q)[0].isfinite().all()


def test_causal_mask_of_the_last_queries():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert causal_mask(1).tolist() == [[True]]


@pytest.mark.parametrize(("t", "s"), [(0, None), (3, 2)])
def test_an_impossible_causal_mask(t, s):
    with pytest.raises(ValueError, match=f"got T = {t}, S = {t if s is None else s}"):
        causal_mask(t, s)


def test_padding_mask():
    assert padding_mask(torch.tensor([1, 3]), 3).flatten(1).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("wrong", [0, 4])
def test_an_impossible_length(wrong):
    with pytest.raises(ValueError, match=f"length {wrong} of sequence 1 is outside 1 to 3"):
        padding_mask(torch.tensor([2, wrong]), 3)


def test_padding_does_not_change_what_is_not_padding():
    q, k, v = qkv(4, 4, 6, 6)
    padded, _ = attention(q, k, v, padding_mask(torch.tensor([4, 4]), 6))
    alone, _ = attention(q, k[:, :, :4], v[:, :, :4])
    assert_close(padded, alone, **CLOSE)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_that_sees_nothing_is_refused_with_its_index(need_weights):
    mask = causal_mask(3).repeat(2, 1, 1, 1)
    mask[1, 0, 2] = False
    with pytest.raises(ValueError, match=r"hides every key from the query at index \(1, 0, 2\)"):
        attention(*qkv(4, 4, 3, 3), mask, need_weights=need_weights)


@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (((3, 8), (3, 4), (3, 4)), None, r"differ in width \(8 and 4\): queries \(3, 8\), keys \(3, 4\)"),
        (((3, 8), (5, 8), (4, 8)), None, r"one value for each key: .* keys \(5, 8\), values \(4, 8\)"),
        (((3, 8), (0, 8), (0, 8)), None, r"no query or no key, .* keys \(0, 8\)"),
        (((8,), (3, 8), (3, 8)), None, r"equally many dimensions, at least two: queries \(8,\)"),
        (((4, 5, 8), (2, 7, 8), (2, 7, 8)), None, r"different batches: queries \(4, 5, 8\), keys \(2, 7, 8\)"),
        (((2, 4, 3, 8), (1, 4, 3, 8), (1, 4, 3, 8)), None, "different batches"),
        (((1, 4, 3, 8), (1, 3, 3, 8), (1, 3, 3, 8)), None, "4 query heads do not split into 3 key heads"),
        (((3, 8), (3, 8), (3, 8)), torch.ones(3, 3), "a mask is bool .* got torch.float32"),
        (((3, 8), (3, 8), (3, 8)), causal_mask(4), r"mask of shape \(4, 4\) does not broadcast to \(3, 3\)"),
        (((3, 8), (3, 8), (3, 8)), causal_mask(3)[None], r"all dimensions of the scores \(3, 3\), .* \(1, 3, 3\)"),
        (((2, 2, 3, 8),) * 3, torch.ones(2, 1, 3).bool(), r"such as \(B, 1, 1, S\) for padding; got shape \(2, 1, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shapes(shapes, mask, message):
    with pytest.raises(ValueError, match=message):
        attention(*(torch.randn(shape) for shape in shapes), mask)


CONFIG = ModelConfig(vocab_size=2, context_length=8, d_model=16, n_heads=4)
GROUPED = ModelConfig(vocab_size=2, context_length=8, d_model=16, n_heads=4, n_kv_heads=2)


def test_multi_head_equals_pytorch_given_the_same_weights():
    ours, theirs = MultiHeadAttention(CONFIG), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]),
            "in_proj_bias": torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]),
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x, context = torch.randn(2, 8, 16), torch.randn(2, 5, 16)
    y, weights = ours(x, mask=causal_mask(8), need_weights=True)
    expected = theirs(x, x, x, attn_mask=~causal_mask(8), average_attn_weights=False)
    assert_close((y, weights), expected, **CLOSE)
    y, weights = ours(x, context, need_weights=True)
    assert_close((y, weights), theirs(x, context, context, average_attn_weights=False), **CLOSE)


@pytest.mark.parametrize("config", [CONFIG, GROUPED])
@pytest.mark.parametrize("step", [1, 3])
def test_stepping_with_the_cache_equals_the_whole(config, step):
    layer, x = MultiHeadAttention(config), torch.randn(2, 8, 16)
    with torch.no_grad():
        whole, _ = layer(x, causal=True)
        cache = KVCache(8)
        parts = [layer(part, cache=cache)[0] for part in x.split(step, dim=1)]
    assert_close(torch.cat(parts, dim=1), whole, **CLOSE)
    assert cache.length == 8


@torch.no_grad()
def test_a_refused_mask_leaves_the_cache_as_it_was():
    layer, cache = MultiHeadAttention(CONFIG), KVCache(8)
    layer(torch.randn(1, 3, 16), cache=cache)
    with pytest.raises(ValueError, match="hides every key"):
        layer(torch.randn(1, 1, 16), mask=torch.zeros(1, 4, dtype=torch.bool), cache=cache)
    assert cache.length == 3


def test_a_cache_refuses_gradients():
    with pytest.raises(ValueError, match=r"use it under torch.no_grad\(\)"):
        MultiHeadAttention(CONFIG)(torch.randn(1, 3, 16), cache=KVCache(8))


@pytest.mark.parametrize("other", [torch.randn(4, 2, 1, 8), torch.randn(1, 2, 1, 8, dtype=torch.float64)])
def test_a_cache_refuses_what_is_unlike_what_it_holds(other):
    cache = KVCache(4)
    cache.append(*torch.randn(2, 1, 2, 1, 8))
    with pytest.raises(ValueError, match=r"do not fit a cache of \(1, 2, 1, 8\) \(torch.float32\)"):
        cache.append(other, other)
    assert cache.length == 1


def test_an_input_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"x must be \(B, T, D\), got shape \(3, 16\)"):
        MultiHeadAttention(CONFIG)(torch.randn(3, 16))


def test_grouped_heads_have_fewer_key_and_value_weights():
    assert MultiHeadAttention(GROUPED).k.weight.shape == (8, 16)
    assert MultiHeadAttention(CONFIG).k.weight.shape == (16, 16)


def test_a_full_cache_refuses_and_keeps_what_it_has():
    cache, new = KVCache(4), torch.randn(1, 2, 3, 8)
    cache.append(new, new)
    with pytest.raises(ValueError, match=r"3 positions after 3 are more than context_length \(4\)"):
        cache.append(new, new)
    assert cache.length == 3


def test_a_cache_grows_and_gives_back_what_it_was_given():
    cache, k, v = KVCache(40), torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    for start, end in ((0, 3), (3, 4), (4, 17), (17, 18), (18, 40)):
        keys, values = cache.append(k[..., start:end, :], v[..., start:end, :])
        assert torch.equal(keys, k[..., :end, :])
        assert torch.equal(values, v[..., :end, :])


def test_a_long_context_costs_nothing_until_it_is_used():
    cache = KVCache(1_000_000)
    cache.append(*torch.randn(2, 1, 2, 5, 8))
    assert cache._k.untyped_storage().nbytes() + cache._v.untyped_storage().nbytes() == 2 * 2 * 10 * 8 * 4


def test_rows_of_a_cache_are_selected_and_go_on_apart():
    config = ModelConfig(vocab_size=10, context_length=8, d_model=16, n_heads=4, n_kv_heads=2)
    layer, x = MultiHeadAttention(config).eval(), torch.randn(3, 6, 16)
    rows = torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        cache = KVCache(8)
        layer(x[:, :5], cache=cache)
        cache.select(rows)
        found = layer(x[rows, 5:], cache=cache)[0]
        whole = layer(x, causal=True)[0][:, 5:]
    torch.testing.assert_close(found, whole[rows])


def test_an_empty_cache_has_no_rows():
    with pytest.raises(ValueError, match="an empty cache has no rows to select"):
        KVCache(4).select(torch.tensor([0]))


def test_a_cache_has_room():
    with pytest.raises(ValueError, match="context_length must be at least 1, got 0"):
        KVCache(0)


def test_a_cache_is_not_for_another_sequence():
    x = torch.randn(1, 2, 16)
    with pytest.raises(ValueError, match="give a cache or a context, not both"):
        MultiHeadAttention(CONFIG)(x, x, cache=KVCache(8))
