"""Noises hide what they say they hide, no more; and what they give is enough to get the text back."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from bookformer.noises import (
    corrupt_spans,
    cut_fragment,
    delete_tokens,
    infill,
    mask_tokens,
    rotate_document,
    shuffle_sentences,
)

MASK, SENTINELS = 99, list(range(50, 60))
TEXT = list(range(40))


def g(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_masked_tokens_keep_their_places(seed):
    noisy = mask_tokens(TEXT, mask_id=MASK, share=0.25, generator=g(seed))
    assert noisy.count(MASK) == 10
    assert all(new in (MASK, old) for new, old in zip(noisy, TEXT, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_deleted_tokens_leave_no_mark(seed):
    noisy = delete_tokens(TEXT, share=0.25, generator=g(seed))
    assert len(noisy) == 30
    assert noisy == sorted(set(noisy) & set(TEXT))


def test_any_token_may_be_hidden():
    for noise in (
        lambda seed: set(TEXT) - set(mask_tokens(TEXT, mask_id=MASK, share=0.5, generator=g(seed))),
        lambda seed: set(TEXT) - set(delete_tokens(TEXT, share=0.5, generator=g(seed))),
        lambda seed: set(TEXT) - set(infill(TEXT, mask_id=MASK, share=0.5, generator=g(seed))),
        lambda seed: set(TEXT) - set(corrupt_spans(TEXT, sentinels=SENTINELS, share=0.5, generator=g(seed))[0]),
        lambda seed: set(cut_fragment(TEXT, mask_id=MASK, generator=g(seed))[1]),
    ):
        assert set().union(*(noise(seed) for seed in range(80))) == set(TEXT)


def hidden_lengths(noisy, first, end):
    """How many tokens each mask stands for, in a text that counted from `first` up to `end`."""
    lengths, expected = [], first
    for before, token in pairwise([first - 1, *noisy, end]):
        if token == MASK:
            assert before != MASK  # spans do not touch
            continue
        if before == MASK:
            lengths.append(token - expected)
        else:
            assert token == expected  # nothing is gone but behind a mask
        expected = token + 1
    return lengths


@pytest.mark.parametrize("seed", range(10))
def test_one_mask_for_a_span_whatever_its_length(seed):
    lengths = hidden_lengths(infill(TEXT, mask_id=MASK, generator=g(seed)), 0, 40)
    assert sum(lengths) == 12  # 30% of 40
    assert min(lengths) >= 0


def test_spans_are_as_long_as_poisson_says():
    """Lengths 0 to 8 as often as exp(-3) 3^k / k! says, within five standard deviations."""
    text = range(1000, 101_000)
    lengths = hidden_lengths(infill(text, mask_id=MASK, generator=g()), 1000, 101_000)
    found, rate = Counter(lengths), torch.distributions.Poisson(3.0)
    for k in range(9):
        p = rate.log_prob(torch.tensor(float(k))).exp().item()
        assert abs(found[k] - p * len(lengths)) < 5 * (len(lengths) * p * (1 - p)) ** 0.5


def test_many_empty_spans_do_not_run_out_of_places():
    for seed in range(20):
        lengths = hidden_lengths(infill(TEXT, mask_id=MASK, generator=g(seed), share=0.8, mean_span=0.1), 0, 40)
        assert sum(lengths) == 32
        assert len(lengths) <= 9  # 8 tokens stay, with 9 gaps


def test_sentences_stay_whole():
    text = [1, 2, 0, 3, 4, 5, 9, 6]  # ends: 0 and 9; the last sentence has none
    seen = {tuple(shuffle_sentences(text, ends={0, 9}, generator=g(seed))) for seed in range(60)}
    a, b, c = (1, 2, 0), (3, 4, 5, 9), (6,)
    assert seen == {a + b + c, a + c + b, b + a + c, b + c + a, c + a + b, c + b + a}


def test_a_rotated_document_begins_anywhere():
    seen = {tuple(rotate_document([1, 2, 3], generator=g(seed))) for seed in range(40)}
    assert seen == {(1, 2, 3), (2, 3, 1), (3, 1, 2)}


def filled(source, target, sentinels):
    """The text again: each sentinel of the source replaced by what the target says after it."""
    spans, at = {}, None
    for token in target:
        if token in sentinels:
            at = token
            spans[at] = []
        else:
            spans[at].append(token)
    return [x for token in source for x in (spans[token] if token in sentinels else [token])], spans


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("share", "mean", "hidden", "spans"), [(0.15, 3, 6, 2), (0.5, 3, 20, 7), (0.3, 1, 12, 12)])
def test_source_and_target_make_the_text(seed, share, mean, hidden, spans):
    sentinels = list(range(50, 70))
    source, target = corrupt_spans(TEXT, sentinels=sentinels, generator=g(seed), share=share, mean_span=mean)
    text, found = filled(source, target, sentinels)
    assert text == TEXT
    assert [token for token in source if token in sentinels] == sentinels[:spans]
    assert (target[0], target[-1]) == (sentinels[0], sentinels[spans])
    assert not found[sentinels[spans]]
    assert sum(map(len, found.values())) == hidden
    assert min(len(found[s]) for s in sentinels[:spans]) >= 1
    assert all(a not in sentinels or b not in sentinels for a, b in pairwise(source))


def test_a_span_may_begin_or_end_the_text():
    sources = [corrupt_spans(TEXT, sentinels=SENTINELS, generator=g(seed))[0] for seed in range(60)]
    for end in (0, -1):
        assert any(source[end] in SENTINELS for source in sources)


@pytest.mark.parametrize("seed", range(5))
def test_a_fragment_is_hidden_mask_by_mask(seed):
    source, target = cut_fragment(TEXT, mask_id=MASK, generator=g(seed))
    start = source.index(MASK)
    assert target == TEXT[start : start + 20]
    assert source == TEXT[:start] + [MASK] * 20 + TEXT[start + 20 :]


NOISES = {
    "mask": lambda ids, **x: mask_tokens(ids, **{"mask_id": MASK, "share": 0.5, "generator": g()} | x),
    "delete": lambda ids, **x: delete_tokens(ids, **{"share": 0.5, "generator": g()} | x),
    "infill": lambda ids, **x: infill(ids, **{"mask_id": MASK, "generator": g()} | x),
    "spans": lambda ids, **x: corrupt_spans(ids, **{"sentinels": SENTINELS, "generator": g()} | x),
    "fragment": lambda ids, **x: cut_fragment(ids, **{"mask_id": MASK, "generator": g()} | x),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none(noise, share):
    with pytest.raises(ValueError, match=f"share must be above 0 and below 1, got {share}"):
        noise(TEXT, share=share)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("n", [0, 1])
def test_a_text_that_is_too_short(noise, n):
    with pytest.raises(ValueError, match=f"a text of {n} tokens is too short"):
        noise(TEXT[:n])


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_two_tokens_are_enough_and_one_stays(noise):
    for share in (0.01, 0.99):
        noisy = noise([7, 8], share=share)
        source = noisy[0] if isinstance(noisy, tuple) else noisy
        assert len({7, 8} & set(source)) == 1


@pytest.mark.parametrize("name", ["mask", "infill", "spans", "fragment"])
def test_a_mark_that_the_text_holds(name):
    mark = SENTINELS[3] if name == "spans" else MASK
    with pytest.raises(ValueError, match=rf"the text holds \[{mark}\], which are to be marks"):
        NOISES[name]([*TEXT, mark])


def test_too_few_sentinels():
    with pytest.raises(ValueError, match="2 spans need 3 different sentinels, and there are 2"):
        corrupt_spans(TEXT, sentinels=[50, 51, 51], generator=g())
    corrupt_spans(TEXT, sentinels=[50, 51, 52], generator=g())


@pytest.mark.parametrize(("name", "mean"), [("infill", 0), ("infill", float("inf")), ("spans", 0.5), ("spans", 1e400)])
def test_a_mean_length_that_is_none(name, mean):
    with pytest.raises(ValueError, match=f"mean_span must be .* got {mean}"):
        NOISES[name](TEXT, mean_span=mean)


def test_nothing_to_move():
    with pytest.raises(ValueError, match="nothing to shuffle"):
        shuffle_sentences([], ends=[0], generator=g())
    with pytest.raises(ValueError, match="nothing to rotate"):
        rotate_document([], generator=g())


def test_noise_comes_from_the_generator_alone():
    for noise in NOISES.values():
        one, same, other = (noise(TEXT, generator=g(seed)) for seed in (1, 1, 2))
        assert one == same != other
