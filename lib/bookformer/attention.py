"""Scaled dot-product attention, its masks, multi-head attention and the key-value cache.

Chapters: Attention; Multi-head attention. Papers: Vaswani et al. 2017 (attention, heads); Shazeer 2019 and Ainslie
et al. 2023 (grouped heads).
Shapes: B batch, T query positions, S key positions, D model width, H heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.config import ModelConfig
from bookformer.positions import NoPositions
from bookformer.taps import NO_TAPS, Taps


def causal_mask(t: int, s: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Which keys each query may see when nobody may look ahead: (T, S) bool, True means "may attend".

    The queries are the last T of S positions; without `s`, all of them. (PyTorch's own `is_causal` takes them for
    the first T.)

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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Average the values, weighted by how well each key matches the query.

    With heads (four dimensions or more), keys and values may have fewer of them than queries: each then serves a
    group of query heads that stand side by side.

    Args:
        q: queries (..., T, K), with heads (..., H, T, K).
        k: keys (..., S, K).
        v: values (..., S, width of a value).
        mask: bool, broadcastable to (..., T, S); True means "may attend".
        bias: added to the scores, broadcastable to (..., T, S): what some position schemes have to say.
        causal: whether each query is kept from later keys too, the queries being the last T of S positions.
        need_weights: without, PyTorch's fused kernel computes the same output and never forms the weights.

    Returns:
        The averages (..., T, width of a value), and the weights (..., T, S) or None; each row of weights sums to 1.

    Raises:
        ValueError: shapes that do not fit, a mask that is not bool, a bias that is not finite, or a query that may
            attend to no key.
    """
    _check_shapes(q, k, v)
    if mask is not None:
        _check_mask(mask, q, k)
    if bias is not None:
        _check_bias(bias, q, k)
        bias = bias.to(q.dtype)
    t, s = q.size(-2), k.size(-2)
    causal = causal and t > 1  # the last position alone sees everything
    # the one causal case that the fused kernel knows without a table
    whole = causal and mask is None and bias is None and t == s
    if causal and not (whole and not need_weights):
        past = causal_mask(t, s, device=q.device)
        if mask is not None:
            _check_mask(mask & past, q, k)
        mask = past if mask is None else mask & past
    if not need_weights:
        lift = (None,) * (4 - q.dim())  # the fused kernel wants (B, H, T, K)
        grouped = q.dim() > 3 and k.size(-3) != q.size(-3)
        table = bias if mask is None or bias is None else bias.masked_fill(~mask, float("-inf"))
        table = mask if bias is None else table
        y = F.scaled_dot_product_attention(
            q[lift], k[lift], v[lift], attn_mask=table, is_causal=whole, enable_gqa=grouped
        )
        return y[(0,) * len(lift)], None
    k, v = _for_each_head(k, q), _for_each_head(v, q)  # (..., H, S, K)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (..., T, S); divided first: float16 ends at 65,504
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)  # (..., T, S)
    return weights @ v, weights


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values once for each query head of their group."""
    return x if q.dim() < 4 or x.size(-3) == q.size(-3) else x.repeat_interleave(q.size(-3) // x.size(-3), dim=-3)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    def shapes() -> str:
        return f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}"

    if q.dim() < 2 or not q.dim() == k.dim() == v.dim():
        raise ValueError(f"queries, keys and values need equally many dimensions, at least two: {shapes()}")
    if q.size(-1) != k.size(-1):
        raise ValueError(f"queries and keys differ in width ({q.size(-1)} and {k.size(-1)}): {shapes()}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"there must be one value for each key: {shapes()}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"there is no query or no key, so nothing to attend: {shapes()}")
    batch = -3 if q.dim() > 3 else -2  # where the batch dimensions end
    if q.shape[:batch] != k.shape[:batch]:
        raise ValueError(f"queries and keys are of different batches: {shapes()}")
    if q.dim() > 3 and q.size(-3) % k.size(-3):
        raise ValueError(f"{q.size(-3)} query heads do not split into {k.size(-3)} key heads: {shapes()}")


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f'a mask is bool (True means "may attend"), got {mask.dtype}')
    wanted = (*q.shape[:-1], k.size(-2))  # (..., T, S)
    if mask.dim() not in (2, len(wanted)):
        raise ValueError(
            f"a mask is (T, S) or has all dimensions of the scores {wanted}, such as (B, 1, 1, S) for padding; "
            f"got shape {tuple(mask.shape)}"
        )
    _check_fits("mask", mask, wanted)
    blind = (~mask.any(dim=-1)).nonzero()
    if len(blind):
        raise ValueError(f"the mask hides every key from the query at index {tuple(blind[0].tolist())} of its shape")


def _check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    _check_fits("bias", bias, (*q.shape[:-1], k.size(-2)))
    if not bias.is_floating_point() or not bias.isfinite().all():
        raise ValueError(f"a bias holds finite numbers to add to the scores; hide keys with a mask (got {bias.dtype})")


def _check_fits(what: str, x: Tensor, wanted: tuple[int, ...]) -> None:
    try:
        fits = torch.broadcast_shapes(x.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"a {what} of shape {tuple(x.shape)} does not broadcast to {tuple(wanted)}")


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
            ValueError: the new positions do not fit, are unlike those held, or want a gradient, which a cache that
                is written in place can't carry.
        """
        if k.requires_grad or v.requires_grad:
            raise ValueError("a cache is for generating: use it under torch.no_grad()")
        end = self.length + k.size(-2)
        if end > self.context_length:
            raise ValueError(
                f"{k.size(-2)} positions after {self.length} are more than context_length ({self.context_length})"
            )
        if not self.length:
            self._k, self._v = k[..., :0, :], v[..., :0, :]
        for new, held in ((k, self._k), (v, self._v)):
            if new.shape != (*held.shape[:-2], k.size(-2), held.size(-1)) or new.dtype != held.dtype:
                raise ValueError(
                    f"positions of shape {tuple(new.shape)} ({new.dtype}) do not fit a cache of "
                    f"{tuple(held[..., : self.length, :].shape)} ({held.dtype})"
                )
        if end > self._k.size(-2):  # twice what is needed, so that most appending copies nothing
            room = min(2 * end, self.context_length)
            self._k, self._v = self._grown(self._k, room), self._grown(self._v, room)
        for new, held in ((k, self._k), (v, self._v)):
            held.narrow(-2, self.length, new.size(-2)).copy_(new)
        self.length = end
        return self._k.narrow(-2, 0, end), self._v.narrow(-2, 0, end)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch (N,), in this order and as often as they are named: for a search that branches.

        Raises:
            ValueError: nothing is held yet.
        """
        if not self.length:
            raise ValueError("an empty cache has no rows to select")
        self._k, self._v = self._k.index_select(0, rows), self._v.index_select(0, rows)

    def _grown(self, held: Tensor, room: int) -> Tensor:
        grown = held.new_empty(*held.shape[:-2], room, held.size(-1))  # (B, heads, room, K)
        grown[..., : self.length, :] = held[..., : self.length, :]
        return grown


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of the whole sequence.

    Without `context` a sequence attends to itself. With `context`, its queries ask another sequence (cross-attention).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.d_head = config.n_heads, config.kv_heads, config.d_head
        self.q = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=config.bias)
        self.k = nn.Linear(config.d_model, config.kv_heads * config.d_head, bias=config.bias)
        self.v = nn.Linear(config.d_model, config.kv_heads * config.d_head, bias=config.bias)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        positions: NoPositions | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
        taps: Taps = NO_TAPS,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: where the queries come from (B, T, D).
            context: where the keys and values come from (B, S, D); `x` itself when None.
            mask: bool, (T, S) or broadcastable to (B, H, T, S); True means "may attend".
            bias: added to the scores, (H, T, S) or broadcastable to (B, H, T, S).
            causal: whether each position is kept from later ones too; always so with a cache.
            positions: a scheme that turns queries and keys; not for a context.
            cache: holds the keys and values of earlier positions; those of `x` are added to it.
            need_weights: whether to return the weights too.
            taps: names what is computed: q, k and v (B, heads, T, K) after any turning, weights (B, H, T, S), and
                heads (B, T, H, K), what each head found.

        Returns:
            The output (B, T, D), and the weights (B, H, T, S) or None.

        Raises:
            ValueError: as `attention` and `KVCache.append` do, and the cache is then as before; `x` is not (B, T, D);
                or a cache together with a context, which does not grow.
        """
        if x.dim() != 3:
            raise ValueError(f"x must be (B, T, D), got shape {tuple(x.shape)}")
        if cache is not None and context is not None:
            raise ValueError("a cache is for a sequence that attends to itself: give a cache or a context, not both")
        start = 0 if cache is None else cache.length
        context, positions = (x, positions) if context is None else (context, None)
        q = self._split(self.q(x), self.n_heads)  # (B, H, T, K)
        k = self._split(self.k(context), self.kv_heads)  # (B, key heads, S, K)
        v = taps("v", self._split(self.v(context), self.kv_heads))  # (B, key heads, S, K)
        if positions is not None:
            q, k = positions.rotate(q, start), positions.rotate(k, start)
        q, k = taps("q", q), taps("k", k)
        if cache is not None:
            k, v = cache.append(k, v)
        try:
            y, weights = attention(
                q,
                k,
                v,
                mask,
                bias=bias,
                causal=causal or cache is not None,
                need_weights=need_weights or taps.wants("weights"),
            )  # (B, H, T, K), (B, H, T, S)
        except ValueError:
            if cache is not None:
                cache.length = start
            raise
        if taps.wants("weights"):
            found, weights = weights, taps("weights", weights)
            y = y if weights is found else weights @ _for_each_head(v, q)
        y = taps("heads", y.transpose(1, 2))  # (B, T, H, K)
        return self.out(y.flatten(start_dim=2)), weights  # heads side by side again: (B, T, D)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.d_head).transpose(1, 2)  # (B, T, heads * K) -> (B, heads, T, K)
