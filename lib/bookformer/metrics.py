"""How good a model is: its loss in other units, on text that it never saw, and how sure we can be.

Chapters: all that measure. Loss is cross-entropy, in nats for each token.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from sacrebleu.metrics import CHRF
from torch import Tensor, nn

from bookformer.objectives import pad
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


def predict(
    model: Callable[[Tensor, Tensor], Tensor], texts: Sequence[Sequence[int]], padding: int, *, batch_size: int = 32
) -> Tensor:
    """What a model says of each text, in the texts' order. Texts of like length are computed together.

    Args:
        model: takes ids (B, T) and bool (B, T), False where there is padding; returns (B, ...). Its mode stays.
        texts: N of them, as lists of ids.
        padding: the id that fills what is left, at the end.
        batch_size: B, how many are computed at once.

    Returns:
        (N, ...), such as logits.

    Raises:
        ValueError: there are no texts, or one is empty.
    """
    if not texts or not all(texts):
        raise ValueError(f"there must be texts, none of them empty; got {len(texts)}")
    order = torch.tensor(sorted(range(len(texts)), key=lambda i: len(texts[i])))
    with torch.no_grad():
        found = torch.cat([model(*pad([texts[i] for i in part], padding)) for part in order.split(batch_size)])
    return found[order.argsort()]


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of answers that are their reference, character by character.

    Raises:
        ValueError: there are none, or not as many of the one as of the other.
    """
    _require_pairs(answers, references)
    return sum(a == r for a, r in zip(answers, references, strict=True)) / len(answers)


def plain_answer(text: str) -> str:
    """An answer as SQuAD compares it: small letters, no ASCII punctuation, no articles, single spaces.

    Rajpurkar et al. 2016.
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """SQuAD's exact match and F1 of one answer: the best over the references, each in its plain form.

    F1 is the harmonic mean of precision and recall, counted in words. An empty answer says that there is none: it is
    right, with 1 and 1, where the reference is empty too (Rajpurkar et al. 2018).

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError(f"there is nothing to compare the answer {answer!r} with")
    given = plain_answer(answer).split()
    exact = f1 = 0.0
    for reference in references:
        wanted = plain_answer(reference).split()
        exact = max(exact, float(given == wanted))
        shared = sum((Counter(given) & Counter(wanted)).values())
        if not given or not wanted:
            f1 = max(f1, float(given == wanted))
        elif shared:
            precision, recall = shared / len(given), shared / len(wanted)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


def best_spans(first: Tensor, last: Tensor, allowed: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The span with the highest sum of two logits, in each text: that of its first position and that of its last.

    Args:
        first: logits of the first position (B, T).
        last: logits of the last position (B, T).
        allowed: bool (B, T), where spans may begin and end: the text, without question and padding.
        longest: the most positions in a span.

    Returns:
        First and last positions (B, 2), both inside the span; and the sums (B,).

    Raises:
        ValueError: `longest` is below 1, or a text has no position that is allowed.
    """
    if longest < 1:
        raise ValueError(f"a span has at least one position: longest is {longest}")
    if not allowed.any(dim=1).all():
        raise ValueError(f"text {int((~allowed.any(dim=1)).nonzero()[0])} has no position where a span may begin")
    t = first.size(1)
    at = torch.arange(t, device=first.device)
    length = at - at[:, None] + 1  # (T, T): from row to column
    fits = (length >= 1) & (length <= longest) & allowed[:, :, None] & allowed[:, None, :]  # (B, T, T)
    sums = (first[:, :, None] + last[:, None, :]).masked_fill(~fits, float("-inf"))  # (B, T, T)
    best, place = sums.flatten(start_dim=1).max(dim=1)
    return torch.stack([place // t, place % t], dim=1), best


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


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> float:
    """How far a classifier's confidence is from how often it is right: 0 if 80% sure is 80% right.

    The expected calibration error of Naeini et al. 2015 and Guo et al. 2017: answers are sorted into bins of equal
    width by the probability of the likeliest class; in each bin the mean of that probability is compared with the
    share of right answers; the differences, without their signs, are averaged over all answers.

    Args:
        probabilities: (N, C), each row a distribution over the classes.
        labels: (N,), the true classes.
        bins: how many.

    Raises:
        ValueError: there is nothing, the sizes disagree, there is only one class, a row is no distribution, a label is
            outside the classes, or there is no bin.
    """
    probabilities = probabilities.double()
    if (
        probabilities.dim() != 2
        or not len(labels)
        or probabilities.size(1) < 2
        or labels.shape != probabilities.shape[:1]
    ):
        raise ValueError(
            "there must be a label (N,) for each row of probabilities (N, C), at least one, and at least two classes; "
            f"got shapes {tuple(labels.shape)} and {tuple(probabilities.shape)}"
        )
    sums = probabilities.sum(dim=1)
    if not ((probabilities >= 0).all() and ((sums - 1).abs() < 1e-4).all()):
        wrong = int(((probabilities < 0).any(dim=1) | ~((sums - 1).abs() < 1e-4)).nonzero()[0])
        raise ValueError(f"row {wrong} is no distribution: {probabilities[wrong].tolist()}")
    low, high = labels.aminmax()
    if low < 0 or high >= probabilities.size(1):
        raise ValueError(f"labels run from {low} to {high}, and the classes from 0 to {probabilities.size(1) - 1}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, guess = probabilities.max(dim=1)  # (N,)
    right = (guess == labels).double()  # (N,)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)  # (N,)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, confidence - right)  # (bins,), times its size
    return gaps.abs().sum().item() / len(labels)


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
