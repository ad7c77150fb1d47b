"""Losses in other units, losses by place, and how sure a mean is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from bookformer.bpe import END_OF_TEXT, BPETokenizer
from bookformer.metrics import (
    answer_scores,
    best_spans,
    bits,
    bootstrap_interval,
    calibration_error,
    chrf,
    exact_match,
    held_out_losses,
    nats_per_character,
    perplexity,
    plain_answer,
    predict,
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


def squad(answer, reference):
    """SQuAD's arithmetic (Rajpurkar et al. 2016, 2018), written another way: words crossed out one by one."""
    drop = dict.fromkeys(map(ord, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    words = [
        [w for w in text.lower().translate(drop).split() if w not in ("a", "an", "the")] for text in (answer, reference)
    ]
    if not all(words):
        return float(words[0] == words[1]), float(words[0] == words[1])
    left, hits = list(words[1]), 0
    for word in words[0]:
        if word in left:
            left.remove(word)
            hits += 1
    return float(words[0] == words[1]), 2 * hits / (len(words[0]) + len(words[1]))


def test_answers_are_compared_in_a_plain_form():
    assert plain_answer("  The  Duke of Exeter's, an\tend.") == "duke of exeters end"
    assert plain_answer("Athena and theatre") == "athena and theatre"
    assert plain_answer("A the.") == ""


def test_squads_arithmetic():
    vocabulary = ["the", "king", "King", "henry,", "of", "France.", "a", "-", "duke"]
    draw = torch.Generator().manual_seed(0)
    for _ in range(500):
        answer, reference = (
            " ".join(vocabulary[i] for i in torch.randint(9, (int(n),), generator=draw))
            for n in torch.randint(5, (2,), generator=draw)
        )
        assert answer_scores(answer, [reference]) == pytest.approx(squad(answer, reference))


def test_scores_by_hand():
    assert answer_scores("the First Clown", ["first clown."]) == (1, 1)
    assert answer_scores("Clown", ["First Clown"]) == (0, pytest.approx(2 / 3))  # precision 1, recall 1/2
    assert answer_scores("Clown", ["Hamlet", "First Clown"]) == (0, pytest.approx(2 / 3))
    assert answer_scores("clown clown", ["clown"]) == (0, pytest.approx(2 / 3))
    assert answer_scores("", [""]) == (1, 1)
    assert answer_scores("", ["Hamlet"]) == answer_scores("Hamlet", [""]) == (0, 0)
    with pytest.raises(ValueError, match="nothing to compare the answer 'x' with"):
        answer_scores("x", [])


@pytest.mark.parametrize("longest", [1, 3, 20])
def test_spans_equal_an_exhaustive_search(longest):
    draw = torch.Generator().manual_seed(longest)
    first, last = torch.randn(2, 40, 12, generator=draw)
    allowed = torch.rand(40, 12, generator=draw) < 0.7
    allowed[:, 5] = True
    spans, sums = best_spans(first, last, allowed, longest)
    for row in range(40):
        found = {
            (i, j): (first[row, i] + last[row, j]).item()
            for i in range(12)
            for j in range(i, min(i + longest, 12))
            if allowed[row, i] and allowed[row, j]
        }
        assert tuple(spans[row].tolist()) == max(found, key=found.get)
        assert sums[row].item() == pytest.approx(max(found.values()))


def test_padding_of_minus_infinity_is_no_span():
    first = torch.tensor([[0.0, 1.0, -math.inf]])
    spans, sums = best_spans(first, first, torch.tensor([[True, True, True]]), 5)
    assert spans.tolist() == [[1, 1]]
    assert sums.tolist() == [2]


def test_spans_that_make_no_sense():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="at least one position: longest is 0"):
        best_spans(x, x, torch.ones(2, 3, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="text 1 has no position where a span may begin"):
        best_spans(x, x, torch.tensor([[True] * 3, [False] * 3]), 2)


def test_each_text_is_told_of_in_its_place():
    texts = [[3], [1, 2, 3, 4], [7, 7], [5], [6, 1, 2]]
    seen = []

    def model(ids, real):
        seen.append(ids.shape)
        return torch.stack([(ids * real).sum(dim=1), real.sum(dim=1)], dim=1)

    wanted = [[3, 1], [10, 4], [14, 2], [5, 1], [9, 3]]
    assert predict(model, texts, 9, batch_size=2).tolist() == wanted
    assert seen == [(2, 1), (2, 3), (1, 4)]
    weight = torch.ones(2, requires_grad=True)
    assert not predict(lambda ids, real: ids[:, :1] * weight, texts, 9).requires_grad
    for nothing in ([], [[1], []]):
        with pytest.raises(ValueError, match=f"none of them empty; got {len(nothing)}"):
            predict(model, nothing, 9)


# Calibration


def test_calibration_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.2, 0.8], [0.85, 0.15], [0.4, 0.6]])
    # 0.8 and 0.85 share a bin: 0.825 sure, half right; 0.95 is right; 0.6 is wrong
    assert calibration_error(p, torch.tensor([0, 1, 1, 0])) == pytest.approx((2 * 0.325 + 0.05 + 0.6) / 4)
    assert calibration_error(p, torch.tensor([0, 1, 1, 0]), bins=1) == pytest.approx(abs(0.8 - 0.5))
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0  # sure, and right
    assert calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1


def test_who_says_what_is_so_is_calibrated():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(20000, 3, generator=g).mul(2).softmax(dim=1)
    labels = torch.multinomial(p, 1, generator=g)[:, 0]
    assert calibration_error(p, labels) < 0.015
    assert calibration_error(p.square() / p.square().sum(dim=1, keepdim=True), labels) > 0.05  # too sure
    assert calibration_error(p.sqrt() / p.sqrt().sum(dim=1, keepdim=True), labels) > 0.05  # not sure enough


@pytest.mark.parametrize(
    ("p", "labels", "bins", "message"),
    [
        ([[0.5, 0.5]], [0, 1], 10, r"a label \(N,\) for each row .* got shapes \(2,\) and \(1, 2\)"),
        ([[1.0], [1.0]], [0, 0], 10, r"at least two classes; got shapes \(2,\) and \(2, 1\)"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 1], 10, "row 1 is no distribution"),
        ([[1.5, -0.5]], [0], 10, "row 0 is no distribution"),
        ([[math.nan, 0.5]], [0], 10, "row 0 is no distribution"),
        ([[0.5, 0.5]], [2], 10, "labels run from 2 to 2, and the classes from 0 to 1"),
        ([[0.5, 0.5]], [-1], 10, "labels run from -1 to -1"),
        ([[0.5, 0.5]], [1], 0, "bins must be at least 1, got 0"),
    ],
)
def test_a_calibration_that_makes_no_sense(p, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(torch.tensor(p), torch.tensor(labels), bins=bins)


def test_no_labels_have_no_calibration():
    with pytest.raises(ValueError, match=r"at least one, .* got shapes \(0,\) and \(0, 2\)"):
        calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
