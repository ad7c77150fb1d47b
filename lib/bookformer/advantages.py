"""From rewards to what a policy is told to change: KL, advantages, and the losses of PPO and GRPO, as plain functions.

Chapter: Learning from human feedback. Papers: Schulman et al. 2016 (generalised advantages) and 2017 (PPO); Ouyang et
al. 2022 (the penalty for leaving the reference); Schulman 2020 (estimators of KL); Shao et al. 2024 (GRPO).
Shapes: B texts, T positions, G texts in a group. As in `preferences`, what stands at index t of (B, T - 1) is about
writing the token at position t + 1, and `written` says whether that token was written by the policy.
"""

import math

import torch
from torch import Tensor

from bookformer.preferences import require_written

SMALL = 1e-4  # added to a spread, so that rewards that are all but equal are not blown up


def kl_k1(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """The plain estimate of KL(policy, reference) from tokens that the policy wrote: log p - log q, of any shape.

    Its mean is the KL. Single values may be negative, and vary much.
    """
    return log_p - reference_log_p


def kl_k3(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """Schulman's estimate: q / p - 1 - log(q / p), never negative.

    Its mean is the KL too, for that of q / p is 1; while p is near q it varies less.
    """
    log_ratio = reference_log_p - log_p
    return log_ratio.expm1() - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, written: Tensor, *, beta: float) -> Tensor:
    """What each written token earns (B, T - 1): minus beta times its KL; the last one also the score of the text.

    Ouyang et al. 2022.

    Args:
        scores: (B,).
        kl: an estimate for each token (B, T - 1), such as `kl_k1`.
        written: bool (B, T - 1).
        beta: at least 0.

    Raises:
        ValueError: shapes that do not fit, a text in which nothing is written, or a negative beta.
    """
    _require_fit(written, kl=kl)
    _require_scores(scores, len(written))
    _require_range("beta", beta, 0, math.inf)
    last = written.shape[1] - 1 - written.flip(1).int().argmax(dim=1)  # (B,), of the written ones
    rewards = (-beta * kl).masked_fill(~written, 0.0)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def generalised_advantages(
    rewards: Tensor, values: Tensor, written: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """How much better each token was than expected, and what the value should have said. Schulman et al. 2016.

    delta_t = r_t + gamma V_{t+1} - V_t, and A_t = delta_t + gamma lam A_{t+1}; after the last written token both V and
    A are 0. With lam = 1 it is all that came less the value, with lam = 0 the next step alone.

    Args:
        rewards: of each token (B, T - 1).
        values: what the value model expected before the token was written (B, T - 1).
        written: bool (B, T - 1), one stretch in each row.
        gamma: what a reward is worth one token later, 0 to 1.
        lam: how far ahead the rewards are trusted more than the values, 0 to 1.

    Returns:
        Advantages, and returns, which are advantages plus values; each (B, T - 1), 0 where nothing is written.

    Raises:
        ValueError: shapes that do not fit, a text in which nothing is written, or gamma or lam outside 0 to 1.
    """
    _require_fit(written, rewards=rewards, values=values)
    _require_range("gamma", gamma, 0, 1)
    _require_range("lam", lam, 0, 1)
    values, rewards = values.masked_fill(~written, 0.0), rewards.masked_fill(~written, 0.0)
    advantage = next_value = torch.zeros_like(values[:, 0])  # (B,)
    found = torch.zeros_like(values)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(written[:, t], delta + gamma * lam * advantage, 0.0)
        next_value = values[:, t]
        found[:, t] = advantage
    return found, found + values


def whiten(x: Tensor, written: Tensor) -> Tensor:
    """Shifted and scaled so that the written ones have mean 0 and spread 1; 0 elsewhere. (B, T - 1) each.

    Raises:
        ValueError: shapes that do not fit, or fewer than two tokens are written.
    """
    _require_fit(written, x=x)
    if written.sum() < 2:
        raise ValueError(f"one written token in {tuple(written.shape)} has no spread: it takes two")
    inside = x[written]
    return ((x - inside.mean()) / (inside.std() + SMALL)).masked_fill(~written, 0.0)


def policy_loss(
    log_p: Tensor, old_log_p: Tensor, advantages: Tensor, written: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's: minus the mean over tokens of min(ratio A, clipped ratio A). Schulman et al. 2017.

    The ratio is the token's probability now over that when it was written. Where it has left 1 - clip to 1 + clip in
    the direction in which the advantage pulls, the token has no gradient any more.

    Args:
        log_p: log-probabilities now (B, T - 1).
        old_log_p: when the text was written (B, T - 1).
        advantages: (B, T - 1).
        written: bool (B, T - 1).
        clip: above 0 and below 1.

    Returns:
        The loss, and the share of tokens that the clip holds back; scalars.

    Raises:
        ValueError: shapes that do not fit, a text in which nothing is written, or a clip outside 0 to 1.
    """
    gain, held = _clipped_gain(log_p, old_log_p, advantages, written, clip)
    return -gain[written].mean(), held[written].to(gain.dtype).mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, written: Tensor, *, clip: float) -> Tensor:
    """Mean over tokens of the squared error; of the larger one, had the value moved from the old by `clip` at most.

    Args:
        values: (B, T - 1).
        old_values: when the text was written (B, T - 1).
        returns: from `generalised_advantages` (B, T - 1).
        written: bool (B, T - 1).
        clip: above 0 and below 1, in units of the reward.

    Raises:
        ValueError: as `policy_loss`.
    """
    _require_fit(written, values=values, old_values=old_values, returns=returns)
    _require_clip(clip)
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square())[written].mean()


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """How much better each text was than the others on the same prompt, in spreads of its group. Shao et al. 2024.

    Args:
        rewards: (B,), those of a group side by side.
        group: G, at least 2.

    Returns:
        (B,); 0 for a group whose rewards are all equal.

    Raises:
        ValueError: a group of one, or rewards that do not split into groups.
    """
    if group < 2:
        raise ValueError(f"a group of {group} has nothing to be compared with: it takes at least 2 texts")
    if rewards.dim() != 1 or not len(rewards) or len(rewards) % group:
        raise ValueError(f"rewards {tuple(rewards.shape)} do not split into groups of {group}")
    grouped = rewards.view(-1, group)  # (B / G, G)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    return (centred / (grouped.std(dim=1, keepdim=True) + SMALL)).flatten()


def grpo_loss(
    log_p: Tensor,
    old_log_p: Tensor,
    reference_log_p: Tensor,
    advantages: Tensor,
    written: Tensor,
    *,
    clip: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """GRPO's: PPO's clipped gain with one advantage for a whole text, less beta times `kl_k3` in the loss itself.

    Shao et al. 2024. The mean is over the tokens of each text first, and then over texts.

    Args:
        log_p: log-probabilities now (B, T - 1).
        old_log_p: when the text was written (B, T - 1).
        reference_log_p: under the reference (B, T - 1).
        advantages: from `group_advantages` (B,).
        written: bool (B, T - 1).
        clip: above 0 and below 1.
        beta: at least 0.

    Returns:
        The loss, and the share of tokens that the clip holds back; scalars.

    Raises:
        ValueError: shapes that do not fit, a text in which nothing is written, a clip outside 0 to 1, or a negative
            beta.
    """
    _require_fit(written, reference_log_p=reference_log_p)
    _require_scores(advantages, len(written))
    _require_range("beta", beta, 0, math.inf)
    gain, held = _clipped_gain(log_p, old_log_p, advantages[:, None].expand_as(log_p), written, clip)
    kl = kl_k3(*(x.masked_fill(~written, 0.0) for x in (log_p, reference_log_p)))
    gain = gain.masked_fill(~written, 0.0) - beta * kl
    return -(gain.sum(dim=1) / written.sum(dim=1)).mean(), held[written].to(gain.dtype).mean()


def _clipped_gain(
    log_p: Tensor, old_log_p: Tensor, advantages: Tensor, written: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    _require_fit(written, log_p=log_p, old_log_p=old_log_p, advantages=advantages)
    _require_clip(clip)
    ratio = (log_p - old_log_p).masked_fill(~written, 0.0).exp()  # what is not asked for can't overflow
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.minimum(plain, clipped), clipped < plain


def _require_fit(written: Tensor, **tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.shape != written.shape:
            raise ValueError(f"{name} {tuple(t.shape)} does not fit written {tuple(written.shape)}")
    require_written(written, tuple(written.shape))


def _require_scores(scores: Tensor, n: int) -> None:
    if scores.shape != (n,):
        raise ValueError(f"there must be one number for each of {n} texts, got shape {tuple(scores.shape)}")


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        bounds = f"at least {low} and finite" if math.isinf(high) else f"from {low} to {high}"
        raise ValueError(f"{name} must be {bounds}, got {value}")


def _require_clip(clip: float) -> None:
    if not 0 < clip < 1:
        raise ValueError(f"clip must be above 0 and below 1, got {clip}")
