"""Widgets that answer without a kernel: each class stands beside its own plain script and style sheet.

They take arrays and tokens, never a model.
"""

from bookformer.widgets.attention_view import AttentionView
from bookformer.widgets.beam_view import BeamView
from bookformer.widgets.label_view import LabelView
from bookformer.widgets.loss_view import LossView
from bookformer.widgets.merge_view import MergeView
from bookformer.widgets.ngram_view import NGramView
from bookformer.widgets.picture_view import PictureView
from bookformer.widgets.position_view import PositionView
from bookformer.widgets.sampling_view import SamplingView

__all__ = [
    "AttentionView",
    "BeamView",
    "LabelView",
    "LossView",
    "MergeView",
    "NGramView",
    "PictureView",
    "PositionView",
    "SamplingView",
]
