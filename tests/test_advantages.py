"""Advantages and losses against arithmetic by hand, and against loops over single tokens on random tensors."""

import math

import pytest
import torch
from torch.testing import assert_close

from bookformer.advantages import (
    generalised_advantages,
    group_advantages,
    grpo_loss,
    kl_k1,
    kl_k3,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
WRITTEN = torch.tensor(
    [[False, True, True, True, False], [False, False, True, True, True], [False, True] + [False] * 3]
)
CELLS = WRITTEN.nonzero().tolist()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rows(n, **options):
    return [torch.randn(3, 5, **options) for _ in range(n)]


def test_both_estimates_of_kl_have_it_as_their_mean():
    """Over a vocabulary of 5, weighed by the policy's own probabilities."""
    log_p, log_q = torch.randn(2, 5).double().log_softmax(-1)
    p = log_p.exp()
    kl = sum(p[i] * math.log(p[i] / log_q[i].exp()) for i in range(5))
    assert_close((p * kl_k1(log_p, log_q)).sum(), kl)
    assert_close((p * kl_k3(log_p, log_q)).sum(), kl)
    assert kl_k1(log_p, log_q).min() < 0
    assert kl_k3(log_p, log_q).min() >= 0
    assert kl_k3(torch.tensor(math.log(0.5)), torch.tensor(math.log(0.25))).item() == pytest.approx(-0.5 + math.log(2))


def test_near_the_reference_k3_varies_less():
    log_p = torch.randn(5).double().log_softmax(-1)
    log_q = (log_p + 0.1 * torch.randn(5)).log_softmax(-1)
    p, spread = log_p.exp(), {}
    for estimate in (kl_k1, kl_k3):
        x = estimate(log_p, log_q)
        spread[estimate] = (p * x.square()).sum() - (p * x).sum().square()
    assert spread[kl_k3] < spread[kl_k1] / 10


def test_token_rewards_by_hand():
    kl = torch.arange(15.0).view(3, 5)
    found = token_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, WRITTEN, beta=0.1)
    expected = [[0, -0.1, -0.2, 9.7, 0], [0, 0, -0.7, -0.8, 19.1], [0, 28.9, 0, 0, 0]]
    assert_close(found, torch.tensor(expected))
    assert token_rewards(torch.ones(3), kl, WRITTEN, beta=0).sum() == 3


def test_advantages_by_hand():
    """Two tokens, rewards 1 and 2, values 4 and 6, gamma and lam a half: deltas 0 and -4, advantages -1 and -4."""
    found, returns = generalised_advantages(
        torch.tensor([[9.0, 1.0, 2.0, 9.0]]),
        torch.tensor([[9.0, 4.0, 6.0, 9.0]]),
        torch.tensor([[False, True, True, False]]),
        gamma=0.5,
        lam=0.5,
    )
    assert found.tolist() == [[0, -1, -4, 0]]
    assert returns.tolist() == [[0, 3, 2, 0]]


def test_advantages_are_the_sum_of_what_is_to_come():
    """Schulman et al. 2016: the sum over l of (gamma lam)^l times delta at t + l, in each row alone."""
    (rewards, values), gamma, lam = rows(2), 0.9, 0.8
    found, returns = generalised_advantages(rewards, values, WRITTEN, gamma=gamma, lam=lam)
    for b, t in CELLS:
        places = [u for c, u in CELLS if c == b and u >= t]
        total = 0.0
        for u in places:
            after = values[b, u + 1] if u + 1 in places else 0.0
            total += (gamma * lam) ** (u - t) * (rewards[b, u] + gamma * after - values[b, u])
        assert_close(found[b, t], total, **CLOSE)
        assert_close(returns[b, t], total + values[b, t], **CLOSE)
    assert (found[~WRITTEN] == 0).all()
    assert (returns[~WRITTEN] == 0).all()


def test_the_two_ends_of_lam():
    rewards, values = rows(2)
    _, returns = generalised_advantages(rewards, values, WRITTEN, gamma=1.0, lam=1.0)
    for b, t in CELLS:
        assert_close(returns[b, t], sum(rewards[b, u] for c, u in CELLS if c == b and u >= t), **CLOSE)
    now, _ = generalised_advantages(rewards, values, WRITTEN, gamma=0.0, lam=0.7)
    assert_close(now[WRITTEN], (rewards - values)[WRITTEN], **CLOSE)


def test_values_that_are_true_leave_no_advantage():
    (rewards,) = rows(1)
    zeros = torch.zeros_like(rewards)
    _, true = generalised_advantages(rewards, zeros, WRITTEN, gamma=0.9, lam=1.0)
    found, _ = generalised_advantages(rewards, true, WRITTEN, gamma=0.9, lam=0.3)
    assert_close(found, zeros, **CLOSE)


