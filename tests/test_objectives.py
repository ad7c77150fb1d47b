"""What a model is asked is what was written down: shifted by one, padded at the end, masked as often as BERT said."""

from collections import Counter

import pytest
import torch

from bookformer.objectives import (
    IGNORED,
    blocks,
    distillation_loss,
    encode_pair,
    encode_question,
    masked,
    next_sentence_pairs,
    pad,
    permutation_masks,
    permuted,
    sequence_to_sequence,
)
from bookformer.tokenizers import WordPieceTokenizer

MASK, SPECIAL = 3, (0, 1)


def test_blocks_stand_end_to_end_with_targets_one_later():
    inputs, targets = blocks(torch.arange(11), 5)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert torch.equal(targets, inputs + 1)
    assert len(blocks(torch.arange(10), 5)[0]) == 1  # the last token is a target, not an input


@pytest.mark.parametrize(("ids", "length"), [(torch.arange(5), 5), (torch.arange(0), 1), (torch.ones(3, 3), 1)])
def test_a_text_that_fills_no_block(ids, length):
    with pytest.raises(ValueError, match="do not fill a block"):
        blocks(ids, length)


def test_a_block_of_no_tokens():
    with pytest.raises(ValueError, match="do not fill a block of 0 tokens"):
        blocks(torch.arange(5), 0)


def test_padding_stands_at_the_end_and_is_marked():
    ids, real = pad([[5, 6], [], [7]], 9, 3)
    assert ids.tolist() == [[5, 6, 9], [9, 9, 9], [7, 9, 9]]
    assert real.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert pad([[5, 6], [7]], 9)[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("sequences", "length", "message"),
    [
        ([], None, "a batch of 0 empty sequences is all padding"),
        ([[], []], 4, "a batch of 2 empty sequences is all padding"),
        ([[1], [1, 2, 3]], 2, "sequence 1 has 3 tokens, more than the length of 2"),
    ],
)
def test_padding_that_makes_no_sense(sequences, length, message):
    with pytest.raises(ValueError, match=message):
        pad(sequences, 0, length)


def test_each_target_token_is_asked_for_from_those_before_it():
    pairs = sequence_to_sequence([([5, 6, 7], [8]), ([5], [8, 9])], begin=1, end=2, padding=0)
    assert pairs.source.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert pairs.source_real.tolist() == [[True] * 3, [True, False, False]]
    assert pairs.inputs.tolist() == [[1, 8, 0], [1, 8, 9]]
    assert pairs.targets.tolist() == [[8, 2, IGNORED], [8, 9, 2]]


def test_a_padding_id_that_is_also_a_token_is_still_asked_for():
    pairs = sequence_to_sequence([([5], [0]), ([5], [0, 0])], begin=1, end=2, padding=0)
    assert pairs.targets.tolist() == [[0, 2, IGNORED], [0, 0, 2]]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="the source of pair 1 is all padding"):
        sequence_to_sequence([([5], [6]), ([], [6])], begin=1, end=2, padding=0)


def corrupted(n=200_000, **changes):
    ids = torch.arange(n).view(100, -1) % 20
    settings = {"mask_id": MASK, "vocab_size": 20, "generator": torch.Generator().manual_seed(0), "never": SPECIAL}
    return ids, *masked(ids, **settings | changes)


def test_berts_shares():
    """15% selected; of these 80% masked, 10% drawn, 10% kept: each within five standard deviations of its count."""
    ids, inputs, targets = corrupted()
    selected = targets != IGNORED
    allowed = ~torch.isin(ids, torch.tensor([*SPECIAL, MASK]))
    n = int(allowed.sum())
    assert abs(selected.sum().item() - 0.15 * n) < 5 * (n * 0.15 * 0.85) ** 0.5
    k = int(selected.sum())
    deviation = (k * 0.8 * 0.2) ** 0.5
    assert abs((inputs[selected] == MASK).sum().item() - 0.8 * k) < 5 * deviation
    drawn = selected & (inputs != MASK) & (inputs != ids)
    assert abs(drawn.sum().item() - 0.1 * k * 16 / 17) < 5 * deviation  # one in 17 draws the token that was there


def test_what_was_not_selected_stays_and_is_not_asked_for():
    ids, inputs, targets = corrupted()
    selected = targets != IGNORED
    assert torch.equal(inputs[~selected], ids[~selected])
    assert torch.equal(targets[selected], ids[selected])
    assert not torch.isin(ids[selected], torch.tensor([*SPECIAL, MASK])).any()


def test_drawn_tokens_are_all_the_others():
    ids, inputs, targets = corrupted()
    drawn = inputs[(targets != IGNORED) & (inputs != MASK) & (inputs != ids)]
    assert set(drawn.tolist()) == set(range(20)) - {*SPECIAL, MASK}


def test_masks_come_from_the_generator_alone():
    first, again, other = (corrupted(generator=torch.Generator().manual_seed(s))[1] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0}, "share must be above 0 and below 1, got 0"),
        ({"share": 1}, "share must be above 0 and below 1, got 1"),
        ({"share": 1.5}, "share must be above 0 and below 1, got 1.5"),
        ({"never": range(20)}, "none of 200000 tokens can be selected"),
        ({"vocab_size": 2}, r"a vocabulary of 2 has no token to draw beside \[0, 1, 3\]"),
    ],
)
def test_masking_that_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        corrupted(**changes)


