"""Language models against transformers' GPT-2, Llama and BERT, given the same weights; the other heads by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bookformer.config import ModelConfig
from bookformer.heads import Classifier, LanguageModel, MaskedLanguageModel, RewardModel, SpanReader, ValueModel
from bookformer.transformer import Transformer

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


def berts_weights(state, layers):
    """BERT's weights under our names."""
    names = {
        "body.tokens.weight": "bert.embeddings.word_embeddings.weight",
        "body.positions.table.weight": "bert.embeddings.position_embeddings.weight",
        "body.segments.weight": "bert.embeddings.token_type_embeddings.weight",
        "bias": "cls.predictions.bias",
    }
    parts = {"body.embed_norm": "bert.embeddings.LayerNorm", "hidden": "cls.predictions.transform.dense"}
    parts |= {"norm": "cls.predictions.transform.LayerNorm", "pool": "bert.pooler.dense"}
    parts["follows"] = "cls.seq_relationship"
    for i in range(layers):
        for ours, theirs in (
            ("attn.q", "attention.self.query"), ("attn.k", "attention.self.key"), ("attn.v", "attention.self.value"),
            ("attn.out", "attention.output.dense"), ("attn_norm", "attention.output.LayerNorm"),
            ("ff.up", "intermediate.dense"), ("ff.down", "output.dense"), ("ff_norm", "output.LayerNorm"),
        ):  # fmt: skip
            parts[f"body.stack.blocks.{i}.{ours}"] = f"bert.encoder.layer.{i}.{theirs}"
    names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}
    weights = {ours: state[theirs] for ours, theirs in names.items()}
    for kind in ("weight", "bias"):  # theirs has "follows" first
        weights[f"follows.{kind}"] = weights[f"follows.{kind}"].flip(0)
    return weights


@pytest.mark.parametrize("number", range(5))
def test_bert(number):
    d, heads, _, layers, ff = draw(number)
    theirs = BertForPreTraining(
        BertConfig(
            vocab_size=11, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ff,
            max_position_embeddings=12, type_vocab_size=2, layer_norm_eps=1e-3,
        )
    ).eval()  # fmt: skip
    shake(theirs)
    ours = MaskedLanguageModel(
        ModelConfig(
            vocab_size=11, context_length=12, d_model=d, n_heads=heads, n_layers=layers, d_ff=ff, kind="encoder",
            norm_place="post", norm_eps=1e-3, n_segments=2, norm_embeddings=True,
        )
    )  # fmt: skip
    ours.load_state_dict(berts_weights(theirs.state_dict(), layers))
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    real = torch.tensor([[True] * 7, [True] * 6 + [False]])
    tokens, follows = ours(IDS, segments=segments, mask=real[:, None, None, :])
    wanted = theirs(IDS, token_type_ids=segments, attention_mask=real.long())
    assert_close(tokens[real], wanted.prediction_logits[real], **CLOSE)
    assert_close(follows, wanted.seq_relationship_logits.flip(1), **CLOSE)


def encoder(**changes):
    settings = {"vocab_size": 11, "context_length": 12, "kind": "encoder", "positions": "rotary"}
    return Transformer(ModelConfig(**settings | changes))


def test_a_masked_language_model_sees_both_sides():
    with pytest.raises(ValueError, match="kind must be 'encoder', got 'decoder'"):
        MaskedLanguageModel(ModelConfig(vocab_size=11, context_length=12))
    model = MaskedLanguageModel(encoder(n_segments=2).config)
    changed = IDS.clone()
    changed[:, -1] = 9
    assert not torch.allclose(model(IDS)[0][:, 0], model(changed)[0][:, 0])