def test_whitening():
    (x,) = rows(1)
    found = whiten(3 * x + 7, WRITTEN)
    inside = found[WRITTEN]
    assert inside.mean().item() == pytest.approx(0, abs=1e-6)
    assert inside.std().item() == pytest.approx(1, abs=1e-3)
    assert (found[~WRITTEN] == 0).all()
    assert_close(found, whiten(x.where(WRITTEN, 100.0), WRITTEN), atol=1e-3, rtol=0)
    assert (whiten(torch.ones(3, 5), WRITTEN) == 0).all()


def test_the_clip_by_hand():
    """Ratios 1.5, 1.5, 0.5, 0.5 and 1.1; gains with a clip of 0.2: 1.2, -1.5, 0.5, -0.8 and 1.1."""
    log_p = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]])
    written = torch.ones(1, 5, dtype=torch.bool)
    loss, share = policy_loss(log_p, torch.zeros(1, 5), advantages, written, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 1.1) / 5)
    assert share.item() == pytest.approx(2 / 5)
    assert_close(log_p.grad, -torch.tensor([[0, -1.5, 0.5, 0, 1.1]]) / 5)


def gains(log_p, old, advantages, clip):
    found = {}
    for b, t in CELLS:
        ratio = math.exp(log_p[b, t].item()) / math.exp(old[b, t].item())
        kept = min(max(ratio, 1 - clip), 1 + clip)
        a = advantages[b, t].item()
        found[b, t] = (min(ratio * a, kept * a), kept * a < ratio * a)
    return found


def test_the_policys_loss_token_by_token():
    log_p, old, advantages = rows(3)
    loss, share = policy_loss(log_p, old, advantages, WRITTEN, clip=0.3)
    each = gains(log_p, old, advantages, 0.3).values()
    assert loss.item() == pytest.approx(-sum(gain for gain, _ in each) / len(CELLS), rel=1e-5)
    assert share.item() == pytest.approx(sum(held for _, held in each) / len(CELLS))


def test_at_ratio_one_the_gradient_is_that_of_the_plain_policy_gradient():
    log_p, advantages = rows(2)
    log_p.requires_grad_()
    loss, share = policy_loss(log_p, log_p.detach(), advantages, WRITTEN, clip=0.2)
    loss.backward()
    assert share == 0
    assert_close(log_p.grad, (-advantages / len(CELLS)).masked_fill(~WRITTEN, 0.0))


def test_what_is_not_written_can_not_spoil_the_gradient():
    old, reference, advantages = rows(3)
    log_p = torch.where(WRITTEN, old, old + 1000).requires_grad_()
    policy_loss(log_p, old, advantages, WRITTEN, clip=0.2)[0].backward()
    assert log_p.grad.isfinite().all()
    far = torch.where(WRITTEN, reference, 2000.0)
    grpo_loss(log_p, old, far, torch.randn(3), WRITTEN, clip=0.2, beta=0.1)[0].backward()
    assert log_p.grad.isfinite().all()


def test_the_values_loss_by_hand():
    """Old value 1: 1.5 towards a return of 3 counts as 1.2; 0.5 away from it as itself; 1.1 is near."""
    values = torch.tensor([[1.5, 0.5, 1.1]]).requires_grad_()
    one, three = torch.ones(1, 3), torch.full((1, 3), 3.0)
    loss = value_loss(values, one, three, torch.ones(1, 3, dtype=torch.bool), clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx((1.8**2 + 2.5**2 + 1.9**2) / 3)
    assert_close(values.grad, torch.tensor([[0, -5.0, -3.8]]) / 3)


def test_the_values_loss_token_by_token():
    values, old, returns = rows(3)
    total = 0.0
    for b, t in CELLS:
        v, o, r = (x[b, t].item() for x in (values, old, returns))
        near = o + min(max(v - o, -0.4), 0.4)
        total += max((v - r) ** 2, (near - r) ** 2)
    found = value_loss(values, old, returns, WRITTEN, clip=0.4)
    assert found.item() == pytest.approx(total / len(CELLS), rel=1e-5)


def test_group_advantages_by_hand():
    found = group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0, 0.0, 1.0]), 2)
    half = math.sqrt(0.5)
    assert_close(found, torch.tensor([-half, half, 0, 0, -half, half]), atol=1e-3, rtol=0)


def test_a_group_is_compared_with_itself_alone():
    rewards = torch.randn(4, 3)
    found = group_advantages(rewards.flatten(), 3).view(4, 3)
    assert_close(found.mean(dim=1), torch.zeros(4), **CLOSE)
    assert_close(found.std(dim=1), torch.ones(4), atol=1e-2, rtol=0)
    moved = group_advantages((rewards * 2 + torch.randn(4, 1)).flatten(), 3).view(4, 3)
    assert_close(moved, found, atol=1e-2, rtol=0)