def test_permutation_masks_by_hand():
    content, query = permutation_masks(torch.tensor([[2, 0, 1]]))
    assert content[0, 0].int().tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert query[0, 0].int().tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 1]]  # place 2 comes first, and sees itself


def test_a_permuted_text_is_not_moved_and_its_last_places_are_asked_for():
    ids = torch.randint(5, 50, (300, 13), generator=torch.Generator().manual_seed(0))
    content, query, targets = permuted(ids, generator=torch.Generator().manual_seed(0), share=0.25)
    assert content.shape == query.shape == (300, 1, 13, 13)
    assert (targets != IGNORED).sum(1).tolist() == [3] * 300
    asked = targets != IGNORED
    assert torch.equal(targets[asked], ids[asked])
    seen = content.sum(-1)[:, 0]  # (B, T): the turn of each place, counted from 1
    assert (seen[:, 0] == 1).all()  # the first token comes first
    assert not asked[:, 0].any()
    assert (seen[asked] > 10).all()
    assert torch.equal(seen.sort(1).values, torch.arange(1, 14).repeat(300, 1))
    off = ~torch.eye(13, dtype=torch.bool)
    assert torch.equal(query & off, content & off)
    assert not query.diagonal(dim1=-2, dim2=-1)[:, 0, 1:].any()
    shares = asked[:, 1:].float().mean(0)  # each place is asked for as often as any other
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 300) ** 0.5


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.tensor([[0, 1], [1, 1]]), "row 1 of the order does not name each of 2 places once"),
        (torch.tensor([[1, 2]]), "row 0 of the order does not name"),
        (torch.tensor([0, 1]), r"an order is places \(B, T\)"),
        (torch.empty(0, 3), r"an order is places \(B, T\)"),
    ],
)
def test_an_order_that_is_none(order, message):
    with pytest.raises(ValueError, match=message):
        permutation_masks(order)


@pytest.mark.parametrize(
    ("shape", "share", "message"),
    [((2, 1), 0.5, "T at least 2, got shape"), ((0, 4), 0.5, "T at least 2"), ((4,), 0.5, "T at least 2"),
     ((2, 4), 0.0, "share must be above 0 and below 1, got 0.0"), ((2, 4), 1.0, "below 1, got 1.0")],
)  # fmt: skip
def test_permuting_that_makes_no_sense(shape, share, message):
    with pytest.raises(ValueError, match=message):
        permuted(torch.zeros(shape, dtype=torch.long), generator=torch.Generator(), share=share)


def logits_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distillation_by_the_formula():
    """Cross-entropy of the softened distributions, less the teacher's entropy, times T squared; and the true tokens."""
    student, teacher, targets = logits_of(2, 3, 5), logits_of(2, 3, 5, seed=1), torch.tensor([[0, 4, 2], [1, 1, 3]])
    p, q = (teacher / 3).softmax(-1), (student / 3).softmax(-1)
    soft = (-(p * q.log()).sum(-1) + (p * p.log()).sum(-1)).mean()
    hard = -student.softmax(-1).gather(-1, targets[..., None]).log().mean()
    found = distillation_loss(student, teacher, targets, temperature=3.0, share=0.7)
    assert found.item() == pytest.approx((0.7 * 9 * soft + 0.3 * hard).item())


def test_a_student_that_agrees_pays_for_the_true_tokens_alone():
    logits, targets = logits_of(4, 5), torch.tensor([0, 1, 2, 3])
    assert distillation_loss(logits, logits + 7, targets, share=1.0).item() == pytest.approx(0, abs=1e-12)


