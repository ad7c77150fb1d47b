"""Losses in other units, losses by place, and how sure a mean is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from bookformer.bpe import END_OF_TEXT, BPETokenizer
from bookformer.metrics import (
    bits,
    bootstrap_interval,
    chrf,
    exact_match,
    held_out_losses,
    nats_per_character,
    perplexity,
)
from bookformer.tokenizers import CharTokenizer

IDS = torch.randint(11, (50,), generator=torch.Generator().manual_seed(0))


class Sums(nn.Module):
    """Logits that depend on all tokens so far; dropout, so that the mode matters."""

    def __init__(self):
        super().__init__()
        self.table, self.dropout = nn.Embedding(11, 11), nn.Dropout(0.5)

    def forward(self, ids):
        return self.dropout(self.table(ids)).cumsum(dim=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Sums()


def test_perplexity_by_hand():
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(torch.tensor(0.0)) == 1
    assert perplexity(math.inf) == perplexity(1000) == math.inf


@pytest.mark.parametrize("loss", [-0.1, math.nan])
def test_a_loss_that_is_no_cross_entropy_has_no_perplexity(loss):
    with pytest.raises(ValueError, match=f"a cross-entropy is at least 0, got {loss}"):
        perplexity(loss)


def test_bits_by_hand():
    assert bits(math.log(8)) == pytest.approx(3)
    assert 2 ** bits(1.7) == pytest.approx(perplexity(1.7))
    with pytest.raises(ValueError, match="nan has no bits"):
        bits(math.nan)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_losses_by_place_equal_a_plain_loop(model, batch_size):
    by_hand = torch.zeros(6, dtype=torch.float64)
    model.eval()
    for start in range(0, 48, 6):  # eight windows; token 48 is the last target, token 49 is left out
        logits = model(IDS[None, start : start + 6])[0]
        for place in range(6):
            by_hand[place] += F.cross_entropy(logits[place], IDS[start + place + 1]).item() / 8
    losses = held_out_losses(model, IDS, 6, batch_size=batch_size)
    assert losses.shape == (6,)
    assert_close(losses, by_hand, atol=1e-6, rtol=0)


def test_a_text_of_one_window_and_its_target_is_enough(model):
    assert held_out_losses(model, IDS[:7], 6).shape == (6,)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_same_every_time_and_leaves_the_model_as_it_was(model, training):
    model.train(training)
    state = torch.get_rng_state()
    first = held_out_losses(model, IDS, 6)
    assert torch.equal(first, held_out_losses(model, IDS, 6))
    assert model.training == training
    assert not first.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def test_the_mode_is_put_back_after_an_error_too(model):
    model.train()
    with pytest.raises(IndexError):
        held_out_losses(model, IDS + 11, 6)
    assert model.training


@pytest.mark.parametrize(
    ("ids", "t", "b", "message"),
    [
        (IDS[:0], 6, 2, "a text of 0 tokens is too short for a window of 6 tokens and one more as target"),
        (IDS[:6], 6, 2, "a text of 6 tokens is too short for a window of 6 tokens"),
        (IDS[None], 6, 2, r"one row of tokens \(N,\), got shape \(1, 50\)"),
        (IDS, 0, 2, r"context_length \(0\) and batch_size \(2\) must be at least 1"),
        (IDS, 6, 0, r"context_length \(6\) and batch_size \(0\) must be at least 1"),
    ],
)
def test_impossible_texts_are_refused(model, ids, t, b, message):
    with pytest.raises(ValueError, match=message):
        held_out_losses(model, ids, t, batch_size=b)


def test_a_bootstrap_interval_is_near_the_textbooks():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    low, high = bootstrap_interval(values, torch.Generator().manual_seed(0))
    error = 1.96 * values.std().item() / math.sqrt(400)
    assert low == pytest.approx(values.mean().item() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean().item() + error, abs=0.1 * error)
    narrow = bootstrap_interval(values, torch.Generator().manual_seed(0), level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert (low, high) == bootstrap_interval(values, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([1.0], 0.95, r"at least two finite numbers \(N,\), got \[1.0\]"),
        ([1.0, math.nan], 0.95, r"at least two finite numbers \(N,\), got \[1.0, nan\]"),
        ([1.0, 2.0], 1.0, r"level \(1.0\) must be between 0 and 1"),
    ],
)
def test_what_has_no_interval_is_refused(values, level, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(torch.tensor(values), torch.Generator(), level=level)


class Uniform(nn.Module):
    """The same logit for each of v tokens."""

    def __init__(self, v):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(v))

    def forward(self, ids):
        return self.logits.expand(*ids.shape, -1)


def test_nats_are_shared_out_over_characters():
    """A guess among V tokens costs ln V for each token, and half of it for each character of a token of two."""
    chars = CharTokenizer("abc\n")
    ids = torch.tensor(chars.encode("abcabcabc"))
    assert nats_per_character(Uniform(4), chars, ids, 4) == pytest.approx(math.log(4))
    tokenizer = BPETokenizer.train("ababab", 258, [END_OF_TEXT])
    ids = torch.tensor([257, *tokenizer.encode("abababab"), 257, *tokenizer.encode("你")])  # 4 tokens, mark, 3 bytes
    assert len(ids) == 9
    # of the 8 targets, 4 hold two characters, one is a mark without any, and 3 are one character
    assert nats_per_character(Uniform(258), tokenizer, ids, 4) == pytest.approx(8 * math.log(258) / (8 + 0 + 1))


def test_only_what_fills_windows_counts():
    tokenizer = BPETokenizer.train("ababab", 258, [END_OF_TEXT])
    ids = torch.tensor([*tokenizer.encode("abababab"), *tokenizer.encode("xyz")])  # 7 tokens: one window of 5
    assert nats_per_character(Uniform(258), tokenizer, ids, 5) == pytest.approx(5 * math.log(258) / 8)


def test_exact_match():
    assert exact_match(["a", "b", "c", "d"], ["a", "b", "c", " d"]) == 0.75


def test_chrf_by_hand():
    assert chrf(["abc 你好"], ["abc 你好"]) == pytest.approx(100)
    assert chrf(["xyz"], ["你好吗"]) == 0
    # "ab" for "abc": of 1-grams 2 of 2 and 2 of 3, of 2-grams 1 of 1 and 1 of 2; recall counts double (beta 2)
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    assert chrf(["ab"], ["abc"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall), abs=0.01)


def test_chrf_is_over_all_pairs_together():
    assert chrf(["abcdefgh", "x"], ["abcdefgh", "y"]) > 60


@pytest.mark.parametrize("measure", [exact_match, chrf])
@pytest.mark.parametrize(("answers", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_answers_that_do_not_pair_up(measure, answers, references):
    message = f"as many answers as references, at least one: {len(answers)}, {len(references)}"
    with pytest.raises(ValueError, match=message):
        measure(answers, references)
