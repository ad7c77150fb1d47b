"""Mixtures against plain feed-forward parts and arithmetic by hand; experts chosen and merged."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bookformer.config import ModelConfig, TrainConfig
from bookformer.data import batches
from bookformer.experts import (
    DomainExperts,
    MixtureOfExperts,
    active_parameters,
    add_tasks,
    average,
    load_balance,
    mixture_loss,
    mixtures,
    routed,
    shares,
    with_experts,
)
from bookformer.generate import generate
from bookformer.heads import LanguageModel
from bookformer.layers import FeedForward
from bookformer.train import fit, next_token_loss

SIZES = {"vocab_size": 11, "context_length": 12, "d_model": 16, "n_heads": 4, "n_layers": 2}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IDS = torch.arange(24).reshape(2, 12) % 11


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(**parts):
    return LanguageModel(ModelConfig(**{**SIZES, **parts}))


def mixture(n_experts, k):
    config = ModelConfig(**SIZES)
    return MixtureOfExperts([FeedForward(config) for _ in range(n_experts)], 16, k=k)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_mixture_is_its_formula_position_by_position(k):
    moe, x = mixture(3, k), torch.randn(2, 5, 16)
    moe.router.weight.data *= 3
    expected = torch.zeros_like(x)
    for b, t in itertools.product(range(2), range(5)):
        p = (moe.router.weight @ x[b, t]).softmax(dim=0)
        best = sorted(range(3), key=lambda e: -p[e])[:k]
        scale = 1 if k == 1 else sum(p[e] for e in best)
        expected[b, t] = sum(p[e] / scale * moe.experts[e](x[b, t]) for e in best)
    assert_close(moe(x), expected, **CLOSE)


def test_only_the_chosen_experts_get_a_gradient_and_the_router_gets_one_with_a_single_expert_too():
    moe, x = mixture(3, 1), torch.randn(1, 4, 16)
    moe.router.weight.data = torch.zeros(3, 16)
    moe.router.weight.data[1] = nn.functional.normalize(x[0].sum(dim=0), dim=0)
    towards = x * (x @ moe.router.weight.data[1])[..., None].sign()  # expert 1 is the likeliest for all of them
    moe(towards).square().sum().backward()
    assert moe.experts[1].up.weight.grad.abs().max() > 0
    for other in (0, 2):
        assert moe.experts[other].up.weight.grad is None or moe.experts[other].up.weight.grad.abs().max() == 0
    assert moe.router.weight.grad.abs().max() > 0


def test_copies_with_scaled_gates_begin_as_the_model_that_was_there():
    plain = model()
    mixed = with_experts(plain, 4, k=2, copies=True, generator=generator())
    assert_close(mixed(IDS), plain(IDS), **CLOSE)
    first, second = mixtures(mixed)["blocks.0.ff"].experts[:2]
    first.up.weight.data += 1
    assert (second.up.weight - plain.body.stack.blocks[0].ff.up.weight).abs().max() == 0


def test_fresh_experts_differ_and_have_the_spread_that_was_there():
    plain = model(d_model=64)
    one, two = mixtures(with_experts(plain, 2, generator=generator()))["blocks.1.ff"].experts
    there = plain.body.stack.blocks[1].ff
    for name in ("up", "down"):
        a, b, before = (getattr(part, name).weight for part in (one, two, there))
        assert (a - b).abs().max() > 0
        assert (a - before).abs().max() > 0
        assert a.std().item() == pytest.approx(before.std().item(), rel=0.05)
    assert one.up.bias.abs().max() == 0
    assert there.down.weight.std() < 0.7 * there.up.weight.std()


def test_a_mixture_comes_from_its_generator_and_the_model_stays():
    plain = model()
    before = {name: t.clone() for name, t in plain.state_dict().items()}
    one, two, other = (with_experts(plain, 3, generator=generator(s)) for s in (1, 1, 2))
    assert all(torch.equal(one.state_dict()[name], t) for name, t in two.state_dict().items())
    name = "body.stack.blocks.0.ff.router.weight"
    assert (one.state_dict()[name] - other.state_dict()[name]).abs().max() > 0
    assert not mixtures(plain)
    assert all(torch.equal(plain.state_dict()[name], t) for name, t in before.items())


def test_the_blocks_asked_for_and_no_others():
    mixed = with_experts(model(n_layers=3), 2, blocks=[1], generator=generator())
    assert list(mixtures(mixed)) == ["blocks.1.ff"]
    assert list(mixtures(with_experts(model(n_layers=3), 2, generator=generator()))) == [
        f"blocks.{i}.ff" for i in range(3)
    ]


def test_active_parameters_by_hand():
    plain = model(bias=False)
    part = 2 * 16 * 64  # of a feed-forward part
    total = sum(p.numel() for p in plain.parameters())
    assert active_parameters(plain) == total
    for k in (1, 2):
        mixed = with_experts(plain, 4, k=k, generator=generator())
        assert active_parameters(mixed) == total + 2 * (4 * 16 + (k - 1) * part)
        assert sum(p.numel() for p in mixed.parameters()) == total + 2 * (4 * 16 + 3 * part)


def test_what_the_router_says_has_a_name_and_can_be_replaced():
    mixed = with_experts(model(), 3, generator=generator())
    trace = {}
    plain = mixed(IDS, trace=trace)
    logits, said = routed(mixed, IDS)
    assert_close(logits, plain, **CLOSE)
    assert list(said) == ["blocks.0.ff", "blocks.1.ff"]
    for name, p in said.items():
        assert p.shape == (2, 12, 3)
        assert_close(p, trace[f"{name}.router"], **CLOSE)
        assert_close(p.sum(dim=-1), torch.ones(2, 12), **CLOSE)
    chosen = said["blocks.0.ff"].argmax(dim=-1)
    for e in range(3):
        assert trace.get(f"blocks.0.ff.experts.{e}.hidden", torch.zeros(0, 64)).shape == ((chosen == e).sum(), 64)
    alone = {f"{name}.router": lambda p: torch.tensor([0.0, 1.0, 0.0]).expand_as(p) for name in said}
    by_hand = model()
    by_hand.load_state_dict(
        {
            key.replace(".experts.1", ""): t
            for key, t in mixed.state_dict().items()
            if "router" not in key and ".experts.0" not in key and ".experts.2" not in key
        }
    )
    assert_close(mixed(IDS, edits=alone), by_hand(IDS), **CLOSE)


def test_shares_and_balance_by_hand():
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]], [[0.1, 0.2, 0.7], [0.4, 0.35, 0.25]]])
    assert_close(shares(p), torch.tensor([0.75, 0.0, 0.25]))
    assert_close(shares(p, 2), torch.tensor([3 / 8, 4 / 8, 1 / 8]))
    mean = torch.tensor([1.6, 1.25, 1.15]) / 4
    assert_close(load_balance(p), 3 * (0.75 * mean[0] + 0.25 * mean[2]))
    assert_close(load_balance(p, 2), 3 * (3 / 8 * mean[0] + 4 / 8 * mean[1] + 1 / 8 * mean[2]))


def test_balance_is_one_when_even_and_the_number_of_experts_when_one_has_all():
    even = torch.full((5, 4), 0.01) + 0.96 * torch.eye(4)[[0, 1, 2, 3, 0]]
    assert load_balance(even[:4]).item() == pytest.approx(1)
    assert load_balance(torch.eye(4)[[2, 2, 2]]).item() == pytest.approx(4)


def test_the_balance_loss_pushes_down_the_expert_that_has_too_much():
    scores = torch.tensor([[1.0, 0.0, 0.0]] * 6, requires_grad=True)
    load_balance(scores.softmax(dim=-1)).backward()
    assert (scores.grad[:, 0] > 0).all()  # a step against it takes from expert 0
    assert (scores.grad[:, 1:] < 0).all()


def test_the_loss_of_a_mixture_is_both_parts_and_both_reach_the_router():
    mixed, batch = with_experts(model(), 3, generator=generator()), (IDS[:, :-1], IDS[:, 1:])
    _, said = routed(mixed, batch[0])
    uneven = sum(load_balance(p) for p in said.values()) / 2
    assert_close(mixture_loss(0.5)(mixed, batch), next_token_loss(mixed, batch) + 0.5 * uneven, **CLOSE)
    gradients = []
    for weight in (0.0, 0.5):
        mixed.zero_grad()
        mixture_loss(weight)(mixed, batch).backward()
        gradients.append(mixtures(mixed)["blocks.0.ff"].router.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).abs().max() > 1e-7


def test_a_mixture_learns_and_writes_with_a_cache_as_without():
    ids = torch.arange(400) % 11
    mixed = with_experts(model(positions="rotary"), 3, generator=generator())
    config = TrainConfig(steps=80, batch_size=8, learning_rate=1e-2)
    draw = lambda g: batches(ids, context_length=8, batch_size=8, generator=g)  # noqa: E731
    losses = [record.loss for record in fit(mixed, draw, config, loss=mixture_loss(), progress=False)]
    assert losses[-1] < 0.2 < 2 < losses[0]
    written = generate(mixed, ids[None, :3], 8, temperature=0)
    assert written[0].tolist() == [i % 11 for i in range(11)]


def test_a_prompt_goes_to_the_expert_that_finds_it_likeliest():
    models = {name: model() for name in ("a", "b", "c")}
    experts = DomainExperts(models)
    losses = experts.prompt_losses(IDS)
    for e, expert in enumerate(models.values()):
        for b in range(2):
            expected = next_token_loss(expert, (IDS[b : b + 1, :-1], IDS[b : b + 1, 1:]))
            assert_close(losses[b, e], expected, **CLOSE)
    assert experts.choose(IDS) == ["abc"[row.index(min(row))] for row in losses.tolist()]
    assert not losses.requires_grad
    assert list(experts) == ["a", "b", "c"]
    assert len(experts) == 3
    assert experts["b"] is models["b"]


def test_averages_and_sums_of_changes_by_hand():
    base = model()
    offspring = {name: model() for name in ("medicine", "law")}
    merged, summed = average(offspring), add_tasks(base, offspring, 0.3)
    for name, start in base.state_dict().items():
        one, two = (m.state_dict()[name] for m in offspring.values())
        assert_close(merged.state_dict()[name], (one + two) / 2, **CLOSE)
        assert_close(summed.state_dict()[name], start + 0.3 * (one - start + two - start), **CLOSE)
    assert_close(add_tasks(base, offspring, 0.5)(IDS), merged(IDS), **CLOSE)
    assert_close(add_tasks(base, {"law": offspring["law"]}, 1.0)(IDS), offspring["law"](IDS), **CLOSE)
    assert (merged(IDS) - offspring["medicine"](IDS)).abs().max() > 1e-3
    assert_close(average({"law": offspring["law"]})(IDS), offspring["law"](IDS))


def test_merging_leaves_what_was_merged():
    models = {"a": model(), "b": model()}
    before = {name: {n: t.clone() for n, t in m.state_dict().items()} for name, m in models.items()}
    average(models)
    add_tasks(models["a"], models, 2.0)
    for name, m in models.items():
        assert all(torch.equal(t, before[name][n]) for n, t in m.state_dict().items())


@pytest.mark.parametrize("k", [0, 5])
def test_more_experts_for_a_token_than_there_are(k):
    with pytest.raises(ValueError, match=rf"k \({k}\) must be at least 1 and at most the number of experts \(4\)"):
        with_experts(model(), 4, k=k, generator=generator())


def test_a_mixture_of_nothing_or_in_no_block():
    with pytest.raises(ValueError, match="n_experts must be at least 1, got 0"):
        with_experts(model(), 0, generator=generator())
    with pytest.raises(ValueError, match="there is no block 2: they run from 0 to 1"):
        with_experts(model(), 2, blocks=[0, 2], generator=generator())


def test_a_loss_for_mixtures_wants_a_mixture_and_a_weight():
    with pytest.raises(ValueError, match="the model has no mixture of experts"):
        mixture_loss()(model(), (IDS[:, :-1], IDS[:, 1:]))
    with pytest.raises(ValueError, match=r"balance \(-0.1\) must be at least 0"):
        mixture_loss(-0.1)


def test_an_expert_for_a_domain_that_is_not_there():
    experts = DomainExperts({"medicine": model(), "law": model()})
    with pytest.raises(ValueError, match="there is no expert for 'finance'; there are experts for medicine, law"):
        experts["finance"]
    with pytest.raises(ValueError, match="there are no experts: give at least one"):
        DomainExperts({})


def test_a_prompt_of_one_token():
    with pytest.raises(ValueError, match=r"at least two tokens each, got shape \(2, 1\)"):
        DomainExperts({"a": model()}).choose(IDS[:, :1])


def test_models_of_different_shapes_are_named():
    small, large, deep = model(), model(d_model=32), model(n_layers=3)
    wrong = r"law can't be merged with medicine: body\.\S+ has shape \(\d+,.*\) there, and \(\d+,.*\) here"
    with pytest.raises(ValueError, match=wrong):
        average({"medicine": small, "law": large})
    with pytest.raises(ValueError, match=r"law can't be merged with the base: .*blocks.2.* has shape \(.*, and None"):
        add_tasks(small, {"medicine": model(), "law": deep}, 1.0)
    for merge in (lambda: average({}), lambda: add_tasks(small, {}, 1.0)):
        with pytest.raises(ValueError, match="there is nothing to merge: give at least one model"):
            merge()
