"""From sequences of token ids to what a model is asked: inputs, targets, and masks of what is real.

Chapters: The Transformer, The pretraining pipeline, BERT. Papers: Devlin et al. 2019 (masked tokens); Sutskever et al.
2014 (sequence to sequence).
A target of IGNORED asks for nothing: PyTorch's cross-entropy leaves it out of its mean.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100


def blocks(ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """A text cut into blocks that stand end to end, with no padding: inputs (n, T), and targets one token later.

    Args:
        ids: the text as token ids (N,), such as `join_documents` makes.
        length: T, tokens in a block. What does not fill a block at the end is left out.

    Raises:
        ValueError: the text does not fill one block and the target of its last token.
    """
    n = (len(ids) - 1) // length if length > 0 else 0
    if ids.dim() != 1 or n < 1:
        raise ValueError(f"ids of shape {tuple(ids.shape)} do not fill a block of {length} tokens and its last target")
    return ids[: n * length].view(n, length), ids[1 : n * length + 1].view(n, length)


def pad(sequences: Sequence[Sequence[int]], padding: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Sequences of several lengths in one rectangle.

    Args:
        sequences: B of them, as lists of ids.
        padding: the id that fills what is left, at the end.
        length: T; that of the longest when None.

    Returns:
        Ids (B, T), and bool (B, T): True where they are real.

    Raises:
        ValueError: there is no sequence, all are empty, so that the batch would be nothing but padding, or one is
            longer than `length`; the message says which.
    """
    longest = max(map(len, sequences), default=0)
    if not longest:
        raise ValueError(f"a batch of {len(sequences)} empty sequences is all padding: there is nothing to read")
    length = longest if length is None else length
    for at, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(f"sequence {at} has {len(sequence)} tokens, more than the length of {length}")
    ids = torch.full((len(sequences), length), padding)
    real = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        real[row, : len(sequence)] = True
    return ids, real


class Pairs(NamedTuple):
    """Sequences to read and sequences to write, for an encoder-decoder. All have B rows."""

    source: Tensor  # ids (B, S)
    source_real: Tensor  # bool (B, S), False where the source is padding
    inputs: Tensor  # ids (B, T): the begin token, then the target
    targets: Tensor  # (B, T): the target, then the end token, then IGNORED


def sequence_to_sequence(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, begin: int, end: int, padding: int
) -> Pairs:
    """What an encoder-decoder reads, is given, and must predict: each target token from those before it.

    Args:
        pairs: (source, target) as lists of ids.
        begin: the id that the decoder starts from.
        end: the id that says that the target is complete.
        padding: the id that fills what is left.

    Raises:
        ValueError: there is no pair, or a source is empty: a decoder would have nothing to attend to.
    """
    for at, (source, _) in enumerate(pairs):
        if not len(source):
            raise ValueError(f"the source of pair {at} is all padding: there is nothing to attend to")
    source, source_real = pad([source for source, _ in pairs], padding)
    inputs, real = pad([[begin, *target] for _, target in pairs], padding)
    targets, _ = pad([[*target, end] for _, target in pairs], padding)
    return Pairs(source, source_real, inputs, targets.masked_fill(~real, IGNORED))


def masked(
    ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator,
    share: float = 0.15,
    never: Collection[int] = (),
) -> tuple[Tensor, Tensor]:
    """BERT's task: some tokens are selected, and must be named from the corrupted text.

    Of the selected, 80% become the mask token, 10% a random token, and 10% stay what they are.

    Args:
        ids: token ids (B, T).
        mask_id: the mask token's id.
        vocab_size: V; random tokens are drawn from all ids but the mask's and those of `never`.
        generator: where the randomness comes from.
        share: how likely a token is to be selected.
        never: ids that are never selected and never drawn, such as padding and marks.

    Returns:
        Inputs (B, T), and targets (B, T): the true token where it was selected, IGNORED elsewhere.

    Raises:
        ValueError: the share is outside 0 to 1, no token can be selected, or there is none to draw.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    apart = torch.tensor(sorted({*never, mask_id}))
    allowed = ~torch.isin(ids, apart)  # (B, T)
    if not allowed.any():
        raise ValueError(f"none of {ids.numel()} tokens can be selected: all of them are among {apart.tolist()}")
    drawable = torch.arange(vocab_size)[~torch.isin(torch.arange(vocab_size), apart)]  # (at most V - 1,)
    if not len(drawable):
        raise ValueError(f"a vocabulary of {vocab_size} has no token to draw beside {apart.tolist()}")
    selected = allowed & (torch.rand(ids.shape, generator=generator) < share)  # (B, T)
    way = torch.rand(ids.shape, generator=generator)  # (B, T): which of the three
    drawn = drawable[torch.randint(len(drawable), ids.shape, generator=generator)]  # (B, T)
    inputs = torch.where(selected & (way < 0.8), mask_id, ids)
    inputs = torch.where(selected & (way >= 0.9), drawn, inputs)
    return inputs, torch.where(selected, ids, IGNORED)
