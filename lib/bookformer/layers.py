"""Norms, the feed-forward part, the block that a Transformer repeats, and a stack of blocks.

Chapter: The Transformer. Papers: Vaswani et al. 2017 (the block); Ba et al. 2016 (layer norm); Zhang and Sennrich 2019
(RMS norm); Xiong et al. 2020 (norm before or after); Hendrycks and Gimpel 2016 (GELU); Shazeer 2020 (SwiGLU).
Shapes: B batch, T positions, S positions of the other sequence, D model width, F width inside the feed-forward part.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.attention import KVCache, MultiHeadAttention
from bookformer.config import ModelConfig
from bookformer.positions import NoPositions
from bookformer.taps import NO_TAPS, Taps


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm that the configuration asks for: of each position's D numbers, by itself."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class FeedForward(nn.Module):
    """Two linear layers with a bend between them, for each position by itself; SwiGLU has a third that gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        if self.activation == "swiglu":
            self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor, taps: Taps = NO_TAPS) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        match self.activation:
            case "relu":
                hidden = self.up(x).relu()  # (B, T, F)
            case "gelu":
                hidden = F.gelu(self.up(x))
            case "gelu_tanh":
                hidden = F.gelu(self.up(x), approximate="tanh")
            case "swiglu":
                hidden = F.silu(self.gate(x)) * self.up(x)
        return self.down(taps("hidden", hidden))


class Block(nn.Module):
    """Attention, attention to another sequence where there is one, and feed-forward; each with a residual and a norm.

    Args:
        config: of the model.
        cross: whether the block also attends to another sequence.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.attn, self.attn_norm = MultiHeadAttention(config), make_norm(config)
        if cross:
            self.cross, self.cross_norm = MultiHeadAttention(config), make_norm(config)
        self.ff, self.ff_norm = FeedForward(config), make_norm(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        positions: NoPositions | None = None,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        taps: Taps = NO_TAPS,
    ) -> Tensor:
        """From (B, T, D) to (B, T, D).

        Args:
            x: one vector for each position.
            mask: bool, (T, S) or broadcastable to (B, H, T, S), S counting cached positions too; True means
                "may attend".
            bias: what the position scheme adds to the scores (H, T, S).
            causal: whether each position is kept from later ones.
            positions: the scheme that turns queries and keys.
            cache: keys and values of earlier positions; those of `x` are added to it.
            memory: the other sequence (B, S, D), for a block with cross-attention.
            memory_mask: bool, broadcastable to (B, H, T, S).
            taps: names what is computed.
        """

        def attend(x: Tensor) -> Tensor:
            inner = taps.inside("attn")
            return self.attn(x, mask=mask, bias=bias, causal=causal, positions=positions, cache=cache, taps=inner)[0]

        def look_across(x: Tensor) -> Tensor:
            return self.cross(x, memory, mask=memory_mask, taps=taps.inside("cross"))[0]

        x = self._part(x, "attn", attend, self.attn_norm, taps)
        if memory is not None:
            x = self._part(x, "cross", look_across, self.cross_norm, taps)
        x = self._part(x, "ff", lambda x: self.ff(x, taps.inside("ff")), self.ff_norm, taps)
        return taps("out", x)

    def _part(self, x: Tensor, name: str, part, norm: nn.Module, taps: Taps) -> Tensor:
        """One part with its residual, the norm before it or after."""
        y = taps(f"{name}.out", part(norm(x) if self.pre else x))  # (B, T, D)
        x = x + self.dropout(y)
        return x if self.pre else norm(x)


class Stack(nn.Module):
    """Blocks one after the other, and a last norm where they norm before their parts.

    Args:
        config: of the model.
        causal: whether each position is kept from later ones.
        cross: whether the blocks also attend to another sequence.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(Block(config, cross=cross) for _ in range(config.n_layers))
        self.norm = make_norm(config) if config.norm_place == "pre" else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: NoPositions | None = None,
        cache: Sequence[KVCache] | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        taps: Taps = NO_TAPS,
    ) -> Tensor:
        """From (B, T, D) to (B, T, D); the arguments are those of `Block`, with one cache for each block."""
        t = x.size(1)
        bias = None if positions is None else positions.bias(t, t + (cache[0].length if cache else 0))  # (H, T, S)
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                mask=mask,
                bias=bias,
                causal=self.causal,
                positions=positions,
                cache=None if cache is None else cache[i],
                memory=memory,
                memory_mask=memory_mask,
                taps=taps.inside(f"blocks.{i}"),
            )
        return taps("final", self.norm(x))
