"""XLNet's two streams: what a place holds, and what it asks, through the same weights.

Chapter: Other objectives. Paper: Yang et al. 2019. Not in it: their memory of the text before, and their own relative
positions; any scheme of `positions` that an encoder can have will do.
Shapes: B batch, T positions, D model width, V tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.config import ModelConfig
from bookformer.positions import NoPositions
from bookformer.transformer import Transformer


class TwoStream(nn.Module):
    """Predicts a token from those before it in an order, knowing where it stands and not what it is.

    The content stream begins with the tokens. The query stream begins with one learned vector, the same at each place.
    Both pass through the same blocks as one sequence of 2 T positions, in which place t stands twice, and nobody looks
    at a query. After training the queries are no longer needed: `body` is an encoder like any other.

    Raises:
        ValueError: the configuration is not that of an encoder whose embeddings are tied and neither scaled, normed
            nor added to segments.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        plain = config.tie_embeddings and not (config.scale_embeddings or config.norm_embeddings or config.n_segments)
        if config.kind != "encoder" or not plain:
            raise ValueError(
                "two streams want kind 'encoder', tied embeddings, no scale, norm or segments; got "
                f"{config.kind!r}, {config.tie_embeddings}, {config.scale_embeddings}, {config.norm_embeddings}, "
                f"{config.n_segments}"
            )
        self.config = config
        self.body = Transformer(config)
        self.query = nn.Parameter(torch.empty(config.d_model).normal_(std=0.02))

    def forward(self, ids: Tensor, content: Tensor, query: Tensor) -> Tensor:
        """From token ids (B, T) to what each query expects at its place: logits (B, T, V).

        Args:
            ids: token ids, such as begin with a token that comes first in every order.
            content: bool (T, T) or (B, 1, T, T), which tokens each content vector sees, as `permutation_masks` gives.
            query: bool, likewise: which tokens each query sees.

        Raises:
            ValueError: an id that is not there, more of them than `context_length`, or masks that are not bool, do not
                fit the ids or hide every token from a place.
        """
        self._check(ids, content, query)
        t, body = ids.size(1), self.body
        x = torch.cat([body.tokens(ids), self.query.expand(len(ids), t, -1)], dim=1)  # (B, 2 T, D)
        where = body.positions.add(torch.arange(t, device=ids.device).repeat(2))
        x = body.dropout(x if where is None else x + where)
        seen = torch.cat([content, query], dim=-2)  # (..., 2 T, T)
        mask = torch.cat([seen, torch.zeros_like(seen)], dim=-1)  # (..., 2 T, 2 T): nobody sees a query
        y = body.stack(x, mask=mask, positions=_Twice(body.positions))  # (B, 2 T, D)
        return F.linear(y[:, t:], body.tokens.weight)

    def _check(self, ids: Tensor, content: Tensor, query: Tensor) -> None:
        if ids.dim() != 2 or not ids.numel() or ids.size(1) > self.config.context_length:
            raise ValueError(f"ids must be (B, T), T from 1 to {self.config.context_length}; got {tuple(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(
                f"ids run from 0 to {self.config.vocab_size - 1}, got {ids.min().item()} to {ids.max().item()}"
            )
        b, t = ids.shape
        for name, mask in (("content", content), ("query", query)):
            if mask.dtype != torch.bool or mask.shape not in ((t, t), (b, 1, t, t)):
                raise ValueError(
                    f"the {name} mask must be bool ({t}, {t}) or ({b}, 1, {t}, {t}), got {mask.dtype} "
                    f"{tuple(mask.shape)}"
                )
        if content.shape != query.shape:
            raise ValueError(f"the masks differ in shape: {tuple(content.shape)} and {tuple(query.shape)}")


class _Twice(NoPositions):
    """A scheme for a text that stands there twice: both halves are at places 0 to T - 1."""

    def __init__(self, scheme: NoPositions) -> None:
        nn.Module.__init__(self)
        self.scheme = scheme

    def rotate(self, x: Tensor, start: int) -> Tensor:
        return torch.cat([self.scheme.rotate(half, start) for half in x.chunk(2, dim=-2)], dim=-2)

    def bias(self, t: int, s: int) -> Tensor | None:
        one = self.scheme.bias(t // 2, s // 2)  # (H, T, T)
        return None if one is None else one.repeat(1, 2, 2)
