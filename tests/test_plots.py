"""Figures show what they were given, in one style, and are shown once."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from bookformer import plots


def test_a_heatmap_shows_its_weights_and_tokens():
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    figure = plots.heatmap(weights, ["a", " "], ["b", "\n"])
    ax = figure.axes[0]
    assert np.array_equal(ax.images[0].get_array(), weights.detach())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "␣"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "↵"]


def test_panels_share_a_scale():
    figure = plots.heatmap(np.array([[[0.25]], [[0.75]]]), ["a"], ["b"], titles=["one", "two"])
    assert [ax.images[0].get_clim() for ax in figure.axes[:2]] == [(0, 0.75), (0, 0.75)]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["one", "two"]


def test_a_figure_is_left_to_the_caller_to_show():
    plots.curves([1, 2], {"line": [3, 4]}, xlabel="x", ylabel="y")
    assert plt.get_fignums() == []


def test_curves_differ_in_colour_and_dash():
    ax = plots.curves([1, 2], {"a": [3, 4], "b": [4, 5]}, xlabel="x", ylabel="y").axes[0]
    first, second = ax.lines
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert list(second.get_ydata()) == [4, 5]


@pytest.mark.parametrize(("lines", "beside"), [(4, False), (6, True)])
def test_a_long_legend_stands_beside_the_lines(lines, beside):
    figure = plots.curves([1, 2], {str(i): [i, i] for i in range(lines)}, xlabel="x", ylabel="y")
    figure.canvas.draw()
    ax = figure.axes[0]
    assert (ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1) == beside


def test_the_style_is_not_left_on():
    before = plt.rcParams["axes.spines.top"]
    plots.curves([1], {"line": [3]}, xlabel="x", ylabel="y")
    assert plt.rcParams["axes.spines.top"] == before


@pytest.mark.parametrize(
    ("weights", "tokens", "message"),
    [
        (np.ones((2, 3)), ["a", "b"], r"weights of shape \(1, 2, 3\) do not fit .* = \(1, 2, 2\)"),
        (np.ones((1, 1)), ["语"], "no Chinese font, so '语' can't be drawn"),
    ],
)
def test_what_can_not_be_drawn(weights, tokens, message):
    with pytest.raises(ValueError, match=message):
        plots.heatmap(weights, tokens, tokens)


def test_a_line_needs_a_value_for_each_place():
    with pytest.raises(ValueError, match="the line 'a' has 1 values for 2 places"):
        plots.curves([1, 2], {"a": [3]}, xlabel="x", ylabel="y")


def test_low_precision_is_taken():
    assert plots.as_array(torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)) == [0.5]
