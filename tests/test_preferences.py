"""Losses of demonstrations and pairs against arithmetic by hand; log-probabilities against writing token by token."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from bookformer.config import ModelConfig, TrainConfig
from bookformer.heads import LanguageModel, RewardModel
from bookformer.preferences import (
    bradley_terry_loss,
    comparisons,
    demonstration_loss,
    demonstrations,
    dpo_loss,
    log_probabilities,
    pair_accuracy,
    preference_loss,
    reward_loss,
    text_log_probabilities,
)
from bookformer.train import fit
from bookformer.transformer import Transformer

SIZES = {"vocab_size": 7, "context_length": 10, "d_model": 16, "n_heads": 2, "n_layers": 1}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPTS, ANSWERS = [[1, 2], [3]], [[4], [5, 6, 4]]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def language_model(**parts):
    model = LanguageModel(ModelConfig(**{**SIZES, **parts}))
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def test_demonstrations_by_hand():
    ids, real, written = demonstrations(PROMPTS, ANSWERS, padding=9)
    assert ids.tolist() == [[1, 2, 4, 9], [3, 5, 6, 4]]
    assert real.tolist() == [[True, True, True, False], [True] * 4]
    assert written.tolist() == [[False, True, False], [True, True, True]]
    ids, real, written = demonstrations(PROMPTS, ANSWERS, stop=0, padding=9)
    assert ids.tolist() == [[1, 2, 4, 0, 9], [3, 5, 6, 4, 0]]
    assert real.tolist() == [[True] * 4 + [False], [True] * 5]
    assert written.tolist() == [[False, True, True, False], [True] * 4]


def test_comparisons_are_both_texts_of_one_width():
    chosen, rejected = comparisons(PROMPTS, ANSWERS, [[6, 6, 6, 6], [5]], stop=0)
    assert chosen.ids.tolist() == [[1, 2, 4, 0, 0, 0, 0], [3, 5, 6, 4, 0, 0, 0]]
    assert rejected.ids.tolist() == [[1, 2, 6, 6, 6, 6, 0], [3, 5, 0, 0, 0, 0, 0]]
    assert chosen.written.sum(dim=1).tolist() == [2, 4]
    assert rejected.written.sum(dim=1).tolist() == [5, 2]
    assert rejected.real.sum(dim=1).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([[1], [2]], [[3], []], "answer 1 is empty"),
        ([[1], []], [[3], [4]], "prompt 1 is empty"),
        ([[1], [2]], [[3]], "one answer for each prompt, got 2 prompts and 1"),
        ([], [], "got 0 prompts and 0"),
    ],
)
def test_demonstrations_that_make_no_sense(prompts, answers, message):
    with pytest.raises(ValueError, match=message):
        demonstrations(prompts, answers, stop=0)


def test_pairs_that_make_no_sense():
    with pytest.raises(ValueError, match="the answers of pair 1 are equal, 2 tokens"):
        comparisons([[1], [1]], [[3], [4, 5]], [[4], (4, 5)])
    with pytest.raises(ValueError, match="chosen answer 0 is empty"):
        comparisons([[1]], [[]], [[4]])
    with pytest.raises(ValueError, match="rejected answer 0 is empty"):
        comparisons([[1]], [[4]], [[]])


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    by_hand = -(math.log(1 / (1 + math.exp(-1))) + math.log(1 / (1 + math.exp(3)))) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(by_hand, rel=1e-6)
    with_margin = -(math.log(1 / (1 + math.exp(-0.5))) + math.log(1 / (1 + math.exp(5)))) / 2
    margin = torch.tensor([0.5, 2.0])
    assert bradley_terry_loss(chosen, rejected, margin=margin).item() == pytest.approx(with_margin, rel=1e-6)
    both = bradley_terry_loss(chosen, rejected, margin=1)
    assert_close(both, bradley_terry_loss(chosen - 1, rejected))
    assert pair_accuracy(chosen, rejected) == 0.5
    assert pair_accuracy(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])) == 0.625


def test_a_reward_has_no_zero_of_its_own_and_no_overflow():
    chosen, rejected = torch.randn(2, 9).unbind()
    assert_close(bradley_terry_loss(chosen + 5, rejected + 5), bradley_terry_loss(chosen, rejected), **CLOSE)
    far = torch.tensor([1e4], requires_grad=True)
    loss = bradley_terry_loss(-far, far)
    loss.backward()
    assert loss.item() == 2e4
    assert far.grad.item() == 2


def test_bradley_terry_recovers_known_strengths():
    """Of 5 players, each pair plays 4,000 times; the strengths that make the results likeliest are those they had."""
    true = torch.tensor([-1.0, -0.5, 0.0, 0.4, 1.1])
    g = torch.Generator().manual_seed(0)
    one, other = torch.combinations(torch.arange(5)).repeat(4000, 1).unbind(dim=1)
    first_wins = torch.rand(len(one), generator=g) < (true[one] - true[other]).sigmoid()
    winner, loser = torch.where(first_wins, one, other), torch.where(first_wins, other, one)
    found = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = bradley_terry_loss(found[winner], found[loser])
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert_close(found.detach() - found.detach().mean(), true - true.mean(), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "message"),
    [
        (torch.zeros(2), torch.zeros(3), 0.0, r"all must be \(B,\).*\(2,\).*\(3,\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), 0.0, r"all must be \(B,\)"),
        (torch.zeros(0), torch.zeros(0), 0.0, "B at least 1"),
        (torch.zeros(2), torch.zeros(2), -0.5, "a margin must be at least 0, got -0.5"),
        (torch.zeros(2), torch.zeros(2), torch.zeros(3), r"margin \(3,\) does not fit rewards \(2,\)"),
    ],
)
def test_comparisons_of_rewards_that_make_no_sense(chosen, rejected, margin, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry_loss(chosen, rejected, margin=margin)
    if isinstance(margin, float) and not margin:
        with pytest.raises(ValueError, match=message):
            pair_accuracy(chosen, rejected)


def test_the_reward_model_learns_pairs_with_the_loop():
    """Texts that hold more 6s are preferred; padding is hidden from the reward."""
    model = RewardModel(Transformer(ModelConfig(**SIZES)))
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 6, (4,), generator=g).tolist() for _ in range(32)]
    chosen, rejected = comparisons([[1]] * 32, [[*row, 6] for row in rows], rows)
    batch = (chosen.ids, chosen.real, rejected.ids, rejected.real)
    by_hand = bradley_terry_loss(model(chosen.ids, chosen.real), model(rejected.ids[:, :-1], rejected.real[:, :-1]))
    assert_close(reward_loss(model, batch), by_hand, **CLOSE)
    config = TrainConfig(steps=15, batch_size=32, learning_rate=1e-2)
    records = list(fit(model, lambda g: iter([batch] * 15), config, loss=reward_loss, progress=False))
    assert records[0].loss == pytest.approx(math.log(2), abs=0.05)
    assert pair_accuracy(model(chosen.ids, chosen.real), model(rejected.ids, rejected.real)) > 0.95


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_each_next_token(temperature):
    model, ids = language_model(), torch.randint(7, (3, 6))
    found = log_probabilities(model, ids, temperature=temperature)
    assert found.shape == (3, 5)
    with torch.no_grad():
        for t in range(5):
            p = (model(ids[:, : t + 1])[:, -1] / temperature).softmax(dim=-1)  # (3, 7)
            assert_close(found[:, t].exp(), p[torch.arange(3), ids[:, t + 1]], **CLOSE)


def test_answers_alone_count_and_padding_does_not():
    model = language_model()
    ids, _, written = demonstrations(PROMPTS, ANSWERS, stop=0, padding=3)
    found = text_log_probabilities(model, ids, written)
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            text, total = list(prompt), 0.0
            for token in [*answer, 0]:
                total += model(torch.tensor([text]))[0, -1].log_softmax(dim=-1)[token].item()
                text.append(token)
            assert found[row].item() == pytest.approx(total, abs=1e-4)
    assert demonstration_loss(model, (ids, written)).item() == pytest.approx(-found.sum().item() / 6, abs=1e-5)
    others = demonstrations(PROMPTS, ANSWERS, stop=0, padding=5)
    assert_close(text_log_probabilities(model, others.ids, others.written), found, **CLOSE)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_shifted_by_one_is_another_sum(shift):
    model = language_model()
    ids, _, written = demonstrations([[1, 2, 3], [3, 1]], [[4, 5], [5, 6, 4]], stop=0)
    shifted = written.roll(shift, dims=1)
    difference = text_log_probabilities(model, ids, written) - text_log_probabilities(model, ids, shifted)
    assert difference.abs().min() > 0.01


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (torch.ones(2, 4, dtype=torch.bool), r"written must be bool .*\(2, 3\); got torch.bool \(2, 4\)"),
        (torch.ones(2, 3), r"got torch.float32 \(2, 3\)"),
        (torch.tensor([[True] * 3, [False] * 3]), "nothing is written in text 1"),
    ],
)
def test_masks_that_make_no_sense(written, message):
    for loss in (text_log_probabilities, lambda model, *batch: demonstration_loss(model, batch)):
        with pytest.raises(ValueError, match=message):
            loss(language_model(), torch.randint(7, (2, 4)), written)


def test_log_probabilities_of_nothing():
    with pytest.raises(ValueError, match=r"T at least 2, got shape \(2, 1\)"):
        log_probabilities(language_model(), torch.zeros(2, 1, dtype=torch.long))
    for temperature in (0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"above 0 and finite, got {temperature}"):
            log_probabilities(language_model(), torch.zeros(2, 3, dtype=torch.long), temperature=temperature)


def test_dpo_by_hand():
    """Chosen gained 2 nats on the reference and rejected lost 1: beta 0.5 makes a difference of 1.5."""
    loss = dpo_loss(*(torch.tensor([x]) for x in (-3.0, -7.0, -5.0, -6.0)), beta=0.5)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))), rel=1e-6)


def test_dpo_is_its_formula_and_pushes_up_the_chosen():
    chosen, rejected, before, other = (torch.randn(8, requires_grad=True) for _ in range(4))
    loss = dpo_loss(chosen, rejected, before, other, beta=0.3)
    again = -torch.log(
        1 / (1 + torch.exp(-0.3 * torch.log(chosen.exp() / before.exp() / (rejected.exp() / other.exp()))))
    ).mean()
    assert_close(loss, again, **CLOSE)
    loss.backward()
    assert (chosen.grad < 0).all()
    assert_close(rejected.grad, -chosen.grad)
    assert before.grad is None
    assert other.grad is None


def test_the_best_policy_for_a_reward_has_that_reward_in_dpo():
    """Of 6 answers with known rewards: the policy q exp(r / beta) / Z pays just what the rewards themselves would."""
    q, r, beta = torch.randn(6).softmax(0), torch.randn(6), 0.4
    p = q * (r / beta).exp()
    p = p / p.sum()
    one, other = torch.combinations(torch.arange(6)).unbind(dim=1)
    assert_close(
        dpo_loss(p[one].log(), p[other].log(), q[one].log(), q[other].log(), beta=beta),
        bradley_terry_loss(r[one], r[other]),
        **CLOSE,
    )


@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_a_beta_that_makes_no_sense(beta):
    with pytest.raises(ValueError, match=f"beta must be above 0 and finite, got {beta}"):
        dpo_loss(*(torch.zeros(2) for _ in range(4)), beta=beta)


def test_dpo_of_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'reference_rejected': \(3,\)"):
        dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(3), beta=1.0)


def test_dpo_trains_a_language_model_with_the_loop():
    model = language_model()
    reference = copy.deepcopy(model)
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 6, (4,), generator=g).tolist() for _ in range(16)]
    chosen, rejected = comparisons([[1, 2]] * 16, [[6, *row] for row in rows], rows)
    with torch.no_grad():
        before = [text_log_probabilities(reference, some.ids, some.written) for some in (chosen, rejected)]
    batch = (chosen.ids, chosen.written, before[0], rejected.ids, rejected.written, before[1])
    loss = partial(preference_loss, beta=0.2)
    config = TrainConfig(steps=10, batch_size=16, learning_rate=3e-3)
    records = list(fit(model, lambda g: iter([batch] * 10), config, loss=loss, progress=False))
    assert records[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert records[-1].loss < 0.5
    with torch.no_grad():
        after = [text_log_probabilities(model, some.ids, some.written) for some in (chosen, rejected)]
    assert pair_accuracy(after[0] - before[0], after[1] - before[1]) > 0.9
    assert_close(loss(model, batch), -F.logsigmoid(0.2 * (after[0] - before[0] - after[1] + before[1])).mean(), **CLOSE)
