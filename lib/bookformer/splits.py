"""Items with labels: divided into sides that share nothing, drawn a few of each class, and put into batches.

Chapters: Fine-tuning, and all that learn from labels.
"""

import re
import unicodedata
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from bookformer.objectives import pad


def split_groups(groups: Sequence[Hashable], shares: Sequence[float], generator: torch.Generator) -> list[list[int]]:
    """Items divided at random, those of one group always together: sentences of one article stay on one side.

    Args:
        groups: the group of each item.
        shares: how large a part of the groups each side gets; together 1.
        generator: where the randomness comes from.

    Returns:
        For each side, which items it has, in their order.

    Raises:
        ValueError: the shares are not positive or do not make 1, or there are too few groups for each side to have one.
    """
    if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and make 1 together, got {list(shares)}")
    names = list(dict.fromkeys(groups))
    order = torch.randperm(len(names), generator=generator).tolist()
    ends = [round(sum(shares[: i + 1]) * len(names)) for i in range(len(shares))]
    starts = [0, *ends[:-1]]
    if any(start == end for start, end in zip(starts, ends, strict=True)):
        raise ValueError(f"{len(names)} groups are too few to be split in parts of {list(shares)}")
    side_of = {names[order[at]]: i for i in range(len(shares)) for at in range(starts[i], ends[i])}
    return [[at for at, group in enumerate(groups) if side_of[group] == i] for i in range(len(shares))]


def require_no_shared_texts(**sides: Collection[str]) -> None:
    """Whether the sides of a split have no text in common, capitals, punctuation and spaces aside.

    Raises:
        ValueError: two sides share a text; the message names them, and the text.
    """
    plain = {name: {plain_text(text): text for text in texts} for name, texts in sides.items()}
    for (one, texts), (other, others) in combinations(plain.items(), 2):
        if shared := texts.keys() & others.keys():
            raise ValueError(f"{one} and {other} share {len(shared)} texts, such as {texts[min(shared)][:60]!r}")


def plain_text(text: str) -> str:
    """A text as it is compared with others: one form of each character, small letters, words with single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def draw_labelled(labels: Sequence[int], n: int, n_classes: int, generator: torch.Generator) -> list[int]:
    """Which items to learn from, if there may be only n, as many of each class.

    Args:
        labels: the class of each item, from 0.
        n: how many in all, a multiple of the number of classes.
        n_classes: C, how many classes there are.
        generator: where the randomness comes from.

    Raises:
        ValueError: a label is outside the classes, all labels are of one class, n does not divide, or a class has too
            few items.
    """
    classes = sorted(set(labels))
    if outside := [c for c in classes if not 0 <= c < n_classes]:
        raise ValueError(f"label {outside[0]} is outside the {n_classes} classes: they run from 0 to {n_classes - 1}")
    if len(classes) < 2:
        raise ValueError(f"all {len(labels)} items are of one class ({classes}): there is nothing to tell apart")
    if n < n_classes or n % n_classes:
        raise ValueError(f"n ({n}) must be a multiple of the number of classes ({n_classes})")
    by_class = [[at for at, label in enumerate(labels) if label == c] for c in range(n_classes)]
    drawn = []
    for c, items in enumerate(by_class):
        if len(items) < n // n_classes:
            raise ValueError(f"class {c} has {len(items)} items, fewer than {n // n_classes}")
        chosen = torch.randperm(len(items), generator=generator)[: n // n_classes]
        drawn += [items[i] for i in chosen.tolist()]
    return drawn


def labelled_batches(
    texts: Sequence[Sequence[int]], labels: Tensor, padding: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of labelled texts: all of them in a new order, again and again, across the ends of the rounds.

    Args:
        texts: N of them, as lists of ids.
        labels: (N,).
        padding: the id that fills what is left, at the end.
        batch_size: B.
        generator: where the order comes from.

    Yields:
        Ids (B, T), bool (B, T) that is False where there is padding, and labels (B,).

    Raises:
        ValueError: there are no texts, or not as many labels. At once, not at the first batch.
    """
    if not texts or len(labels) != len(texts):
        raise ValueError(f"there must be a label for each text, and a text: {len(texts)}, {len(labels)}")
    return _labelled(texts, labels, padding, batch_size, generator)


def _labelled(texts, labels, padding, batch_size, generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(len(texts), generator=generator).tolist()
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        ids, real = pad([texts[i] for i in chosen], padding)
        yield ids, real, labels[chosen]
