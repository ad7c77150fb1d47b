"""Named activations: collected, replaced, and refused where there are none."""

import pytest
import torch
from torch.testing import assert_close

from bookformer.taps import NO_TAPS, Taps


def test_without_trace_and_edits_nothing_is_kept():
    x = torch.randn(3)
    assert NO_TAPS("out", x) is x
    assert NO_TAPS.inside("blocks.0") is NO_TAPS
    assert not NO_TAPS.wants("out")


def test_what_passes_is_collected_under_its_whole_name():
    trace, x = {}, torch.randn(3)
    taps = Taps(trace).inside("blocks.0").inside("attn")
    assert taps.wants("weights")
    assert taps("weights", x) is x
    assert list(trace) == ["blocks.0.attn.weights"]
    assert trace["blocks.0.attn.weights"] is x


def test_an_edit_takes_its_place_also_in_the_trace():
    trace, x = {}, torch.ones(3)
    taps = Taps(trace, {"a.out": lambda x: 2 * x}).inside("a")
    assert_close(taps("out", x), torch.full((3,), 2.0))
    assert_close(trace["a.out"], torch.full((3,), 2.0))
    assert_close(taps("in", x), x)
    taps.finish()


def test_only_what_is_edited_is_wanted():
    taps = Taps(None, {"a.weights": lambda x: x}).inside("a")
    assert taps.wants("weights")
    assert not taps.wants("out")


def test_an_edit_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"the edit of out makes shape \(2,\) of \(3,\)"):
        Taps(None, {"out": lambda x: x[:2]})("out", torch.ones(3))


def test_an_edit_of_nothing_is_refused_with_the_names_that_there_are():
    taps = Taps(None, {"blocks.9.out": torch.zeros_like})
    taps.inside("blocks.0")("out", torch.ones(3))
    with pytest.raises(ValueError, match=r"there is no activation blocks\.9\.out; there are blocks\.0\.out"):
        taps.finish()
