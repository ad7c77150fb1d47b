"""What a model and its training are made of: two frozen dataclasses, checked when they are built.

Read first. Imports nothing from this package.
"""

from dataclasses import dataclass
from numbers import Integral


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a model.

    Raises:
        ValueError: a size is not a positive whole number, `d_model` does not split into `n_heads`,
            or `n_heads` does not split into `n_kv_heads`.
    """

    vocab_size: int  # V, number of distinct tokens
    context_length: int  # T, the longest sequence that the model accepts
    d_model: int = 64  # D, width of the vector at each position
    n_heads: int = 4  # H, query heads
    n_kv_heads: int | None = None  # key and value heads; as many as n_heads when None

    def __post_init__(self) -> None:
        _at_least_one(self, "vocab_size", "context_length", "d_model", "n_heads", "kv_heads")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def d_head(self) -> int:
        """K, the width of one head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Raises:
        ValueError: a count is not a positive whole number, or the learning rate is not positive.
    """

    steps: int  # optimiser steps
    batch_size: int = 32  # B, sequences in a step
    learning_rate: float = 3e-3
    seed: int = 0  # of the initial weights and of the batches

    def __post_init__(self) -> None:
        _at_least_one(self, "steps", "batch_size")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