def test_fresh_heads_guess_about_evenly():
    model = MaskedLanguageModel(encoder().config)
    tokens, follows = model(IDS)
    assert (tokens.softmax(-1) - 1 / 11).abs().max() < 0.1
    assert (follows.softmax(-1) - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(
    ("reads", "vector"), [("first", lambda x: x[0]), ("last", lambda x: x[4]), ("mean", lambda x: x[:5].mean(0))]
)
def test_what_a_classifier_reads(reads, vector):
    model = Classifier(encoder(), 3, reads=reads)
    shake(model)
    ids, real = IDS.clone(), torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    with torch.no_grad():
        vectors = model.body(ids[:1, :5])[0]  # (5, D): the text alone, without its padding
        assert_close(model(ids, real)[0], model.out(vector(vectors)), **CLOSE)
        assert_close(model(ids[:, :5]), model(ids[:, :5], torch.ones(2, 5, dtype=torch.bool)), **CLOSE)


@pytest.mark.parametrize(
    "head", [lambda body: Classifier(body, 3, reads="mean"), lambda body: Classifier(body, 2, reads="last"),
             SpanReader, RewardModel]
)  # fmt: skip
def test_what_stands_in_the_padding_changes_nothing(head):
    model = head(encoder())
    shake(model)
    real = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    other = IDS.clone()
    other[0, 5:] = 9
    assert_close(model(IDS, real), model(other, real), **CLOSE)
    assert not torch.equal(torch.as_tensor(model(IDS)[0]), torch.as_tensor(model(other)[0]))


def test_a_span_begins_and_ends_in_the_text():
    model = SpanReader(encoder())
    shake(model)
    real = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    first, last = model(IDS, real)
    assert torch.equal(first.isinf(), ~real)
    assert torch.equal(last.isinf(), ~real)
    with torch.no_grad():
        logits = model.out(model.body(IDS[1:]))[0]  # (7, 2)
    assert_close(first[1], logits[:, 0], **CLOSE)
    assert_close(last[1], logits[:, 1], **CLOSE)


def test_a_reward_is_read_from_the_last_position_of_a_decoder():
    model = RewardModel(encoder(kind="decoder"))
    shake(model)
    real = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    rewards = model(IDS, real)
    assert rewards.shape == (2,)
    with torch.no_grad():
        for row, length in ((0, 5), (1, 7)):
            vector = model.score.body(IDS[row : row + 1, :length])[0, -1]
            assert_close(rewards[row], model.score.out(vector)[0], **CLOSE)


def test_a_value_is_read_from_each_position_and_sees_nothing_of_what_comes():
    model = ValueModel(encoder(kind="decoder"))
    shake(model)
    values = model(IDS)
    assert values.shape == (2, 7)
    with torch.no_grad():
        for row, length in ((0, 5), (1, 7), (1, 1)):
            vector = model.body(IDS[row : row + 1, :length])[0, -1]
            assert_close(values[row, length - 1], model.out(vector)[0], **CLOSE)
    for kind in ("encoder", "encoder-decoder"):
        with pytest.raises(ValueError, match=f"kind must be 'decoder', got '{kind}'"):
            ValueModel(Transformer(ModelConfig(vocab_size=11, context_length=12, kind=kind)))


def test_what_the_other_heads_pass_on():
    model, segments = Classifier(encoder(n_segments=2), 3, reads="first"), torch.ones_like(IDS)
    trace = {}
    assert not torch.allclose(model(IDS, segments=segments, trace=trace), model(IDS))
    assert "blocks.1.out" in trace


def test_heads_that_make_no_sense():
    both = Transformer(ModelConfig(vocab_size=11, context_length=12, kind="encoder-decoder"))
    with pytest.raises(ValueError, match="n_classes must be at least 1, got 0"):
        Classifier(encoder(), 0, reads="mean")
    with pytest.raises(ValueError, match="reads is one of first, last, mean; got 'middle'"):
        Classifier(encoder(), 2, reads="middle")
    for head in (SpanReader, RewardModel, lambda body: Classifier(body, 2, reads="mean")):
        with pytest.raises(ValueError, match="reads one sequence, and an encoder-decoder takes two"):
            head(both)


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (torch.ones(2, 6, dtype=torch.bool), r"real must be bool \(2, 7\), got torch.bool \(2, 6\)"),
        (torch.ones(2, 7), r"real must be bool \(2, 7\), got torch.float32"),
        (torch.tensor([[False] + [True] * 6] * 2), "padding stands at the end"),
        (torch.tensor([[True, False] + [True] * 5] * 2), "padding stands at the end"),
        (torch.tensor([[False] * 7, [True] * 7]), "no text is all padding"),
    ],
)
def test_padding_that_makes_no_sense(real, message):
    with pytest.raises(ValueError, match=message):
        SpanReader(encoder())(IDS, real)
