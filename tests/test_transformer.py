"""The Transformer: against two references, by its laws, and at its door."""

import pytest
import torch
from test_heads import draw
from test_layers import put_block
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from bookformer.attention import KVCache, padding_mask
from bookformer.config import POSITIONS, ModelConfig
from bookformer.transformer import Transformer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def config(**parts):
    return ModelConfig(**{"vocab_size": 11, "context_length": 12, "d_model": 16, "n_heads": 4, "n_layers": 2, **parts})


def make(**parts):
    """A model whose every number matters: no zeros, no ones."""
    model = Transformer(config(**parts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


BOTH_WAYS = [name for name in POSITIONS if name != "alibi"]  # those that an encoder can use
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]])
HALF = IDS[:, :4]


# --- references ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_bert(number):
    d, heads, _, layers, ff = draw(number)
    parts = {"kind": "encoder", "norm_place": "post", "norm_eps": 1e-12, "norm_embeddings": True, "n_segments": 2}
    ours = make(d_model=d, n_heads=heads, n_layers=layers, d_ff=ff, **parts)
    theirs = BertModel(
        BertConfig(
            vocab_size=11, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ff,
            max_position_embeddings=12, attn_implementation="eager",
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    e = theirs.embeddings
    pairs = [(ours.tokens, e.word_embeddings), (ours.positions.table, e.position_embeddings)]
    pairs += [(ours.segments, e.token_type_embeddings), (ours.embed_norm, e.LayerNorm)]
    for block, layer in zip(ours.stack.blocks, theirs.encoder.layer, strict=True):
        attention = layer.attention
        pairs += [(block.attn.q, attention.self.query), (block.attn.k, attention.self.key)]
        pairs += [(block.attn.v, attention.self.value), (block.attn.out, attention.output.dense)]
        pairs += [(block.attn_norm, attention.output.LayerNorm), (block.ff_norm, layer.output.LayerNorm)]
        pairs += [(block.ff.up, layer.intermediate.dense), (block.ff.down, layer.output.dense)]
    for one, other in pairs:
        one.load_state_dict(other.state_dict())
    lengths, segments = torch.tensor([7, 4]), (torch.arange(7) > 2).long().expand(2, 7)
    text = (torch.arange(7) < lengths[:, None]).long()
    expected = theirs(IDS, attention_mask=text, token_type_ids=segments).last_hidden_state
    y = ours(IDS, segments=segments, mask=padding_mask(lengths, 7))
    assert_close(y, expected, **CLOSE)


def test_an_encoder_decoder_equals_pytorchs():
    ours = make(kind="encoder-decoder", norm_place="post", activation="relu", positions="none")
    theirs = nn.Transformer(16, 4, 2, 2, 64, 0.0, batch_first=True).eval()
    theirs.encoder.norm = theirs.decoder.norm = None  # PyTorch adds a last norm that the paper does not have
    for cross, mine, other in ((False, ours.encoder, theirs.encoder), (True, ours.stack, theirs.decoder)):
        for block, layer in zip(mine.blocks, other.layers, strict=True):
            put_block(block, layer, cross=cross)
    lengths = torch.tensor([7, 3])
    hidden = torch.arange(7) >= lengths[:, None]
    expected = theirs(
        ours.tokens(IDS), ours.tokens(HALF), tgt_mask=nn.Transformer.generate_square_subsequent_mask(4) < 0,
        src_key_padding_mask=hidden, memory_key_padding_mask=hidden,
    )  # fmt: skip
    mask = padding_mask(lengths, 7)
    assert_close(ours(HALF, source=IDS, memory_mask=mask), expected, **CLOSE)
    assert_close(ours(HALF, memory=ours.encode(IDS, mask), memory_mask=mask), expected, **CLOSE)


# --- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoder_does_not_see_what_comes_later(positions):
    model, other = make(positions=positions), IDS.clone()
    other[:, 5:] = 9
    assert_close(model(other)[:, :5], model(IDS)[:, :5], **CLOSE)
    assert (model(other)[:, 5:] - model(IDS)[:, 5:]).abs().max() > 1e-2


@pytest.mark.parametrize("positions", BOTH_WAYS)
def test_an_encoder_sees_everything(positions):
    model, other = make(positions=positions, kind="encoder"), IDS.clone()
    other[:, 6] = 9
    assert (model(other)[:, 0] - model(IDS)[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("order", [[3, 1, 0, 2, 6, 5, 4], [6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("positions", BOTH_WAYS)
def test_an_encoder_without_positions_alone_can_not_tell_orders_apart(positions, order):
    model, order = make(positions=positions, kind="encoder"), torch.tensor(order)
    gap = (model(IDS[:, order]) - model(IDS)[:, order]).abs().max()
    assert (gap < 1e-5) == (positions == "none")


@pytest.mark.parametrize(
    ("kind", "positions"), [("encoder", name) for name in BOTH_WAYS] + [("decoder", name) for name in POSITIONS]
)
def test_padding_in_front_does_not_matter_once_it_is_hidden_and_places_are_told(kind, positions):
    model = make(positions=positions, kind=kind)
    moved = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    seen = (torch.arange(10) >= 3) | torch.eye(10, dtype=torch.bool)  # padding sees itself, so as to see something
    places = (torch.arange(10) - 3).clamp(min=0) if positions in ("learned", "sinusoidal") else None
    assert_close(model(moved, mask=seen, places=places)[:, 3:], model(IDS), **CLOSE)


def test_places_may_differ_by_row():
    model = make(positions="learned")
    places = torch.stack([torch.arange(7), torch.arange(7) + 4])
    both = model(IDS, places=places)
    assert_close(both[:1], model(IDS[:1]), **CLOSE)
    assert_close(both[1:], model(IDS[1:], places=torch.arange(7) + 4), **CLOSE)
    assert (both[1] - model(IDS)[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_stepping_with_a_cache_equals_the_whole(positions, heads):
    model = make(positions=positions, n_kv_heads=heads)
    cache, steps = model.new_cache(), []
    for part in IDS.split([3, 1, 1, 2], dim=1):
        steps.append(model(part, cache=cache))
    assert_close(torch.cat(steps, dim=1), model(IDS), **CLOSE)
    assert [one.length for one in cache] == [7, 7]


@torch.no_grad()
def test_stepping_with_a_memory_equals_the_whole():
    model = make(kind="encoder-decoder", positions="rotary")
    memory, cache = model.encode(IDS), model.new_cache()
    steps = [model(part, memory=memory, cache=cache) for part in HALF.split(1, dim=1)]
    assert_close(torch.cat(steps, dim=1), model(HALF, source=IDS), **CLOSE)


@pytest.mark.parametrize("positions", POSITIONS)
def test_embeddings_take_the_place_of_tokens_and_stand_before_them(positions):
    model = make(positions=positions)
    assert_close(model(embeddings=model.tokens(IDS)), model(IDS), **CLOSE)
    assert_close(model(IDS[:, 3:], embeddings=model.tokens(IDS[:, :3])), model(IDS), **CLOSE)


def test_scaled_embeddings():
    plain, scaled = make(positions="none"), Transformer(config(positions="none", scale_embeddings=True)).eval()
    scaled.load_state_dict(plain.state_dict())
    assert_close(scaled(IDS), plain(embeddings=4 * plain.tokens(IDS)), **CLOSE)


# --- looking inside ------------------------------------------------------------------------------------------------

NAMES = ["embed.tokens", "embed.positions", "embed.out"]
BLOCK = ["attn.v", "attn.q", "attn.k", "attn.weights", "attn.heads", "attn.out", "ff.hidden", "ff.out", "out"]


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_trace_changes_nothing_and_holds_what_it_says(positions):
    model, trace = make(positions=positions, n_kv_heads=2), {}
    y = model(IDS, trace=trace)
    assert_close(y, model(IDS), **CLOSE)
    added = positions in ("learned", "sinusoidal")
    assert list(trace) == [name for name in NAMES if added or name != "embed.positions"] + [
        f"blocks.{i}.{name}" for i in (0, 1) for name in BLOCK
    ] + ["final"]
    assert trace["final"] is y
    assert trace["blocks.0.attn.weights"].shape == (2, 4, 7, 7)
    assert_close(trace["blocks.0.attn.weights"].sum(-1), torch.ones(2, 4, 7))
    assert trace["blocks.1.attn.k"].shape == (2, 2, 7, 4)
    assert trace["blocks.1.attn.heads"].shape == (2, 7, 4, 4)
    assert trace["blocks.1.ff.hidden"].shape == (2, 7, 64)
    found = trace["blocks.1.attn.heads"].flatten(2) @ model.stack.blocks[1].attn.out.weight.T
    assert_close(found + model.stack.blocks[1].attn.out.bias, trace["blocks.1.attn.out"], **CLOSE)


def test_a_trace_keeps_gradients():
    model, trace = make(), {}
    model(IDS, trace=trace)
    trace["blocks.1.attn.weights"].square().sum().backward()
    assert model.tokens.weight.grad.abs().sum() > 0


def test_both_halves_of_an_encoder_decoder_are_traced():
    model, trace = make(kind="encoder-decoder"), {}
    model(HALF, source=IDS, trace=trace)
    assert trace["encoder.blocks.1.attn.weights"].shape == (2, 4, 7, 7)
    assert trace["blocks.1.cross.weights"].shape == (2, 4, 4, 7)
    assert trace["blocks.1.attn.weights"].shape == (2, 4, 4, 4)
    assert_close(trace["encoder.final"], model.encode(IDS), **CLOSE)


def test_every_activation_can_be_replaced_and_matters():
    model, trace = make(), {}
    y = model(IDS, trace=trace)
    for name, x in trace.items():
        assert_close(model(IDS, edits={name: lambda _, x=x: x}), y, **CLOSE)  # its own value: nothing changes
        changed = model(IDS, edits={name: lambda x: x + torch.randn_like(x)})
        assert (changed - y).abs().max() > 1e-3, name


def test_weights_replaced_by_the_last_place_give_the_value_there():
    model, trace = make(n_kv_heads=2), {}

    def last(weights):
        return torch.zeros_like(weights).index_fill(-1, torch.tensor([6]), 1.0)

    model(IDS, trace=trace, edits={"blocks.0.attn.weights": last})
    values = trace["blocks.0.attn.v"].repeat_interleave(2, dim=1)[:, :, 6]  # (B, H, K)
    assert_close(trace["blocks.0.attn.heads"], values[:, None].expand(2, 7, 4, 4), **CLOSE)


def test_an_edit_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"there is no activation blocks\.7\.out; there are embed\.tokens, "):
        make()(IDS, edits={"blocks.7.out": torch.zeros_like})


# --- weights as they are drawn -------------------------------------------------------------------------------------


def test_weights_are_drawn_as_gpt2s():
    model = Transformer(config(d_model=128, n_layers=8, vocab_size=500))
    block = model.stack.blocks[3]
    for weight, std in (
        (model.tokens.weight, 0.02), (model.positions.table.weight, 0.02), (block.attn.q.weight, 0.02),
        (block.ff.up.weight, 0.02), (block.attn.out.weight, 0.005), (block.ff.down.weight, 0.005),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    both = Transformer(config(d_model=128, n_layers=3, kind="encoder-decoder"))
    for weight, times in ((both.stack.blocks[0].cross.out.weight, 9), (both.encoder.blocks[0].ff.down.weight, 6)):
        assert weight.std().item() == pytest.approx(0.02 / times**0.5, rel=0.05)
    assert block.attn.q.bias.abs().max() == 0
    assert torch.equal(block.ff_norm.weight, torch.ones(128))


def test_without_bias_there_is_none():
    model = Transformer(config(bias=False, activation="swiglu", kind="encoder-decoder"))
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == []


# --- at the door ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "arguments", "message"),
    [
        ({}, {}, "nothing to read: give ids, embeddings or both"),
        ({}, {"ids": torch.zeros(1, 13, dtype=torch.long)}, r"13 positions are more than context_length \(12\)"),
        ({}, {"ids": torch.tensor([[1, 11]])}, r"ids holds 11 at \(0, 1\): they run from 0 to 10"),
        ({}, {"ids": torch.tensor([[-1, 2]])}, r"ids holds -1 at \(0, 0\)"),
        ({}, {"ids": torch.zeros(1, 0, dtype=torch.long)}, r"whole numbers \(B, T\), none of them 0; .* \(1, 0\)"),
        ({}, {"ids": torch.zeros(3, dtype=torch.long)}, r"got shape \(3,\)"),
        ({}, {"ids": torch.zeros(1, 3)}, r"whole numbers .* torch.float32"),
        ({}, {"embeddings": torch.zeros(1, 3, 8)}, r"must be \(B, P, 16\) of torch.float32, got \(1, 3, 8\)"),
        ({}, {"embeddings": torch.zeros(1, 3, 16).double()}, r"embeddings must be .* of torch.float64"),
        ({}, {"ids": IDS, "embeddings": torch.zeros(1, 3, 16)}, "1 rows of embeddings do not fit 2 rows of ids"),
        ({}, {"ids": IDS, "places": torch.arange(6)}, r"places \(6,\) do not fit positions \(2, 7\)"),
        ({}, {"ids": IDS, "places": torch.arange(7) + 6}, r"places holds 12 at \(0, 6\): they run from 0 to 11"),
        ({}, {"ids": IDS.bool()}, "whole numbers .* torch.bool"),
        ({}, {"ids": IDS, "segments": torch.zeros_like(IDS)}, "has no segments"),
        ({"n_segments": 2}, {"ids": IDS, "segments": 2 * torch.ones_like(IDS)}, "segments holds 2 .* from 0 to 1"),
        ({"n_segments": 2}, {"ids": IDS, "segments": HALF * 0}, r"segments \(2, 4\) do not fit positions \(2, 7\)"),
        ({}, {"ids": IDS, "source": IDS}, "kind 'decoder' reads one sequence"),
        ({}, {"ids": IDS, "memory": torch.zeros(2, 7, 16)}, "kind 'decoder' reads one sequence"),
        (
            {"kind": "encoder-decoder"}, {"ids": IDS, "memory": torch.zeros(2, 7, 8)},
            r"a memory must be \(B, S, 16\), got shape \(2, 7, 8\)",
        ),
        ({"kind": "encoder-decoder"}, {"ids": IDS}, "wants either the source's ids or its memory"),
        ({"kind": "encoder-decoder"}, {"ids": IDS, "source": IDS, "memory": IDS}, "wants either"),
        ({"kind": "encoder"}, {"ids": IDS, "cache": []}, "an encoder sees all positions at once"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(parts, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**parts)(**arguments)


def test_a_model_without_an_encoder_of_its_own_does_not_encode():
    with pytest.raises(ValueError, match="kind 'encoder' has no encoder of its own"):
        make(kind="encoder").encode(IDS)


@torch.no_grad()
def test_a_cache_counts_towards_the_context():
    model = make()
    cache = model.new_cache()
    model(IDS, cache=cache)
    with pytest.raises(ValueError, match=r"14 positions are more than context_length \(12\)"):
        model(IDS, cache=cache)
    assert cache[0].length == 7


@torch.no_grad()
@pytest.mark.parametrize("spoil", ["one twice", "too many", "too few", "of two lengths", "none"])
def test_caches_that_are_not_the_models_are_refused(spoil):
    model = make()
    cache = model.new_cache()
    wrong = {
        "one twice": [cache[0]] * 2, "too many": [*cache, KVCache(12)], "too few": cache[:1], "none": [],
        "of two lengths": [cache[0], KVCache(12)],
    }[spoil]  # fmt: skip
    if spoil == "of two lengths":
        wrong[1].append(*torch.zeros(2, 2, 4, 3, 4))
    with pytest.raises(ValueError, match="a cache of its own for each of the 2 blocks"):
        model(IDS, cache=wrong)


@torch.no_grad()
@pytest.mark.parametrize("edit", ["blocks.9.out", "blocks.1.out"])
def test_a_refused_pass_leaves_the_caches_as_they_were(edit):
    model = make()
    cache = model.new_cache()
    model(IDS[:, :3], cache=cache)
    with pytest.raises(ValueError, match=r"no activation|makes shape"):
        model(IDS[:, 3:], cache=cache, edits={edit: lambda x: x[:1]})
    assert_close(model(IDS[:, 3:], cache=cache), model(IDS)[:, 3:], **CLOSE)


@torch.no_grad()
def test_a_refused_first_pass_leaves_empty_caches_that_take_any_batch():
    model = make()
    cache = model.new_cache()
    with pytest.raises(ValueError, match="no activation"):
        model(IDS, cache=cache, edits={"blocks.9.out": torch.zeros_like})
    assert_close(model(IDS[:1], cache=cache), model(IDS[:1]), **CLOSE)
