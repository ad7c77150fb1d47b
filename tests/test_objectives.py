"""What a model is asked is what was written down: shifted by one, padded at the end, masked as often as BERT said."""

import pytest
import torch

from bookformer.objectives import IGNORED, blocks, masked, pad, sequence_to_sequence

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
        ({"share": 0}, "share must be above 0 and at most 1, got 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1, got 1.5"),
        ({"never": range(20)}, "none of 200000 tokens can be selected"),
        ({"vocab_size": 2}, r"a vocabulary of 2 has no token to draw beside \[0, 1, 3\]"),
    ],
)
def test_masking_that_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        corrupted(**changes)
