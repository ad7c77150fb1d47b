"""Blocks against PyTorch's own layers, given the same weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bookformer.attention import causal_mask, padding_mask
from bookformer.config import ModelConfig
from bookformer.layers import Block, FeedForward, Stack, make_norm

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ACTIVATIONS = ("relu", "gelu")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def config(**parts):
    return ModelConfig(
        **{"vocab_size": 5, "context_length": 16, "d_model": 16, "n_heads": 4, "d_ff": 24, "n_layers": 3, **parts}
    )


def put_attention(ours, theirs):
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]).detach()
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def put_block(ours, theirs, cross):
    """PyTorch's layer with our weights."""
    put_attention(ours.attn, theirs.self_attn)
    norms = [ours.attn_norm, ours.cross_norm, ours.ff_norm] if cross else [ours.attn_norm, ours.ff_norm]
    if cross:
        put_attention(ours.cross, theirs.multihead_attn)
    for i, norm in enumerate(norms, start=1):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.ff.up.state_dict())
    theirs.linear2.load_state_dict(ours.ff.down.state_dict())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", ["pre", "post"])
def test_an_encoder_block_equals_pytorchs(place, activation):
    ours = Block(config(norm_place=place, activation=activation))
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, batch_first=True, norm_first=place == "pre")
    put_block(ours, theirs, cross=False)
    x, lengths = torch.randn(2, 7, 16), torch.tensor([7, 4])
    assert_close(ours(x), theirs(x), **CLOSE)
    hidden = torch.arange(7) >= lengths[:, None]
    padded = ours(x, mask=padding_mask(lengths, 7))
    assert_close(padded, theirs(x, src_key_padding_mask=hidden), **CLOSE)
    both = ours(x, mask=padding_mask(lengths, 7), causal=True)
    assert_close(both, theirs(x, src_mask=~causal_mask(7), src_key_padding_mask=hidden), **CLOSE)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_decoder_block_equals_pytorchs(place):
    ours = Block(config(norm_place=place, activation="relu"), cross=True)
    theirs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, "relu", batch_first=True, norm_first=place == "pre")
    put_block(ours, theirs, cross=True)
    x, memory, lengths = torch.randn(2, 7, 16), torch.randn(2, 5, 16), torch.tensor([5, 2])
    y = ours(x, causal=True, memory=memory, memory_mask=padding_mask(lengths, 5))
    hidden = torch.arange(5) >= lengths[:, None]
    assert_close(y, theirs(x, memory, tgt_mask=~causal_mask(7), memory_key_padding_mask=hidden), **CLOSE)


def test_a_stack_is_its_blocks_and_a_last_norm_only_where_they_norm_before():
    x = torch.randn(1, 4, 16)
    for place in ("pre", "post"):
        stack, y = Stack(config(norm_place=place), causal=True), x
        for block in stack.blocks:
            y = block(y, causal=True)
        assert_close(stack(x), nn.functional.layer_norm(y, (16,)) if place == "pre" else y, **CLOSE)
        assert len(stack.blocks) == 3


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    norm, x = make_norm(config(norm="rms")), torch.randn(3, 16)
    nn.init.normal_(norm.weight)
    assert_close(norm(x), x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * norm.weight, **CLOSE)


def test_a_layer_norm_has_the_eps_and_the_bias_that_were_asked_for():
    norm = make_norm(config(norm_eps=0.5, bias=False))
    assert norm.eps == 0.5
    assert norm.bias is None


def test_swiglu_by_its_formula():
    ff, x = FeedForward(config(activation="swiglu", bias=False)), torch.randn(3, 16)
    gate, up = x @ ff.gate.weight.T, x @ ff.up.weight.T
    assert_close(ff(x), (gate * gate.sigmoid() * up) @ ff.down.weight.T, **CLOSE)


def test_the_two_gelus_differ():
    exact, tanh = FeedForward(config(activation="gelu")), FeedForward(config(activation="gelu_tanh"))
    tanh.load_state_dict(exact.state_dict())
    x = 3 * torch.randn(100, 16)
    gap = (exact(x) - tanh(x)).abs().max()
    assert 1e-6 < gap < 1e-2


def test_dropout_is_of_training_alone():
    block, x = Block(config(dropout=0.5)), torch.randn(1, 4, 16)
    assert (block(x) - block(x)).abs().max() > 0
    block.eval()
    assert_close(block(x), block(x), atol=0, rtol=0)
