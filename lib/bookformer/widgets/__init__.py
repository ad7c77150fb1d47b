"""Widgets that answer without a kernel: each class stands beside its own plain script and style sheet.

They take arrays and tokens, never a model.
"""

from bookformer.widgets.attention_view import AttentionView
from bookformer.widgets.ngram_view import NGramView
from bookformer.widgets.position_view import PositionView

__all__ = ["AttentionView", "NGramView", "PositionView"]
