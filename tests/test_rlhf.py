"""Rounds of PPO and GRPO: what is sampled is what is learnt from, and a reward that can be learnt is learnt."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bookformer import rlhf
from bookformer.advantages import (
    generalised_advantages,
    group_advantages,
    grpo_loss,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from bookformer.config import ModelConfig, TrainConfig
from bookformer.generate import generate, next_token_probabilities
from bookformer.heads import LanguageModel, RewardModel, ValueModel
from bookformer.preferences import log_probabilities
from bookformer.rlhf import FeedbackConfig, grpo, ppo, sample
from bookformer.train import fit

SIZES = {"vocab_size": 7, "context_length": 12, "d_model": 16, "n_heads": 2, "n_layers": 1}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPTS = torch.tensor([[1, 2, 3], [3, 2, 1], [4, 4, 5], [6, 1, 2]])
CONFIG = FeedbackConfig(texts=16, length=6, epochs=2, group=4)
TRAIN = TrainConfig(steps=8, batch_size=8, learning_rate=3e-3, weight_decay=0.0, warmup_fraction=0.0)  # two rounds


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def language_model(**parts):
    model = LanguageModel(ModelConfig(**{**SIZES, **parts}))
    for p in model.parameters():
        p.data += 0.15 * torch.randn_like(p)
    return model


def value_model(**parts):
    return ValueModel(language_model(**parts).body)


def height(ids, real):
    """The mean of the answer's ids, over 6: at most 1, and near a half for a policy that knows nothing."""
    return (ids * real)[:, 3:].sum(dim=1) / real[:, 3:].sum(dim=1) / 6


