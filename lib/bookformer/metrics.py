"""How good a model is: its loss in other units, on text that it never saw, and how sure we can be.

Chapters: all that measure. Loss is cross-entropy, in nats for each token.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sacrebleu.metrics import CHRF
from torch import Tensor, nn

from bookformer.tokenizers import Tokenizer


def perplexity(nats: float) -> float:
    """Among how many equally likely tokens a loss is like choosing: e to its power; infinite for an infinite loss.

    Raises:
        ValueError: the loss is negative or NaN, so it is no cross-entropy.
    """
    nats = float(nats)
    if not nats >= 0:
        raise ValueError(f"a cross-entropy is at least 0, got {nats}")
    return math.exp(nats) if nats < 700 else math.inf  # e to the 710th is more than a float holds


def bits(nats: float) -> float:
    """A loss in bits instead of nats.

    Raises:
        ValueError: it is NaN.
    """
    if math.isnan(nats):
        raise ValueError("a loss of nan has no bits")
    return float(nats) / math.log(2)


def held_out_losses(model: nn.Module, ids: Tensor, context_length: int, *, batch_size: int = 32) -> Tensor:
    """The mean cross-entropy at each place of a window, over a text cut into windows that stand end to end.

    Place 0 sees one token, the last sees T. The model is in evaluation mode meanwhile, and nothing is drawn.

    Args:
        model: takes ids (B, T), returns logits (B, T, V).
        ids: the text as token ids (N,).
        context_length: T, tokens in a window. What does not fill a window at the end of the text is left out.
        batch_size: windows computed at once.

    Returns:
        (T,) float64, in nats; its mean is the loss on the text.

    Raises:
        ValueError: the text is not one row, or too short for one window and its last target; a size is below 1.
    """
    if context_length < 1 or batch_size < 1:
        raise ValueError(f"context_length ({context_length}) and batch_size ({batch_size}) must be at least 1")
    if ids.dim() != 1:
        raise ValueError(f"ids must be one row of tokens (N,), got shape {tuple(ids.shape)}")
    n = (len(ids) - 1) // context_length  # windows; the last one's last target must exist too
    if n < 1:
        raise ValueError(
            f"a text of {len(ids)} tokens is too short for a window of {context_length} tokens and one more as target"
        )
    inputs = ids[: n * context_length].reshape(n, context_length)  # (n, T)
    targets = ids[1 : n * context_length + 1].reshape(n, context_length)  # (n, T)
    total = torch.zeros(context_length, dtype=torch.float64)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
                logits = model(x.to(device)).transpose(1, 2)  # (B, V, T): cross_entropy wants the classes second
                total += F.cross_entropy(logits, y.to(device), reduction="none").double().sum(dim=0).cpu()
    finally:
        model.train(was_training)
    return total / n


def nats_per_character(
    model: nn.Module, tokenizer: Tokenizer, ids: Tensor, context_length: int, *, batch_size: int = 32
) -> float:
    """The loss on a text, shared out over its characters, so that models with different tokens can be compared.

    It is never too low: a text can be spelled with other tokens too, and their probability is left out.

    Args:
        model: takes ids (B, T), returns logits (B, T, V).
        tokenizer: the one that made the ids. Special tokens are predicted like any other, and hold no character.
        ids: the text as token ids (N,), cut into windows that stand end to end.
        context_length: T, tokens in a window.
        batch_size: windows computed at once.

    Raises:
        ValueError: as `held_out_losses`.
    """
    losses = held_out_losses(model, ids, context_length, batch_size=batch_size)
    n = (len(ids) - 1) // context_length  # windows
    special = set(tokenizer.special.values())
    targets = [i for i in ids[1 : n * context_length + 1].tolist() if i not in special]
    return losses.sum().item() * n / len(tokenizer.decode(targets))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of answers that are their reference, character by character.

    Raises:
        ValueError: there are none, or not as many of the one as of the other.
    """
    _require_pairs(answers, references)
    return sum(a == r for a, r in zip(answers, references, strict=True)) / len(answers)


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """How many runs of 1 to 6 characters answers and references share: from 0 to 100, over all of them together.

    Popović 2015, as sacrebleu computes it. For Chinese, where words have no spaces between them, characters are the
    measure that needs no word splitter.

    Raises:
        ValueError: there are none, or not as many of the one as of the other.
    """
    _require_pairs(answers, references)
    return CHRF().corpus_score(list(answers), [list(references)]).score


def _require_pairs(answers: Sequence[str], references: Sequence[str]) -> None:
    if not answers or len(answers) != len(references):
        raise ValueError(
            f"there must be as many answers as references, at least one: {len(answers)}, {len(references)}"
        )


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, *, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Between which bounds the mean of such values lies, found by drawing as many of them again, with repetition.

    Efron 1979, the percentile interval.

    Args:
        values: (N,), independent of each other, such as the losses of separate works.
        generator: where the randomness comes from.
        level: how often such an interval holds the true mean, if there are many values.
        resamples: how many times to draw.

    Raises:
        ValueError: fewer than two values, one of them not finite, or a level outside 0 to 1.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"values must be at least two finite numbers (N,), got {values.tolist()}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level ({level}) must be between 0 and 1, and resamples ({resamples}) at least 1")
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)  # (resamples, N)
    means = values[drawn].mean(dim=1)  # (resamples,)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
