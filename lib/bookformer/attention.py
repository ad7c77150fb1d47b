"""Scaled dot-product attention, its masks, multi-head attention and the key-value cache.

Chapter: Attention. Papers: Vaswani et al. 2017 (attention, heads); Ainslie et al. 2023 (grouped heads).
Shapes: B batch, T query positions, S key positions, D model width, H heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.config import ModelConfig


def causal_mask(t: int, s: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Which keys each query may see when nobody may look ahead: (T, S) bool, True means "may attend".

    The queries are the last T of S positions; without `s`, all of them.

    Raises:
        ValueError: T is below 1, or there are fewer keys than queries.
    """
    s = t if s is None else s
    if t < 1 or s < t:
        raise ValueError(f"a causal mask needs at least one query and as many keys, got T = {t}, S = {s}")
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(diagonal=s - t)


def padding_mask(lengths: Tensor, s: int) -> Tensor:
    """Which keys are text and not padding: (B, 1, 1, S) bool, True means "may attend".

    Args:
        lengths: (B,), how many of the S positions of each sequence are text.
        s: S, the padded length.

    Raises:
        ValueError: a length is outside 1 to S.
    """
    for i, length in enumerate(lengths.tolist()):
        if not 1 <= length <= s:
            raise ValueError(f"length {length} of sequence {i} is outside 1 to {s}")
    return (torch.arange(s, device=lengths.device) < lengths[:, None])[:, None, None, :]  # (B, 1, 1, S)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, need_weights: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Average the values, weighted by how well each key matches the query.

    Keys and values may have fewer heads than queries: each then serves a group of query heads that stand side by side.

    Args:
        q: queries (..., T, K), with heads (..., H, T, K).
        k: keys (..., S, K).
        v: values (..., S, width of a value).
        mask: bool, broadcastable to (..., T, S); True means "may attend".
        need_weights: without, PyTorch's fused kernel computes the same output and never forms the weights.

    Returns:
        The averages (..., T, width of a value), and the weights (..., T, S) or None; each row of weights sums to 1.

    Raises:
        ValueError: shapes that do not fit, a mask that is not bool, or a query that may attend to no key.
    """
    _check_shapes(q, k, v)
    if mask is not None:
        _check_mask(mask, q, k)
    if k.dim() > 2 and k.size(-3) != q.size(-3):  # grouped heads
        groups = q.size(-3) // k.size(-3)
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)  # (..., H, S, K)
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)  # (..., T, S)
    return weights @ v, weights


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}"
    if min(q.dim(), k.dim(), v.dim()) < 2:
        raise ValueError(f"queries, keys and values need at least two dimensions: {shapes}")
    if q.size(-1) != k.size(-1):
        raise ValueError(f"queries and keys differ in width ({q.size(-1)} and {k.size(-1)}): {shapes}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"there must be one value for each key: {shapes}")
    if k.size(-2) == 0:
        raise ValueError(f"there is no key to attend to: {shapes}")
    if q.dim() > 2 and k.dim() > 2 and q.size(-3) % k.size(-3):
        raise ValueError(f"{q.size(-3)} query heads do not split into {k.size(-3)} key heads: {shapes}")


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f'a mask is bool (True means "may attend"), got {mask.dtype}')
    wanted = (*q.shape[:-1], k.size(-2))  # (..., T, S)
    try:
        fits = torch.broadcast_shapes(mask.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not broadcast to {tuple(wanted)}")
    blind = (~mask.any(dim=-1)).nonzero()
    if len(blind):
        raise ValueError(f"the mask hides every key from the query at index {tuple(blind[0].tolist())} of its shape")


class KVCache:
    """The keys and values of the positions already seen, so that a new token does not compute them again.

    Args:
        context_length: the most positions it will hold.
    """

    def __init__(self, context_length: int) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}")
        self.context_length = context_length
        self.length = 0  # positions held
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take the keys and values (B, heads, T, K) of T new positions; return those of all (B, heads, S, K).

        Raises:
            ValueError: the new positions do not fit.
        """
        end = self.length + k.size(-2)
        if end > self.context_length:
            raise ValueError(
                f"{k.size(-2)} positions after {self.length} are more than context_length ({self.context_length})"
            )
        if self._k is None:  # one block for the whole context: appending then copies nothing that is already there
            self._k = k.new_empty(*k.shape[:-2], self.context_length, k.size(-1))
            self._v = v.new_empty(*v.shape[:-2], self.context_length, v.size(-1))
        self._k[..., self.length : end, :] = k
        self._v[..., self.length : end, :] = v
        self.length = end
        return self._k[..., :end, :], self._v[..., :end, :]


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of the whole sequence.

    Without `context` a sequence attends to itself. With `context`, its queries ask another sequence (cross-attention).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.q = nn.Linear(config.d_model, config.n_heads * config.d_head)
        self.k = nn.Linear(config.d_model, config.n_kv_heads * config.d_head)
        self.v = nn.Linear(config.d_model, config.n_kv_heads * config.d_head)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: where the queries come from (B, T, D).
            context: where the keys and values come from (B, S, D); `x` itself when None.
            mask: bool, broadcastable to (B, H, T, S); True means "may attend".
            cache: holds the keys and values of earlier positions; those of `x` are added to it.
            need_weights: whether to return the weights too.

        Returns:
            The output (B, T, D), and the weights (B, H, T, S) or None.

        Raises:
            ValueError: as `attention` does; or a cache together with a context, which does not grow.
        """
        if cache is not None and context is not None:
            raise ValueError("a cache is for a sequence that attends to itself: give a cache or a context, not both")
        context = x if context is None else context
        q = self._split(self.q(x), self.n_heads)  # (B, H, T, K)
        k = self._split(self.k(context), self.n_kv_heads)  # (B, key heads, S, K)
        v = self._split(self.v(context), self.n_kv_heads)  # (B, key heads, S, K)
        if cache is not None:
            k, v = cache.append(k, v)
        y, weights = attention(q, k, v, mask, need_weights=need_weights)  # (B, H, T, K)
        return self.out(y.transpose(1, 2).flatten(start_dim=2)), weights  # heads side by side again: (B, T, D)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.d_head)).transpose(1, 2)  # (B, T, heads * K) -> (B, heads, T, K)
