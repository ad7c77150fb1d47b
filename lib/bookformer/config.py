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


KINDS = ("decoder", "encoder", "encoder-decoder")
POSITIONS = ("learned", "sinusoidal", "relative", "rotary", "alibi", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swiglu")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes and the parts of a Transformer. The defaults make a small GPT.

    Raises:
        ValueError: a size is not a positive whole number, a part is not among those that there are, `d_model` does not
            split into `n_heads`, `n_heads` does not split into `n_kv_heads`, or rotary positions find no pairs.
    """

    vocab_size: int  # V, number of distinct tokens
    context_length: int  # T, the longest sequence that the model accepts
    d_model: int = 64  # D, width of the vector at each position
    n_heads: int = 4  # H, query heads
    n_kv_heads: int | None = None  # key and value heads; as many as n_heads when None
    n_layers: int = 2  # L, blocks; in an encoder-decoder, of each of the two
    d_ff: int | None = None  # F, width inside the feed-forward part; 4 d_model when None
    kind: str = "decoder"  # who sees what: a decoder is causal, an encoder sees everything
    positions: str = "learned"  # one of POSITIONS
    rotary_base: float = 10_000.0  # the slowest pair of a rotary head turns by about 1 radian in so many positions
    relative_distance: int = 128  # relative bias: from here on, all distances share one number
    norm: str = "layer"  # or "rms"
    norm_place: str = "pre"  # before each part (GPT-2), or "post": after its residual (the original, BERT)
    norm_eps: float = 1e-5
    activation: str = "gelu"  # one of ACTIVATIONS
    bias: bool = True  # whether linear layers and layer norms have one
    dropout: float = 0.0  # share of numbers set to zero in training: of the embeddings, and of each part's output
    n_segments: int = 0  # BERT's sentence A and sentence B; 0: no segment embeddings
    norm_embeddings: bool = False  # BERT has a layer norm before its first block
    scale_embeddings: bool = False  # the original multiplies token embeddings by the root of d_model
    tie_embeddings: bool = True  # whether the output reads off with the token embeddings

    def __post_init__(self) -> None:
        _at_least_one(self, "vocab_size", "context_length", "d_model", "n_heads", "kv_heads", "n_layers", "ff_width")
        for name, known in (
            ("kind", KINDS),
            ("positions", POSITIONS),
            ("norm", ("layer", "rms")),
            ("norm_place", ("pre", "post")),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: d_head ({self.d_head}) must be even")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"sinusoids come in pairs: d_model ({self.d_model}) must be even")
        if self.positions == "relative" and not self.relative_distance > 16:
            raise ValueError(f"relative_distance ({self.relative_distance}) must be above 16, which have a bucket each")
        if self.positions == "alibi" and self.kind != "decoder":
            raise ValueError(
                "ALiBi's penalty is the same before and after: "
                f"a model of kind {self.kind!r} could not tell a text from its mirror image"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not isinstance(self.n_segments, Integral) or self.n_segments < 0:
            raise ValueError(f"n_segments must be a whole number of at least 0, got {self.n_segments!r}")
        for name in ("rotary_base", "norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def d_head(self) -> int:
        """K, the width of one head."""
        return self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        """F, the width inside the feed-forward part."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Raises:
        ValueError: a count is not a positive whole number, there is no such optimizer, a rate or a share is outside its
            range, or the seed is not a whole number.
    """

    steps: int  # optimiser steps
    batch_size: int = 32  # B, sequences in a step, over all processes together
    optimizer: str = "adamw"  # or "muon", for the matrices of a model's blocks, with AdamW for the rest
    learning_rate: float = 3e-3  # the highest, reached when the warm-up ends
    seed: int = 0  # of the batches and of dropout; a model's first weights are drawn before it comes here
    warmup_fraction: float = 0.05  # share of the steps in which the learning rate rises from near 0
    final_fraction: float = 0.1  # share of the highest learning rate that the last step has; 1 is no decay
    weight_decay: float = 0.1  # of matrices; vectors, such as biases and norms, have none
    beta2: float = 0.95  # how long AdamW remembers squares of gradients; 0.95, not 0.999, is usual for language
    clip: float | None = 1.0  # the largest norm of the gradient; None for no limit
    validate_every: int = 100  # steps between two validations
    patience: int | None = None  # validations without improvement after which training stops; None for never
    checkpoint_every: int = 100  # steps between two checkpoints

    def __post_init__(self) -> None:
        counts = ["steps", "batch_size", "validate_every", "checkpoint_every"]
        _at_least_one(self, *counts, *(["patience"] if self.patience is not None else []))
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        for name in ("learning_rate", "clip") if self.clip is not None else ("learning_rate",):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("warmup_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.beta2 < 1:
            raise ValueError(f"beta2 must be above 0 and below 1, got {self.beta2}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
