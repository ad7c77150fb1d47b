"""A check says what it checked, and fails with the numbers."""

import numpy as np
import pytest
import torch

from bookformer.checks import above, below, check


def test_a_true_claim_is_printed_without_its_numbers(capsys):
    check("rows sum to one", True, total=1.0)
    assert capsys.readouterr().out == "Checked: rows sum to one.\n"


def test_a_false_claim_fails_with_its_numbers():
    with pytest.raises(AssertionError, match=r"rows sum to one: not so \(total = 0.9\)"):
        check("rows sum to one", False, total=0.9)


@pytest.mark.parametrize(("margin", "room"), [(above(3.0, 1.0), 2.0), (below(1.0, 3.0), 2.0), (above(1.0, 3.0), -2.0)])
def test_a_margin_knows_how_far_it_is_from_failing(margin, room):
    assert margin.room == room
    assert bool(margin) == (room > 0)


def test_a_failed_margin_tells_value_and_bound():
    with pytest.raises(AssertionError, match=r"not so \(2.5 against at most 2.25, seed = 1\)"):
        check("the loss is low", below(2.5, 2.25), seed=1)


def test_what_is_not_a_number_fails():
    assert not above(float("nan"), 0)
    assert not below(float("nan"), 0)


@pytest.mark.parametrize("claim", [torch.tensor(True), np.bool_(True)])
def test_one_truth_value_of_any_kind_will_do(claim, capsys):
    check("it holds", claim)
    with pytest.raises(AssertionError):
        check("it does not", ~claim)


@pytest.mark.parametrize("claim", [(False, "why"), 0.5, float("nan"), None, torch.tensor(-3.0)])
def test_what_is_neither_true_nor_false_is_refused(claim):
    with pytest.raises(TypeError, match=r"it holds: .* is neither true nor false"):
        check("it holds", claim)
