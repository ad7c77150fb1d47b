"""LoRA against peft on the same weights, by its laws, and by hand; soft prompts against hard ones."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bookformer.adapt import LoRALinear, SoftPrompt, add_lora, merge_lora
from bookformer.config import ModelConfig
from bookformer.heads import Classifier, LanguageModel
from bookformer.transformer import Transformer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return Classifier(Transformer(ModelConfig(vocab_size=11, context_length=8, kind="encoder")), 3, reads="mean")


def shake(model):
    """Train it a little, in effect: the matrices B are zero no more."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoRALinear):
                module.b += torch.randn_like(module.b)


@pytest.mark.parametrize(("rank", "alpha", "bias"), [(1, 1, True), (3, 12, False), (8, 4, True)])
def test_peft(rank, alpha, bias):
    net = nn.Sequential(nn.Linear(12, 10, bias=bias), nn.Tanh(), nn.Linear(10, 9, bias=bias))
    ours = copy.deepcopy(net)
    add_lora(ours, ["0", "2"], rank, alpha)
    shake(ours)
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"]))
    with torch.no_grad():
        for name in ("0", "2"):
            layer = theirs.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(ours.get_submodule(name).a)
            layer.lora_B["default"].weight.copy_(ours.get_submodule(name).b)
    x = torch.randn(4, 12)
    assert_close(ours(x), theirs(x), **CLOSE)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name in ("0", "2"):
        layer = theirs.base_model.model.get_submodule(name)
        assert_close(ours.get_submodule(name).a.grad, layer.lora_A["default"].weight.grad, atol=1e-3, rtol=1e-5)
        assert_close(ours.get_submodule(name).b.grad, layer.lora_B["default"].weight.grad, atol=1e-3, rtol=1e-5)
    assert_close(merge_lora(ours)(x), theirs.merge_and_unload()(x), **CLOSE)


def test_a_is_drawn_as_peft_draws_it():
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(400, 300)), peft.LoraConfig(r=8, target_modules=["0"]))
    theirs = theirs.base_model.model.get_submodule("0").lora_A["default"].weight
    ours = LoRALinear(nn.Linear(400, 300), 8, 16).a
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_by_hand():
    layer = nn.Linear(2, 2)
    lora = LoRALinear(layer, 1, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.copy_(torch.tensor([0.0, 1.0]))
        lora.a.copy_(torch.tensor([[1.0, 2.0]]))
        lora.b.copy_(torch.tensor([[1.0], [-1.0]]))
    # W x + b = (1, 2); A x = 1 + 2 = 3; 3 / 1 times B times 3 = (9, -9)
    assert_close(lora(torch.tensor([1.0, 1.0])), torch.tensor([10.0, -7.0]))


def test_at_first_nothing_is_added(model):
    before = model(IDS)
    add_lora(model, ["attn.q", "ff.up"], 2)
    assert torch.equal(model(IDS), before)
    shake(model)
    assert not torch.allclose(model(IDS), before, atol=1e-3)


def test_which_layers_get_it(model):
    found = add_lora(model, ["attn.q", "attn.v"], 2)
    assert found == [f"body.stack.blocks.{i}.attn.{part}" for i in range(2) for part in "qv"]
    assert [name for name, m in model.named_modules() if isinstance(m, LoRALinear)] == found
    assert all(model.get_submodule(name).scale == 2 for name in found)  # alpha is twice the rank


def test_nothing_else_is_trained(model):
    found = add_lora(model, ["attn.q"], 2)
    model.out.requires_grad_()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in found for part in "ab"} | {"out.weight", "out.bias"}
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # in the first step, A has no gradient yet: B is zero
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IDS), torch.tensor([0, 2])).backward()
        optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == trained


@pytest.mark.parametrize("bias", [True, False])
def test_merged_weights_give_the_same(bias):
    config = ModelConfig(vocab_size=11, context_length=8, kind="encoder", bias=bias)
    model = Classifier(Transformer(config), 3, reads="mean")
    names = {name for name, _ in model.named_parameters()}
    add_lora(model, ["q", "ff.down"], 2, 5)
    shake(model)
    wanted = model(IDS)
    assert merge_lora(model) is model
    assert_close(model(IDS), wanted, **CLOSE)
    assert {name for name, _ in model.named_parameters()} == names
    assert all(p.requires_grad for p in model.parameters())


def test_the_layer_that_was_merged_stays():
    layer = nn.Linear(3, 3)
    lora, weight = LoRALinear(layer, 1, 1), layer.weight.clone()
    nn.init.ones_(lora.b)
    assert not torch.equal(lora.merged().weight, weight)
    assert torch.equal(layer.weight, weight)


