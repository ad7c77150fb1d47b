"""Noise on a text, and what is to be written of it: for an encoder that reads what is damaged and a decoder that mends.

Chapter: Other objectives. Papers: Lewis et al. 2020 (BART's five noises); Raffel et al. 2020 (T5's spans); Song et al.
2019 (MASS's fragment).
A text is a list of ids. Source and target go to `objectives.sequence_to_sequence`; BART's target is the whole text.
"""

from collections.abc import Collection, Sequence

import torch


def _some(n: int, share: float) -> int:
    """How many of n tokens a share is: at least one, and never all of them."""
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    if n < 2:
        raise ValueError(f"a text of {n} tokens is too short: one must be hidden, and one must stay")
    return min(max(round(share * n), 1), n - 1)


def _unused(ids: Sequence[int], marks: Collection[int]) -> None:
    if found := set(ids) & set(marks):
        raise ValueError(f"the text holds {sorted(found)}, which are to be marks")


def _spans(n: int, lengths: Sequence[int], generator: torch.Generator) -> list[tuple[int, int]]:
    """Where spans of these lengths begin and end in n tokens: each in a gap of its own between the tokens that stay."""
    gaps = torch.randperm(n - sum(lengths) + 1, generator=generator)[: len(lengths)].sort().values.tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [(gap + end - length, gap + end) for gap, end, length in zip(gaps, ends, lengths, strict=True)]


def mask_tokens(ids: Sequence[int], *, mask_id: int, share: float, generator: torch.Generator) -> list[int]:
    """BART's first noise: some tokens, drawn at random, become the mask token.

    Lewis et al. 2020. Each of the five noises takes a text as a list of ids and gives a noisy one; what is to be
    written is always the whole text.

    Raises:
        ValueError: the share is outside 0 to 1, the text is shorter than two tokens, or it holds the mask token.
    """
    n = _some(len(ids), share)
    _unused(ids, [mask_id])
    hidden = set(torch.randperm(len(ids), generator=generator)[:n].tolist())
    return [mask_id if at in hidden else token for at, token in enumerate(ids)]


def delete_tokens(ids: Sequence[int], *, share: float, generator: torch.Generator) -> list[int]:
    """BART's second noise: some tokens are gone, and nothing tells where.

    Raises:
        ValueError: as `mask_tokens`.
    """
    n = _some(len(ids), share)
    gone = set(torch.randperm(len(ids), generator=generator)[:n].tolist())
    return [token for at, token in enumerate(ids) if at not in gone]


def infill(
    ids: Sequence[int],
    *,
    mask_id: int,
    generator: torch.Generator,
    share: float = 0.3,
    mean_span: float = 3.0,
) -> list[int]:
    """BART's third noise: spans are each replaced by a single mask, so that nobody is told how much is missing.

    Lengths are drawn from a Poisson distribution; a span of length 0 puts a mask where nothing is missing. Spans are
    drawn until they hold the share that was asked for, and the last is cut to fit.

    Raises:
        ValueError: as `mask_tokens`, or the mean length is not positive.
    """
    n = _some(len(ids), share)
    _unused(ids, [mask_id])
    if not 0 < mean_span < float("inf"):
        raise ValueError(f"mean_span must be positive and finite, got {mean_span}")
    left, lengths = n, []
    while left and len(lengths) < len(ids) - n:  # there is one gap more than there are tokens that stay
        lengths.append(min(int(torch.poisson(torch.tensor(mean_span), generator=generator)), left))
        left -= lengths[-1]
    lengths += [left] if left else []
    noisy, at = [], 0
    for start, end in _spans(len(ids), lengths, generator):
        noisy += [*ids[at:start], mask_id]
        at = end
    return noisy + list(ids[at:])


def shuffle_sentences(ids: Sequence[int], *, ends: Collection[int], generator: torch.Generator) -> list[int]:
    """BART's fourth noise: sentences in random order.

    Args:
        ids: a text.
        ends: the ids that end a sentence, such as that of a full stop.
        generator: where the randomness comes from.

    Raises:
        ValueError: the text is empty.
    """
    if not len(ids):
        raise ValueError("the text is empty: there is nothing to shuffle")
    sentences: list[list[int]] = [[]]
    for token in ids:
        sentences[-1].append(token)
        if token in ends:
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    order = torch.randperm(len(sentences), generator=generator).tolist()
    return [token for i in order for token in sentences[i]]


def rotate_document(ids: Sequence[int], *, generator: torch.Generator) -> list[int]:
    """BART's fifth noise: the text begins at a token drawn at random, and what stood before comes after its end.

    Raises:
        ValueError: the text is empty.
    """
    if not len(ids):
        raise ValueError("the text is empty: there is nothing to rotate")
    start = int(torch.randint(len(ids), (), generator=generator))
    return [*ids[start:], *ids[:start]]


def corrupt_spans(
    ids: Sequence[int],
    *,
    sentinels: Sequence[int],
    generator: torch.Generator,
    share: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[list[int], list[int]]:
    """T5's task: spans are replaced by sentinels, each another one, and only what they hide is to be written.

    Raffel et al. 2020. Their code begins every text with a token that stays and ends it with a span; here a span may
    stand anywhere.

    Args:
        ids: a text.
        sentinels: ids that stand for hidden spans, used in this order; one more than there are spans.
        generator: where the randomness comes from.
        share: of the tokens that are hidden, rounded to a whole number of them.
        mean_span: their number divided by it is the number of spans, rounded.

    Returns:
        The source: the text with sentinels in it. The target: each sentinel and what it hides, and one sentinel more.

    Raises:
        ValueError: the share is outside 0 to 1, the mean length is below 1, the text is shorter than two tokens or
            holds a sentinel, or there are too few sentinels.
    """
    n = _some(len(ids), share)
    _unused(ids, sentinels)
    if not 1 <= mean_span < float("inf"):
        raise ValueError(f"mean_span must be at least 1 and finite, got {mean_span}")
    k = min(max(round(n / mean_span), 1), len(ids) - n + 1)
    if len(set(sentinels)) <= k:
        raise ValueError(f"{k} spans need {k + 1} different sentinels, and there are {len(set(sentinels))}")
    cuts = (torch.randperm(n - 1, generator=generator)[: k - 1] + 1).sort().values.tolist()
    lengths = [end - start for start, end in zip([0, *cuts], [*cuts, n], strict=True)]
    source, target, at = [], [], 0
    for sentinel, (start, end) in zip(sentinels, _spans(len(ids), lengths, generator), strict=False):
        source += [*ids[at:start], sentinel]
        target += [sentinel, *ids[start:end]]
        at = end
    return source + list(ids[at:]), [*target, sentinels[k]]


def cut_fragment(
    ids: Sequence[int], *, mask_id: int, generator: torch.Generator, share: float = 0.5
) -> tuple[list[int], list[int]]:
    """MASS's task, sequence-to-sequence pretraining: a fragment is hidden, mask by mask, and is to be written.

    Song et al. 2019. Their decoder keeps the fragment's places; here its target is a sequence that begins at 0.

    Returns:
        The source, as long as the text, and the target: the fragment.

    Raises:
        ValueError: as `mask_tokens`.
    """
    n = _some(len(ids), share)
    _unused(ids, [mask_id])
    ((start, end),) = _spans(len(ids), [n], generator)
    return [*ids[:start], *[mask_id] * n, *ids[end:]], list(ids[start:end])
