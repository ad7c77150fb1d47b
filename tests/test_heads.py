"""Language models against transformers' GPT-2 and Llama, given the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bookformer.config import ModelConfig
from bookformer.heads import LanguageModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shake(model):
    """Make every number matter: no zeros, no ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def draw(seed):
    """Random sizes: d_model, heads, key heads, layers, width of the feed-forward part."""
    generator = torch.Generator().manual_seed(seed)
    d_head, groups, kv_heads, layers = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(4))
    heads = groups * kv_heads
    return 2 * d_head * heads, heads, kv_heads, layers, 8 * layers + 4


@pytest.mark.parametrize("number", range(5))
def test_gpt2(number):
    d, heads, _, layers, ff = draw(number)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_positions=12, n_embd=d, n_layer=layers, n_head=heads, n_inner=ff)
    ).eval()
    shake(theirs)
    ours = LanguageModel(
        ModelConfig(
            vocab_size=11, context_length=12, d_model=d, n_heads=heads, n_layers=layers, d_ff=ff, activation="gelu_tanh"
        )
    )
    state, weights = theirs.transformer.state_dict(), {}
    weights["body.tokens.weight"], weights["body.positions.table.weight"] = state["wte.weight"], state["wpe.weight"]
    for kind in ("weight", "bias"):
        weights[f"body.stack.norm.{kind}"] = state[f"ln_f.{kind}"]
        for i in range(layers):
            us, them = f"body.stack.blocks.{i}", f"h.{i}"
            weights[f"{us}.attn_norm.{kind}"] = state[f"{them}.ln_1.{kind}"]
            weights[f"{us}.ff_norm.{kind}"] = state[f"{them}.ln_2.{kind}"]
            for name, part in zip("qkv", state[f"{them}.attn.c_attn.{kind}"].split(d, dim=-1), strict=True):
                weights[f"{us}.attn.{name}.{kind}"] = part.t()  # GPT-2 keeps its matrices the other way round
            for mine, other in (("attn.out", "attn.c_proj"), ("ff.up", "mlp.c_fc"), ("ff.down", "mlp.c_proj")):
                weights[f"{us}.{mine}.{kind}"] = state[f"{them}.{other}.{kind}"].t()
    ours.load_state_dict(weights)
    assert_close(ours(IDS), theirs(IDS).logits, **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("number", range(5))
def test_llama(number, tied):
    d, heads, kv_heads, layers, ff = draw(number)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ff,
            num_key_value_heads=kv_heads, max_position_embeddings=12, rms_norm_eps=1e-6, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ).eval()  # fmt: skip
    shake(theirs)
    ours = LanguageModel(
        ModelConfig(
            vocab_size=11, context_length=12, d_model=d, n_heads=heads, n_kv_heads=kv_heads, n_layers=layers, d_ff=ff,
            positions="rotary", rotary_base=500.0, norm="rms", norm_eps=1e-6, activation="swiglu", bias=False,
            tie_embeddings=tied,
        )
    )  # fmt: skip
    state, weights = theirs.state_dict(), {}

    def pairs(weight):
        """Llama turns number i with number i + K/2; we turn neighbours."""
        return weight.unflatten(0, (-1, 2, d // heads // 2)).transpose(1, 2).flatten(0, 2)

    weights["body.tokens.weight"] = state["model.embed_tokens.weight"]
    weights["body.stack.norm.weight"] = state["model.norm.weight"]
    if not tied:
        weights["out.weight"] = state["lm_head.weight"]
    for i in range(layers):
        us, them = f"body.stack.blocks.{i}", f"model.layers.{i}"
        for mine, other in (
            ("attn_norm", "input_layernorm"), ("ff_norm", "post_attention_layernorm"), ("attn.v", "self_attn.v_proj"),
            ("attn.out", "self_attn.o_proj"), ("ff.gate", "mlp.gate_proj"), ("ff.up", "mlp.up_proj"),
            ("ff.down", "mlp.down_proj"),
        ):  # fmt: skip
            weights[f"{us}.{mine}.weight"] = state[f"{them}.{other}.weight"]
        for name in "qk":
            weights[f"{us}.attn.{name}.weight"] = pairs(state[f"{them}.self_attn.{name}_proj.weight"])
    ours.load_state_dict(weights)
    assert_close(ours(IDS), theirs(IDS).logits, **CLOSE)


def test_tied_tables_are_one():
    config = ModelConfig(vocab_size=11, context_length=12)
    model = LanguageModel(config)
    assert [name for name, x in model.named_parameters() if x.shape == (11, 64)] == ["body.tokens.weight"]
    assert_close(model(IDS), model.body(IDS) @ model.body.tokens.weight.T)
    own = LanguageModel(ModelConfig(vocab_size=11, context_length=12, tie_embeddings=False))
    assert own.out.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert_close(own(IDS), own.body(IDS) @ own.out.weight.T)


def test_what_the_body_takes_is_passed_on():
    model, trace = LanguageModel(ModelConfig(vocab_size=11, context_length=12)).eval(), {}
    model(IDS, trace=trace)
    assert "blocks.1.out" in trace
    with torch.no_grad():
        cache = model.new_cache()
        steps = [model(part, cache=cache) for part in IDS.split(1, dim=1)]
        assert_close(torch.cat(steps, dim=1), model(IDS), **CLOSE)


def test_a_fresh_model_guesses_about_evenly():
    model = LanguageModel(ModelConfig(vocab_size=50, context_length=12))
    ids = torch.randint(50, (8, 12))
    loss = F.cross_entropy(model(ids).flatten(0, 1), torch.randint(50, (96,)))
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item(), abs=0.1)