def test_the_same_generator_draws_the_same(model):
    other = copy.deepcopy(model)
    for one in (model, other):
        add_lora(one, ["attn.q"], 2, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_layer_that_does_not_exist(model):
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(
        ValueError, match=r"is called query; there are attn\.q, attn\.k, attn\.v, attn\.out, ff\.up, ff\.down"
    ):
        add_lora(model, ["attn.q", "query"], 2)
    with pytest.raises(ValueError, match=r"is called tn\.q; there are"):
        add_lora(model, ["tn.q"], 2)
    with pytest.raises(ValueError, match="is called nothing; there are"):
        add_lora(model, [], 2)
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_the_layer_does_not_have(rank):
    with pytest.raises(ValueError, match=rf"rank \({rank}\) must be from 1 to 3"):
        LoRALinear(nn.Linear(3, 5), rank, 1)
    with pytest.raises(ValueError, match=r"alpha \(0\) must be positive"):
        LoRALinear(nn.Linear(3, 5), 1, 0)


def test_lora_twice_or_never(model):
    with pytest.raises(ValueError, match="Classifier has no LoRA to merge"):
        merge_lora(model)
    add_lora(model, ["attn.q"], 2)
    with pytest.raises(ValueError, match="has LoRA already: merge it first"):
        add_lora(model, ["attn.v"], 2)


# Soft prompts

PROMPT = torch.tensor([3, 1, 4])


def writer(**changes):
    config = {"vocab_size": 11, "context_length": 8, "d_model": 16, "n_heads": 2, **changes}
    model = LanguageModel(ModelConfig(**config)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)
    return model


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rotary"}, {"scale_embeddings": True}, {"tie_embeddings": False}], ids=str
)
def test_before_training_a_soft_prompt_is_the_hard_one(changes):
    model = writer(**changes)
    hard = model(torch.cat([PROMPT.expand(2, -1), IDS], dim=1))[:, 3:]
    soft = SoftPrompt(model, PROMPT)(IDS)
    assert soft.shape == (2, 5, 11)
    assert_close(soft, hard, **CLOSE)
    assert not torch.allclose(soft, model(IDS), atol=1e-2)


def test_a_soft_prompt_alone_is_trained():
    model = writer()
    before = copy.deepcopy(model.state_dict())
    soft = SoftPrompt(model, PROMPT)
    assert [name for name, p in soft.named_parameters() if p.requires_grad] == ["vectors"]
    optimizer = torch.optim.SGD([p for p in soft.parameters() if p.requires_grad], lr=0.1)
    first = soft(IDS).square().mean()
    first.backward()
    assert soft.vectors.grad.abs().amax(dim=1).min() > 0
    optimizer.step()
    assert soft(IDS).square().mean() < first
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(soft.vectors, model.body.tokens.weight[PROMPT])


def test_what_is_before_a_text_says_nothing_about_what_comes_after_it():
    soft = SoftPrompt(writer(), PROMPT)
    changed = IDS.clone()
    changed[:, 3] += 1
    assert_close(soft(changed)[:, :3], soft(IDS)[:, :3], **CLOSE)
    assert not torch.allclose(soft(changed)[:, 3:], soft(IDS)[:, 3:], atol=1e-2)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2]], r"one row of tokens \(P,\), at least one; got \(1, 2\)"),
        ([], r"got \(0,\)"),
        ([1] * 8, r"a soft prompt of 8 vectors leaves no room for a text in context_length \(8\)"),
        ([1, 11], "the prompt holds tokens from 1 to 11: they run from 0 to 10"),
        ([-1, 2], "from -1 to 2"),
    ],
)
def test_a_soft_prompt_that_makes_no_sense(ids, message):
    model = writer()
    with pytest.raises(ValueError, match=message):
        SoftPrompt(model, torch.tensor(ids, dtype=torch.long))
    assert all(p.requires_grad for p in model.parameters())


def test_a_soft_prompt_is_for_a_decoder_and_must_fit_with_its_text():
    with pytest.raises(ValueError, match="before the text of a decoder; this model is of kind 'encoder'"):
        SoftPrompt(writer(kind="encoder"), PROMPT)
    soft = SoftPrompt(writer(), PROMPT)
    assert soft(IDS).shape == (2, 5, 11)
    with pytest.raises(ValueError, match=r"9 positions are more than context_length \(8\)"):
        soft(torch.ones(1, 6, dtype=torch.long))
