"""What people show and what they prefer, as losses: demonstrations, pairs of texts, and how likely a model finds each.

Chapter: Learning from human feedback. Papers: Bradley and Terry 1952 (strengths from comparisons); Christiano et al.
2017 (a reward learnt from them); Ouyang et al. 2022 (for language models); Touvron et al. 2023 (the margin); Rafailov
et al. 2023 (DPO).
Shapes: B texts, T positions, V tokens. The log-probability at index t of (B, T - 1) is that of the token at position
t + 1, which is predicted from those up to t; masks of written tokens stand in the same places.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.heads import LanguageModel
from bookformer.objectives import pad

Rows = Sequence[Sequence[int]]


class Texts(NamedTuple):
    """Prompts with what was written after each."""

    ids: Tensor  # (B, T), padded at the end
    real: Tensor  # bool (B, T): prompt and answer, its stop included; what `heads.RewardModel` wants
    written: Tensor  # bool (B, T - 1): whether the token at the next position is of the answer, its stop included


def demonstrations(prompts: Rows, answers: Rows, *, stop: int | None = None, padding: int = 0) -> Texts:
    """Prompts with the answers that a model is to learn to write.

    Args:
        prompts: B rows of token ids, at least one token each.
        answers: an answer to each.
        stop: a token that is put after each answer.
        padding: the id that fills what is left.

    Raises:
        ValueError: not an answer for each prompt, or an empty prompt or answer.
    """
    _require_rows(prompts, answers, "answer")
    ends = [] if stop is None else [stop]
    return _texts(prompts, [[*answer, *ends] for answer in answers], padding)


def comparisons(
    prompts: Rows, chosen: Rows, rejected: Rows, *, stop: int | None = None, padding: int = 0
) -> tuple[Texts, Texts]:
    """Prompts with two answers each, of which one was preferred: the texts with it, and those with the other.

    Both are padded to the length of the longest of all. The arguments are as in `demonstrations`.

    Raises:
        ValueError: not two answers for each prompt, an empty prompt or answer, or a pair of equal answers.
    """
    _require_rows(prompts, chosen, "chosen answer")
    _require_rows(prompts, rejected, "rejected answer")
    for i, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if list(one) == list(other):
            raise ValueError(f"the answers of pair {i} are equal, {len(one)} tokens: neither can be preferred")
    ends, n = [] if stop is None else [stop], len(prompts)
    both = _texts([*prompts, *prompts], [[*answer, *ends] for answer in (*chosen, *rejected)], padding)
    return Texts(*(x[:n] for x in both)), Texts(*(x[n:] for x in both))


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """How surprised a reward is by the choices, in nats: the mean of -log sigmoid(chosen - rejected - margin).

    Bradley and Terry 1952: the one of strength r wins against the other of strength s with probability
    sigmoid(r - s). Only differences count, so that no reward has a zero of its own. With a margin the chosen text is
    asked to be better by so much (Touvron et al. 2023, for pairs whose difference is plain).

    Args:
        chosen: rewards of the preferred texts (B,).
        rejected: of the others (B,).
        margin: one for all, or one for each (B,); at least 0.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit, no pair, or a negative margin.
    """
    _require_fit(chosen=chosen, rejected=rejected)
    each = chosen.new_tensor(margin) if isinstance(margin, int | float) else margin
    if each.dim() and each.shape != chosen.shape:
        raise ValueError(f"margin {tuple(each.shape)} does not fit rewards {tuple(chosen.shape)}")
    if not (each >= 0).all():
        raise ValueError(f"a margin must be at least 0, got {each.min().item()}")
    return -F.logsigmoid(chosen - rejected - each).mean()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """The share of pairs in which the chosen text has the higher reward; a tie counts half.

    Raises:
        ValueError: shapes that do not fit, or no pair.
    """
    _require_fit(chosen=chosen, rejected=rejected)
    return ((chosen > rejected).double() + (chosen == rejected).double() / 2).mean().item()


def reward_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """`bradley_terry_loss` of a `heads.RewardModel`, for `train.fit`.

    Args:
        model: the reward model.
        batch: `ids` (B, T) and `real` (B, T) of the chosen texts, then of the rejected ones.
    """
    chosen, chosen_real, rejected, rejected_real = batch
    return bradley_terry_loss(model(chosen, chosen_real), model(rejected, rejected_real))


def log_probabilities(model: LanguageModel, ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The log-probability of each token but the first, given those before it.

    Args:
        model: a decoder, which sees nothing of what comes later: padding at the end needs no mask.
        ids: (B, T), T at least 2.
        temperature: by which the logits are divided; that of the sampling, where the tokens were sampled.

    Returns:
        (B, T - 1), in nats.

    Raises:
        ValueError: there is nothing to predict, or the temperature is not above 0 and finite.
    """
    if ids.dim() != 2 or not len(ids) or ids.size(1) < 2:
        raise ValueError(f"ids must be (B, T), T at least 2, got shape {tuple(ids.shape)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}: it divides the logits")
    logits = model(ids[:, :-1])  # (B, T - 1, V)
    return (logits / temperature).log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def text_log_probabilities(model: LanguageModel, ids: Tensor, written: Tensor) -> Tensor:
    """The log-probability of each whole answer (B,): the sum over its tokens; at a temperature of 1.

    Args:
        model: a decoder.
        ids: (B, T).
        written: bool (B, T - 1), as in `Texts`.

    Raises:
        ValueError: shapes that do not fit, or a text in which nothing is written.
    """
    require_written(written, tuple(ids[:, 1:].shape))
    return log_probabilities(model, ids).masked_fill(~written, 0.0).sum(dim=1)