def test_grpos_loss_token_by_token():
    log_p, old, reference = rows(3)
    advantages, beta = torch.randn(3), 0.3
    loss, share = grpo_loss(log_p, old, reference, advantages, WRITTEN, clip=0.2, beta=beta)
    each, texts = gains(log_p, old, advantages[:, None].expand(3, 5), 0.2), []
    for b in range(3):
        places = [t for c, t in CELLS if c == b]
        total = 0.0
        for t in places:
            ratio = math.exp(reference[b, t].item() - log_p[b, t].item())
            total += each[b, t][0] - beta * (ratio - math.log(ratio) - 1)
        texts.append(total / len(places))
    assert loss.item() == pytest.approx(-sum(texts) / 3, rel=1e-5)
    assert share.item() == pytest.approx(sum(held for _, held in each.values()) / len(CELLS))


def test_the_penalty_in_grpos_loss_pulls_towards_the_reference():
    log_p, reference = rows(2)
    log_p.requires_grad_()
    loss, _ = grpo_loss(log_p, log_p.detach(), reference, torch.zeros(3), WRITTEN, clip=0.2, beta=0.3)
    loss.backward()
    assert (log_p.grad * (log_p - reference))[WRITTEN].min() > 0
    assert (log_p.grad[~WRITTEN] == 0).all()


GOOD = torch.zeros(3, 5)
CALLS = {
    "rewards": lambda x, m: token_rewards(torch.zeros(3), x, m, beta=0.1),
    "advantages": lambda x, m: generalised_advantages(GOOD, x, m, gamma=1.0, lam=1.0),
    "whiten": whiten,
    "policy": lambda x, m: policy_loss(GOOD, GOOD, x, m, clip=0.2),
    "value": lambda x, m: value_loss(GOOD, GOOD, x, m, clip=0.2),
    "grpo": lambda x, m: grpo_loss(GOOD, GOOD, x, torch.zeros(3), m, clip=0.2, beta=0.1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_shapes_and_masks_that_do_not_fit(call):
    with pytest.raises(ValueError, match=r"\(3, 4\) does not fit written \(3, 5\)"):
        call(torch.zeros(3, 4), WRITTEN)
    with pytest.raises(ValueError, match="nothing is written in text 2"):
        call(GOOD, WRITTEN & torch.tensor([[True], [True], [False]]))
    with pytest.raises(ValueError, match=r"written must be bool .*got torch.float32 \(3, 5\)"):
        call(GOOD, WRITTEN.float())


@pytest.mark.parametrize("clip", [0, 1, -0.2, 1.5, math.nan])
def test_a_clip_outside_its_range(clip):
    for call in (
        lambda: policy_loss(GOOD, GOOD, GOOD, WRITTEN, clip=clip),
        lambda: value_loss(GOOD, GOOD, GOOD, WRITTEN, clip=clip),
        lambda: grpo_loss(GOOD, GOOD, GOOD, torch.zeros(3), WRITTEN, clip=clip, beta=0.1),
    ):
        with pytest.raises(ValueError, match=f"clip must be above 0 and below 1, got {clip}"):
            call()


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_gamma_and_lam_outside_their_range(value):
    with pytest.raises(ValueError, match=f"gamma must be from 0 to 1, got {value}"):
        generalised_advantages(GOOD, GOOD, WRITTEN, gamma=value, lam=1.0)
    with pytest.raises(ValueError, match=f"lam must be from 0 to 1, got {value}"):
        generalised_advantages(GOOD, GOOD, WRITTEN, gamma=1.0, lam=value)


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_a_penalty_that_makes_no_sense(beta):
    with pytest.raises(ValueError, match=f"beta must be at least 0 and finite, got {beta}"):
        token_rewards(torch.zeros(3), GOOD, WRITTEN, beta=beta)
    with pytest.raises(ValueError, match=f"beta must be at least 0 and finite, got {beta}"):
        grpo_loss(GOOD, GOOD, GOOD, torch.zeros(3), WRITTEN, clip=0.2, beta=beta)


def test_one_number_for_each_text():
    with pytest.raises(ValueError, match=r"one number for each of 3 texts, got shape \(2,\)"):
        token_rewards(torch.zeros(2), GOOD, WRITTEN, beta=0.1)
    with pytest.raises(ValueError, match=r"one number for each of 3 texts, got shape \(3, 5\)"):
        grpo_loss(GOOD, GOOD, GOOD, GOOD, WRITTEN, clip=0.2, beta=0.1)


def test_groups_that_make_no_sense():
    for group in (1, 0):
        with pytest.raises(ValueError, match=f"a group of {group} has nothing to be compared with"):
            group_advantages(torch.zeros(4), group)
    with pytest.raises(ValueError, match=r"rewards \(5,\) do not split into groups of 2"):
        group_advantages(torch.zeros(5), 2)


def test_one_token_has_no_spread():
    with pytest.raises(ValueError, match=r"one written token in \(1, 2\) has no spread"):
        whiten(torch.zeros(1, 2), torch.tensor([[False, True]]))