def learn(method, policy, reward=height, prompts=PROMPTS, config=CONFIG, train=TRAIN, reference=None, **options):
    reference = copy.deepcopy(policy) if reference is None else reference
    if method is ppo:
        method = partial(ppo, value=value_model()) if "value" not in options else ppo
        return method(
            policy=policy,
            reference=reference,
            reward=reward,
            prompts=prompts,
            config=config,
            train=train,
            progress=False,
            **options,
        )
    return method(policy, reference, reward, prompts, config, train, progress=False, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_sampled_has_the_log_probabilities_it_was_drawn_with(temperature):
    """Token by token, as `generate` draws: the mask says where; a mask shifted by one would say otherwise."""
    policy = language_model(dropout=0.5)
    texts, log_p = sample(policy, PROMPTS, 6, generator=generator(), temperature=temperature, stop=3)
    assert torch.equal(texts.ids, generate(policy, PROMPTS, 6, generator=generator(), temperature=temperature, stop=3))
    policy.eval()
    for row, ids in enumerate(texts.ids):
        expected = []  # places in (T - 1), with what was drawn there
        for t in range(3, len(ids)):
            if 3 in ids[3:t]:
                break
            p = next_token_probabilities(policy(ids[None, :t])[0, -1], temperature=temperature)
            expected.append((t - 1, p[ids[t]].log().item()))
        assert texts.written[row].nonzero()[:, 0].tolist() == [place for place, _ in expected]
        assert_close(log_p[row, texts.written[row]], torch.tensor([x for _, x in expected]), **CLOSE)
    assert texts.real.sum(dim=1).tolist() == [3 + n for n in texts.written.sum(dim=1).tolist()]
    assert len(set(texts.real.sum(dim=1).tolist())) > 1
    for shift in (-1, 1):
        shifted = texts.written.roll(shift, dims=1)
        assert not torch.allclose(log_p[shifted].sum(), log_p[texts.written].sum(), atol=0.1)


def test_a_text_without_a_stop_is_written_to_its_end():
    texts, log_p = sample(language_model(), PROMPTS, 6, generator=generator())
    assert texts.ids.shape == (4, 9)
    assert texts.real.all()
    assert texts.written.tolist() == [[False] * 2 + [True] * 6] * 4
    assert log_p.shape == (4, 8)
    assert not log_p.requires_grad


def test_a_stop_in_the_prompt_stops_nothing():
    prompts = torch.tensor([[0, 1, 0]])
    texts, _ = sample(language_model(), prompts, 4, generator=generator(3), stop=0)
    assert texts.real[0, :4].all()
    assert texts.written[0].tolist()[:3] == [False, False, True]


def test_sampling_uses_the_cache(monkeypatch):
    policy, widths = language_model(), []
    monkeypatch.setattr(policy.body, "forward", lambda ids, **rest: widths.append(ids.shape[1]) or forward(ids, **rest))
    forward = type(policy.body).forward.__get__(policy.body)
    sample(policy, PROMPTS, 5, generator=generator())
    assert widths == [3, 1, 1, 1, 1, 7]


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf])
def test_a_temperature_that_draws_nothing(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and finite, got {temperature}"):
        sample(language_model(), PROMPTS, 6, generator=generator(), temperature=temperature)


def watched(monkeypatch, policy, method, **options):
    """Run the first step of a run; the batch that it learnt from, its loss, and the first round's texts."""
    seen = {}

    def watching(model, batches, config, *, loss, progress):
        def note(model, batch):
            value = loss(model, batch)
            seen.setdefault("batch", batch)
            seen.setdefault("loss", value.item())
            return value

        return fit(model, batches, config, loss=note, progress=progress)

    monkeypatch.setattr(rlhf, "fit", watching)
    monkeypatch.setattr(rlhf, "sample", lambda *a, **k: seen.setdefault("texts", sample(*a, **k)))
    train = replace(TRAIN, batch_size=16, steps=2)
    next(learn(method, policy, train=train, **options))
    return seen


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_round_of_ppo_is_its_parts_put_together(monkeypatch, temperature):
    policy, reference, value = language_model(dropout=0.5), language_model(), value_model(dropout=0.5)
    start, critic = copy.deepcopy(policy).eval(), copy.deepcopy(value).eval()
    c = replace(CONFIG, beta=0.3, gamma=0.9, lam=0.8, temperature=temperature, clip=0.1, value_clip=0.3)
    seen = watched(monkeypatch, policy, ppo, reference=reference, value=value, config=c, stop=0)
    (ids, real, written), log_p = seen["texts"]
    with torch.no_grad():
        assert_close(log_probabilities(start, ids, temperature=temperature), log_p, **CLOSE)
        kl = log_p - log_probabilities(reference, ids, temperature=temperature)
        values = critic(ids)[:, :-1]
    rewards = token_rewards(height(ids, real), kl, written, beta=0.3)
    advantages, returns = generalised_advantages(rewards, values, written, gamma=0.9, lam=0.8)
    whole = (ids, written, log_p, whiten(advantages, written), values, returns)
    key = {(*row.tolist(), round(p.sum().item(), 4)): i for i, (row, p) in enumerate(zip(ids, log_p, strict=True))}
    batch = seen["batch"]
    rows = [key[(*r.tolist(), round(p.sum().item(), 4))] for r, p in zip(batch[0], batch[2], strict=True)]
    for mine, its in zip(whole, batch, strict=True):
        assert_close(mine[rows], its, **CLOSE)
    expected = policy_loss(log_p, log_p, whole[3], written, clip=0.1)[0]
    expected += 0.5 * value_loss(values, values, returns, written, clip=0.3)
    assert seen["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_a_round_of_grpo_is_its_parts_put_together(monkeypatch):
    policy, reference = language_model(dropout=0.5), language_model()
    c = replace(CONFIG, beta=0.3, temperature=0.7)
    seen = watched(monkeypatch, policy, grpo, reference=reference, config=c, stop=0)
    (ids, real, written), log_p = seen["texts"]
    assert len(ids[:, :3].view(4, 4, 3).unique(dim=1)[0]) == 1  # four texts on each prompt, side by side
    with torch.no_grad():
        reference_log_p = log_probabilities(reference, ids, temperature=0.7)
    advantages = group_advantages(height(ids, real), 4)
    expected, _ = grpo_loss(log_p, log_p, reference_log_p, advantages, written, clip=0.2, beta=0.3)
    assert seen["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert seen["batch"][3].sort().values.tolist() == pytest.approx(advantages.sort().values.tolist(), abs=1e-5)


def test_records_are_of_the_texts_as_they_were_written(monkeypatch):
    policy, reference = language_model(), language_model()
    written_in = []
    monkeypatch.setattr(rlhf, "sample", lambda *a, **k: written_in.append(sample(*a, **k)) or written_in[-1])
    records = list(learn(grpo, policy, reference=reference, stop=0))
    assert [record.number for record in records] == [1, 2]
    for record, ((ids, real, written), log_p) in zip(records, written_in, strict=True):
        with torch.no_grad():
            kl = ((log_p - log_probabilities(reference, ids)) * written).sum(dim=1)
        assert record.reward == pytest.approx(height(ids, real).mean().item(), abs=1e-6)
        assert record.kl == pytest.approx(kl.mean().item(), abs=1e-4)
        assert record.entropy == pytest.approx(-log_p[written].mean().item(), abs=1e-5)
        assert record.length == pytest.approx(written.float().sum(dim=1).mean().item())


def test_each_round_draws_texts_of_its_own(monkeypatch):
    """Also on a single prompt, from a policy that hardly moves."""
    texts = []
    monkeypatch.setattr(rlhf, "sample", lambda *a, **k: texts.append(sample(*a, **k)) or texts[-1])
    list(learn(grpo, language_model(), prompts=PROMPTS[:1], train=replace(TRAIN, learning_rate=1e-9)))
    assert (texts[0][0].ids != texts[1][0].ids).float().mean() > 0.3


@pytest.mark.parametrize("method", [ppo, grpo])
def test_dropout_is_off_so_that_the_ratio_begins_at_one(method):
    record = next(learn(method, language_model(dropout=0.5), train=replace(TRAIN, batch_size=16, steps=2)))
    calm = replace(TRAIN, batch_size=16, steps=1, learning_rate=1e-9)
    first = next(learn(method, language_model(dropout=0.5), train=calm, config=replace(CONFIG, epochs=1)))
    assert first.clip_share == 0
    assert record.kl == pytest.approx(0, abs=1e-5)  # written before the first step


def test_the_clip_share_is_the_mean_over_the_steps_of_the_round(monkeypatch):
    held = []

    def counting(*a, **k):
        loss, share = grpo_loss(*a, **k)
        held.append(share.item())
        return loss, share

    monkeypatch.setattr(rlhf, "grpo_loss", counting)
    fast = replace(TRAIN, learning_rate=3e-2)
    records = list(learn(grpo, language_model(), train=fast, config=replace(CONFIG, clip=0.1)))
    assert [r.clip_share for r in records] == pytest.approx([sum(held[:4]) / 4, sum(held[4:]) / 4])
    assert records[1].clip_share > 0


@pytest.mark.parametrize("method", [ppo, grpo])
def test_a_reward_that_can_be_learnt_is_learnt_and_the_penalty_holds_it_back(method):
    policy = LanguageModel(ModelConfig(**SIZES))
    train = TrainConfig(steps=40, batch_size=32, learning_rate=1e-2, weight_decay=0.0)
    c = FeedbackConfig(texts=32, length=6, epochs=2, group=4)
    free, held = (
        list(learn(method, copy.deepcopy(policy), config=replace(c, beta=beta), train=train)) for beta in (0.0, 0.5)
    )
    assert free[0].reward == pytest.approx(0.5, abs=0.07)
    assert free[-1].reward > 0.85
    assert free[-1].kl > 4
    assert free[-1].entropy < 0.7 * free[0].entropy
    assert held[-1].reward < free[-1].reward - 0.2
    assert held[-1].kl < free[-1].kl / 3


@pytest.mark.parametrize("method", [ppo, grpo])
def test_the_same_seed_gives_the_same_run_and_the_reference_stays(method):
    policy, reference = language_model(), language_model()
    before = copy.deepcopy(reference.state_dict())
    one, two, other = (
        list(learn(method, copy.deepcopy(policy), reference=reference, train=replace(TRAIN, seed=s), **values))
        for s, values in zip(
            (1, 1, 2), ({} if method is grpo else {"value": copy.deepcopy(VALUE)} for _ in range(3)), strict=True
        )
    )
    assert one == two
    assert one != other
    assert all(torch.equal(before[name], t) for name, t in reference.state_dict().items())


torch.manual_seed(1)
VALUE = ValueModel(LanguageModel(ModelConfig(**SIZES)).body)


def test_ppo_trains_its_value_model_which_may_share_the_policys_body():
    policy = language_model()
    value = ValueModel(policy.body)
    before = value.out.weight.clone()
    list(learn(ppo, policy, value=value))
    assert (value.out.weight - before).abs().max() > 0


def test_a_reward_model_is_a_reward_and_judges_without_dropout():
    reward = RewardModel(language_model(dropout=0.5).body)
    seen = []

    class Watch(nn.Module):
        def forward(self, ids, real):
            seen.append((self.training, torch.is_grad_enabled()))
            return reward.eval()(ids, real)

    watch = Watch().train()
    list(learn(grpo, language_model(), reward=watch))
    assert seen == [(False, False)] * 2
    assert watch.training


def test_modes_come_back_as_they_were():
    policy, reference = language_model().train(), language_model().eval()
    list(learn(grpo, policy, reference=reference, train=replace(TRAIN, steps=4)))  # a single round
    assert policy.training
    assert not reference.training
    sample(policy, PROMPTS, 2, generator=generator())
    assert policy.training


@pytest.mark.parametrize("rounds", [1, 2], ids=["stopped early", "to the end"])
@pytest.mark.parametrize("training", [True, False])
def test_what_was_learnt_is_left_in_the_modes_that_it_came_in(training, rounds):
    policy, value = language_model(dropout=0.5).train(training), value_model(dropout=0.5).train(not training)
    running = learn(ppo, policy, value=value)
    assert len([next(running) for _ in range(rounds)]) == rounds
    assert not policy.training  # between rounds it is asked, and must not answer with dropout
    assert not list(running) if rounds == 2 else running.close() is None
    assert (policy.training, value.training) == (training, not training)
    if not training:  # as a policy that is measured after its training
        assert torch.equal(*(log_probabilities(policy, PROMPTS) for _ in range(2)))


def wrong(value, at=0):
    def reward(ids, real):
        scores = height(ids, real)
        scores[at] = value
        return scores

    return reward


@pytest.mark.parametrize("method", [ppo, grpo])
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (wrong(math.nan, 3), "the reward of text 3 in round 1 is nan: training stopped"),
        (wrong(math.inf, 5), "the reward of text 5 in round 1 is inf: training stopped"),
        (
            lambda ids, real: torch.full((len(ids),), 0.5),
            "all 16 rewards in round 1 are 0.5: a constant teaches nothing",
        ),
        (lambda ids, real: ids.float(), r"one number for each of 16 texts, got \(16, 9\) in round 1"),
        (lambda ids, real: 1.0, "one number for each of 16 texts, got float in round 1"),
    ],
)
def test_rewards_that_make_no_sense(method, reward, message):
    policy = language_model()
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(ValueError, match=message):
        next(learn(method, policy, reward=reward))
    assert all(torch.equal(before[name], t) for name, t in policy.state_dict().items())


def test_a_reward_that_fails_later_stops_there():
    calls = []

    def reward(ids, real):
        calls.append(1)
        return height(ids, real) * (math.nan if len(calls) == 2 else 1.0)

    rounds = learn(grpo, language_model(), reward=reward)
    assert next(rounds).number == 1
    with pytest.raises(ValueError, match="in round 2 is nan"):
        next(rounds)


@pytest.mark.parametrize("method", [ppo, grpo])
def test_a_kl_that_explodes_stops_training_with_the_numbers(method):
    fast = TrainConfig(steps=80, batch_size=16, learning_rate=3e-2, weight_decay=0.0)
    c = replace(CONFIG, beta=0.0, max_kl=3.0)
    policy, done, kept = language_model(), [], {}
    numbers = (
        r"in round (\d+) the policy is ([\d.]+) nats a text from its reference, above max_kl \(3.0\), with a mean "
        r"reward of [\d.]+; the round before had -?[\d.e-]+ and [\d.]+: training stopped"
    )
    rounds = (
        done.append(record) or kept.update(copy.deepcopy(policy.state_dict()))
        for record in learn(method, policy, config=c, train=fast)
    )
    with pytest.raises(RuntimeError, match=numbers) as stopped:
        list(rounds)
    assert 1 <= len(done) < 40
    assert all(record.kl <= 3 for record in done)
    assert f"in round {len(done) + 1} " in str(stopped.value)
    assert f"had {done[-1].kl:.4g} and {done[-1].reward:.4g}" in str(stopped.value)
    assert all(torch.equal(kept[name], t) for name, t in policy.state_dict().items())
    with pytest.raises(RuntimeError, match=r"in round 1 .*with a mean reward of [\d.]+: training stopped"):
        next(learn(method, language_model(), reference=language_model(), config=replace(c, max_kl=1e-3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": 0}, "texts must be a whole number of at least 1, got 0"),
        ({"length": 2.5}, "length must be a whole number of at least 1, got 2.5"),
        ({"epochs": 0}, "epochs must be"),
        ({"group": True}, "group must be a whole number of at least 1, got True"),
        ({"clip": 0}, "clip must be above 0 and below 1, got 0"),
        ({"value_clip": 1.0}, "value_clip must be above 0 and below 1, got 1.0"),
        ({"gamma": 1.1}, "gamma must be from 0 to 1, got 1.1"),
        ({"lam": -0.1}, "lam must be from 0 to 1, got -0.1"),
        ({"beta": -1}, "beta must be at least 0 and finite, got -1"),
        ({"value_weight": math.inf}, "value_weight must be at least 0 and finite, got inf"),
        ({"temperature": 0}, "temperature must be above 0 and finite, got 0"),
        ({"max_kl": 0.0}, "max_kl must be above 0 and finite, got 0.0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        FeedbackConfig(**settings)


def test_what_does_not_fit_together_is_said_at_the_call():
    policy = language_model()
    with pytest.raises(ValueError, match=r"texts \(16\) must be a multiple of batch_size \(5\)"):
        learn(ppo, policy, train=replace(TRAIN, batch_size=5))
    with pytest.raises(ValueError, match=r"steps \(7\) of the 2 x 16 / 8 in a round"):
        learn(ppo, policy, train=replace(TRAIN, steps=7))
    with pytest.raises(ValueError, match=r"prompts must be ids \(N, P\).*got shape \(0, 3\)"):
        learn(grpo, policy, prompts=PROMPTS[:0])
    for group in (1, 5):
        with pytest.raises(ValueError, match=rf"group \({group}\) must be at least 2, and texts \(16\) a multiple"):
            learn(grpo, policy, config=replace(CONFIG, group=group))
    for method in (ppo, grpo):
        with pytest.raises(ValueError, match="the reference would change with the policy"):
            learn(method, policy, reference=policy)
        with pytest.raises(ValueError, match="the reward would change with the policy"):
            learn(method, policy, reward=RewardModel(policy.body))