def test_its_gradient_goes_to_the_student_alone_and_hardly_depends_on_a_high_temperature():
    targets, norms = torch.zeros(4, dtype=torch.long), []
    for temperature in (50.0, 100.0):
        student, teacher = logits_of(4, 5).requires_grad_(), logits_of(4, 5, seed=1).requires_grad_()
        distillation_loss(student, teacher, targets, temperature=temperature, share=1.0).backward()
        assert teacher.grad is None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_what_is_ignored_counts_in_neither_part():
    student, teacher, targets = logits_of(2, 3, 5), logits_of(2, 3, 5, seed=1), torch.tensor([[0, 4, 2], [1, 1, 3]])
    hidden = targets.clone()
    hidden[1] = IGNORED
    assert_close = torch.testing.assert_close
    assert_close(distillation_loss(student, teacher, hidden), distillation_loss(student[0], teacher[0], targets[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": torch.zeros(2, 6)}, r"logits \(2, 5\), the teacher's \(2, 6\) and targets \(2,\) do not fit"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"targets \(3,\) do not fit"),
        ({"temperature": 0.0}, r"temperature \(0.0\) must be positive"),
        ({"share": 1.1}, r"share \(1.1\) from 0 to 1"),
        ({"targets": torch.full((2,), IGNORED)}, "none of 2 targets counts"),
    ],
)
def test_distillation_that_makes_no_sense(changes, message):
    arguments = {"logits": torch.zeros(2, 5), "teacher": torch.zeros(2, 5), "targets": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments | changes)


def test_a_pair_as_bert_reads_it():
    ids, segments = encode_pair([5, 6], [7, 8, 9], cls=1, sep=2, length=12)
    assert ids == [1, 5, 6, 2, 7, 8, 9, 2]
    assert segments == [0, 0, 0, 0, 1, 1, 1, 1]
    assert encode_pair([], [7], cls=1, sep=2, length=4) == ([1, 2, 7, 2], [0, 0, 1, 1])


@pytest.mark.parametrize("m", range(6))
@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("length", [4, 5, 8, 20])
def test_a_pair_that_is_too_long_is_cut_as_in_berts_own_code(m, n, length):
    first, second = list(range(10, 10 + m)), list(range(20, 20 + n))
    ids, segments = encode_pair(first, second, cls=1, sep=2, length=length)
    while len(first) + len(second) > length - 3:  # truncate_seq_pair
        (first if len(first) > len(second) else second).pop()
    assert ids == [1, *first, 2, *second, 2]
    assert segments == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_a_pair_without_room():
    with pytest.raises(ValueError, match="a length of 3 has no place for a token"):
        encode_pair([5], [6], cls=1, sep=2, length=3)


DOCUMENTS = [[[0], [1], [2]], [[10]], [], [[20], [21], [22], [23]]]


def test_half_of_the_pairs_follow_and_the_others_are_of_another_document():
    pairs = next_sentence_pairs(DOCUMENTS, 20_000, generator=torch.Generator().manual_seed(0))
    true = [(a[0], b[0]) for a, b, follows in pairs if follows == 1]
    false = [(a[0], b[0]) for a, b, follows in pairs if follows == 0]
    assert len(true) + len(false) == 20_000
    assert abs(len(true) - 10_000) < 5 * 5000**0.5
    assert all(b == a + 1 for a, b in true)
    assert all(a // 10 != b // 10 for a, b in false)


def test_all_that_may_be_drawn_is_equally_likely():
    pairs = next_sentence_pairs(DOCUMENTS, 20_000, generator=torch.Generator().manual_seed(0))
    firsts = Counter(a[0] for a, _, _ in pairs)
    assert set(firsts) == {0, 1, 20, 21, 22}  # each that another one follows
    assert all(abs(n - 4000) < 5 * 3200**0.5 for n in firsts.values())
    others = Counter(b[0] for a, b, follows in pairs if not follows and a[0] < 10)
    assert set(others) == {10, 20, 21, 22, 23}
    assert all(abs(n - 800) < 5 * 680**0.5 for n in others.values())
    assert {b[0] for a, b, follows in pairs if not follows and a[0] >= 20} == {0, 1, 2, 10}


def test_pairs_come_from_the_generator_alone():
    first, again, other = (
        next_sentence_pairs(DOCUMENTS, 50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("documents", "n", "message"),
    [
        ([], 5, "5 pairs can't be drawn from 0 sentences in 0 documents"),
        ([[[1]], [[2]]], 5, "5 pairs can't be drawn from 2 sentences in 2 documents"),
        (DOCUMENTS, 0, "0 pairs can't be drawn from 8 sentences"),
        ([[[1], [2]], []], 5, "all 2 sentences stand in one document"),
    ],
)
def test_pairs_that_can_not_be_drawn(documents, n, message):
    with pytest.raises(ValueError, match=message):
        next_sentence_pairs(documents, n, generator=torch.Generator())


@pytest.fixture
def pieces():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "says", "no", "first", "clown", ".", "ham", "##let"]
    return WordPieceTokenizer(vocabulary)


def test_a_question_about_a_text_by_hand(pieces):
    words = ["First", "Clown.", "No", "Hamlet.", "no"]
    question = encode_question(pieces, "who says", words, ["Hamlet."], length=15)
    assert pieces.decode(question.ids) == "[CLS] who says [SEP] first clown . no hamlet . no [SEP]"
    assert question.segments == [0] * 4 + [1] * 9
    assert question.words == [-1, -1, -1, -1, 0, 1, 1, 2, 3, 3, 3, 4, -1]
    assert question.span == (8, 10)
    assert encode_question(pieces, "who says", words, ["First", "Clown."], length=15).span == (4, 6)
    assert encode_question(pieces, "who says", words, None, length=15).span == (0, 0)
    assert encode_question(pieces, "no", ["no", "no"], ["no"], length=15).span == (3, 3)  # the first of two


def test_questions_that_make_no_sense(pieces):
    with pytest.raises(ValueError, match="the answer 'clown first' is not in its text: 'first clown'"):
        encode_question(pieces, "who", ["first", "clown"], ["clown", "first"], length=15)
    with pytest.raises(ValueError, match="the answer '' is not in its text"):
        encode_question(pieces, "who", ["first", "clown"], [], length=15)
    with pytest.raises(ValueError, match="question and text are 6 tokens, more than the length of 5"):
        encode_question(pieces, "who", ["first", "clown"], None, length=5)
