"""From sequences of token ids to what a model is asked: inputs, targets, and masks of what is real.

Chapters: The Transformer, The pretraining pipeline, BERT, Other objectives. Papers: Devlin et al. 2019 (masked tokens);
Sutskever et al. 2014 (sequence to sequence); Yang et al. 2019 (permuted); Hinton et al. 2015 (distillation).
A target of IGNORED asks for nothing: PyTorch's cross-entropy leaves it out of its mean.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bookformer.tokenizers import Tokenizer

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
        ValueError: the share is not between 0 and 1, no token can be selected, or there is none to draw.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
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


def encode_pair(
    first: Sequence[int], second: Sequence[int], *, cls: int, sep: int, length: int
) -> tuple[list[int], list[int]]:
    """BERT's input of two sentences: [CLS] first [SEP] second [SEP], and which sentence each place belongs to.

    What does not fit is cut as BERT cuts it when it is fine-tuned: as long as both together are too long, the longer of
    the two loses its last token; of two that are equally long, the second.

    Args:
        first: the ids of sentence A.
        second: those of sentence B. Either may be empty.
        cls: the id of the mark before everything.
        sep: the id of the mark after each sentence.
        length: how many places there are, the three marks included.

    Returns:
        Ids, at most `length` of them; and as many segments: 0 from [CLS] to the first [SEP], 1 after it.

    Raises:
        ValueError: there is no place for a token beside the three marks.
    """
    if length < 4:
        raise ValueError(f"a length of {length} has no place for a token beside [CLS] and two [SEP]")
    m, n = len(first), len(second)
    while m + n > length - 3:
        m, n = (m - 1, n) if m > n else (m, n - 1)
    ids = [cls, *first[:m], sep, *second[:n], sep]
    return ids, [0] * (m + 2) + [1] * (n + 1)


class Question(NamedTuple):
    """A question and a text for a model that reads out a span. All have as many places."""

    ids: list[int]
    segments: list[int]  # 0 for the question, 1 for the text
    words: list[int]  # which word of the text each place belongs to; -1 where it is none
    span: tuple[int, int]  # first and last place of the answer; (0, 0), which is [CLS], if there is none


def encode_question(
    tokenizer: Tokenizer, question: str, words: Sequence[str], answer: Sequence[str] | None, *, length: int
) -> Question:
    """BERT's input for a question about a text: [CLS] question [SEP] text [SEP], and where the answer is in it.

    Devlin et al. 2019. The text comes as words, so that an answer can be given in them whatever tokens they make.

    Args:
        tokenizer: with [CLS] and [SEP] among its special tokens.
        question: as it is.
        words: the text's.
        answer: the words of the answer, which stand side by side in the text, there for the first time; None if the
            text does not say.
        length: the most places. Nothing is cut.

    Raises:
        ValueError: the answer is empty or not in its text, or there are too many tokens.
    """
    span = (0, 0)
    if answer is not None:
        n = len(answer)
        starts = [i for i in range(len(words) - n + 1) if list(words[i : i + n]) == list(answer)]
        if not n or not starts:
            raise ValueError(f"the answer {' '.join(answer)!r} is not in its text: {' '.join(words)[:80]!r}")
    cls, sep = tokenizer.special["[CLS]"], tokenizer.special["[SEP]"]
    ids = [cls, *tokenizer.encode(question), sep]
    asked = len(ids)
    places = [-1] * asked
    for at, word in enumerate(words):
        pieces = tokenizer.encode(word)
        ids += pieces
        places += [at] * len(pieces)
    ids.append(sep)
    places.append(-1)
    if len(ids) > length:
        raise ValueError(f"question and text are {len(ids)} tokens, more than the length of {length}")
    if answer is not None:
        inside = [i for i, word in enumerate(places) if starts[0] <= word < starts[0] + n]
        span = (inside[0], inside[-1])
    return Question(ids, [0] * asked + [1] * (len(ids) - asked), places, span)


def next_sentence_pairs(
    documents: Sequence[Sequence[Sequence[int]]], n: int, *, generator: torch.Generator
) -> list[tuple[Sequence[int], Sequence[int], int]]:
    """BERT's second task: does the second sentence follow the first, or was it taken from elsewhere?

    All sentences that another one follows are equally likely to be the first. With probability 1/2 the second is the
    one that follows it; otherwise it is any sentence of any other document, all of them equally likely.

    Devlin et al. 2019. (There a label of 0 says that it follows; here it is 1.)

    Args:
        documents: each a list of sentences in their order, and a sentence a list of ids.
        n: how many pairs to draw.
        generator: where the randomness comes from.

    Returns:
        For each pair the first sentence, the second, and 1 if it follows the first, else 0.

    Raises:
        ValueError: n is below 1, no sentence has one that follows it, or a document that has such a sentence holds all
            the sentences that there are.
    """
    sizes = torch.tensor([len(document) for document in documents])
    total = int(sizes.sum())
    if n < 1 or not (sizes > 1).any():
        raise ValueError(f"{n} pairs can't be drawn from {total} sentences in {len(documents)} documents")
    if int(sizes.max()) == total:
        raise ValueError(f"all {total} sentences stand in one document: there is no other to take a sentence from")
    ends = sizes.cumsum(0)  # of each document, in the row of all sentences
    firsts = torch.cat([torch.arange(end - size, end - 1) for size, end in zip(sizes, ends, strict=True) if size > 1])
    everything = [sentence for document in documents for sentence in document]
    pairs = []
    for at in firsts[torch.randint(len(firsts), (n,), generator=generator)].tolist():
        if torch.rand((), generator=generator) < 0.5:
            pairs.append((everything[at], everything[at + 1], 1))
            continue
        own = int(torch.searchsorted(ends, at, right=True))  # the document that the first sentence is of
        other = int(torch.randint(total - int(sizes[own]), (), generator=generator))
        if other >= ends[own] - sizes[own]:
            other += int(sizes[own])  # the sentences of its own document are passed over
        pairs.append((everything[at], everything[other], 0))
    return pairs


class Permuted(NamedTuple):
    """Who sees what, and what is asked, when a text is predicted in another order than it is written in."""

    content: Tensor  # bool (B, 1, T, T): a place sees itself and the places before it in the order
    query: Tensor  # bool (B, 1, T, T): only those before it
    targets: Tensor  # (B, T): the token itself at the last places of the order, IGNORED at the others


def permutation_masks(order: Tensor) -> tuple[Tensor, Tensor]:
    """What XLNet's two streams may see: of the content, and of the query, each (B, 1, T, T) bool.

    Yang et al. 2019. The place that comes first has nothing before it. Its query sees its own token, for a softmax
    over nothing is not defined; so it must not be asked for.

    Args:
        order: (B, T), the places 0 to T - 1 in the order in which they are predicted. No token is moved.

    Raises:
        ValueError: a row does not name each place once.
    """
    if order.dim() != 2 or not order.numel():
        raise ValueError(f"an order is places (B, T), none of them 0; got shape {tuple(order.shape)}")
    for row, places in enumerate(order.tolist()):
        if sorted(places) != list(range(len(places))):
            raise ValueError(f"row {row} of the order does not name each of {len(places)} places once: {places}")
    turn = order.argsort(dim=1)  # (B, T): when each place has its turn
    content = turn[:, None, :, None] >= turn[:, None, None, :]  # (B, 1, T, T)
    query = turn[:, None, :, None] > turn[:, None, None, :]
    return content, query | (content & (turn == 0)[:, None, :, None])


def permuted(ids: Tensor, *, generator: torch.Generator, share: float = 1 / 6) -> Permuted:
    """XLNet's task: a random order for each text, and its last places are asked for.

    The first token comes first in every order, as a begin token does, so that no prediction has nothing to go by.

    Args:
        ids: token ids (B, T), without padding.
        generator: where the randomness comes from.
        share: of the tokens that are asked for, rounded to at least one; the paper takes a sixth or a seventh.

    Raises:
        ValueError: ids are not (B, T) with at least two tokens in a text, or the share is outside 0 to 1.
    """
    if ids.dim() != 2 or not len(ids) or ids.size(1) < 2:
        raise ValueError(f"ids must be (B, T), T at least 2, got shape {tuple(ids.shape)}")
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    b, t = ids.shape
    n = min(max(round(share * t), 1), t - 1)
    later = torch.rand(b, t - 1, generator=generator).argsort(dim=1) + 1  # (B, T - 1)
    order = torch.cat([torch.zeros(b, 1, dtype=torch.long), later], dim=1)  # (B, T)
    targets = torch.full_like(ids, IGNORED).scatter(1, order[:, -n:], ids.gather(1, order[:, -n:]))
    return Permuted(*permutation_masks(order), targets)


def distillation_loss(
    logits: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float = 2.0, share: float = 0.5
) -> Tensor:
    """What a student pays for differing from its teacher, mixed with what it pays for the true tokens.

    Hinton et al. 2015: both distributions are softened by the temperature, and their cross-entropy is multiplied by
    its square, for its gradient shrinks by about that. The teacher's own entropy is taken off, which changes no
    gradient: the first part is then the Kullback-Leibler divergence, 0 when student and teacher agree.

    Args:
        logits: the student's (..., V).
        teacher: the teacher's (..., V). No gradient reaches it.
        targets: (...); places with IGNORED count in neither part.
        temperature: by which logits are divided.
        share: of the soft part; the true tokens have the rest.

    Returns:
        A scalar: the mean over all places that count, in nats.

    Raises:
        ValueError: shapes that do not fit, no place that counts, a temperature that is not positive, or a share
            outside 0 to 1.
    """
    if logits.shape != teacher.shape or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, the teacher's {tuple(teacher.shape)} and targets {tuple(targets.shape)} "
            "do not fit"
        )
    if not 0 < temperature < float("inf") or not 0 <= share <= 1:
        raise ValueError(f"temperature ({temperature}) must be positive and finite, and share ({share}) from 0 to 1")
    counts = targets != IGNORED
    if not counts.any():
        raise ValueError(f"none of {targets.numel()} targets counts")
    logits, teacher, targets = logits[counts], teacher.detach()[counts], targets[counts]  # (N, V), (N, V), (N,)
    soft = F.kl_div(
        (logits / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    return share * temperature**2 * soft + (1 - share) * F.cross_entropy(logits, targets)