def demonstration_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean cross-entropy over the tokens of the answers, in nats, for `train.fit`; the prompts are not asked for.

    Args:
        model: a `LanguageModel`, of kind decoder.
        batch: `ids` (B, T) and `written` (B, T - 1), as in `Texts`.

    Raises:
        ValueError: shapes that do not fit, or a text in which nothing is written.
    """
    ids, written = batch
    require_written(written, tuple(ids[:, 1:].shape))
    return -log_probabilities(model, ids)[written].mean()


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Direct preference optimisation: `bradley_terry_loss` with the policy itself for a reward.

    Rafailov et al. 2023: a policy that is the best for some reward, less beta times its KL from the reference, tells
    that reward: it is beta times the log of the ratio of its probability to the reference's, but for a number that
    depends on the prompt alone and so falls out of the difference.

    Args:
        chosen: log-probability of each preferred answer under the policy (B,), from `text_log_probabilities`.
        rejected: of each other answer (B,).
        reference_chosen: the same under the reference (B,), which gets no gradient.
        reference_rejected: and of the others (B,).
        beta: how much a step away from the reference counts; above 0.

    Returns:
        A scalar; log 2 where policy and reference agree.

    Raises:
        ValueError: shapes that do not fit, no pair, or beta is not above 0 and finite.
    """
    _require_fit(
        chosen=chosen, rejected=rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected
    )
    _require_beta(beta)
    better, worse = chosen - reference_chosen.detach(), rejected - reference_rejected.detach()  # (B,)
    return bradley_terry_loss(beta * better, beta * worse)


def preference_loss(model: nn.Module, batch: tuple[Tensor, ...], *, beta: float) -> Tensor:
    """`dpo_loss` of a language model, for `train.fit`, with `functools.partial(preference_loss, beta=...)`.

    Args:
        model: a `LanguageModel`, of kind decoder. With dropout, it starts beside its reference and not at it.
        batch: `ids` (B, T), `written` (B, T - 1) and the reference's `text_log_probabilities` (B,) of the chosen
            texts, then of the rejected ones.
        beta: as in `dpo_loss`.
    """
    chosen, rejected = batch[:3], batch[3:]
    better, worse = (text_log_probabilities(model, *some[:2]) for some in (chosen, rejected))
    return dpo_loss(better, worse, chosen[2], rejected[2], beta=beta)


def _texts(prompts: Rows, answers: Rows, padding: int) -> Texts:
    ids, real = pad([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], padding)
    written = real[:, 1:].clone()  # (B, T - 1)
    for row, prompt in zip(written, prompts, strict=True):
        row[: len(prompt) - 1] = False
    return Texts(ids, real, written)


def _require_rows(prompts: Rows, answers: Rows, name: str) -> None:
    if not len(prompts) or len(prompts) != len(answers):
        raise ValueError(f"there must be one {name} for each prompt, got {len(prompts)} prompts and {len(answers)}")
    for what, rows in (("prompt", prompts), (name, answers)):
        for i, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"{what} {i} is empty: it needs at least one token")


def _require_fit(**tensors: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) != 1 or not all(len(shape) == 1 and shape[0] for shape in shapes.values()):
        raise ValueError(f"all must be (B,), B at least 1 and the same, got {shapes}")


def require_written(written: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless this is bool (B, T - 1) of that shape, and something is written in each text."""
    if written.dtype != torch.bool or written.dim() != 2 or written.shape != shape or not len(written):
        raise ValueError(
            f"written must be bool (B, T - 1), one column less than ids, here {shape}; got {written.dtype} "
            f"{tuple(written.shape)}"
        )
    if not written.any(dim=1).all():
        raise ValueError(f"nothing is written in text {int((~written.any(dim=1)).nonzero()[0])}")


def _require_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
