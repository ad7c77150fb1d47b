"""The Transformer: encoder, decoder or both, from one configuration.

Chapter: The Transformer. Papers: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: decoder alone, norm before, weights
drawn small); Devlin et al. 2019 (BERT: encoder alone, segments).
Shapes: B batch, T positions, S positions of the source, P positions given as embeddings, D model width, V tokens.
"""

import math
from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from bookformer.attention import KVCache
from bookformer.config import ModelConfig
from bookformer.layers import Stack, make_norm
from bookformer.positions import SCHEMES, NoPositions
from bookformer.taps import NO_TAPS, Edit, Taps


class Transformer(nn.Module):
    """Token ids in, one vector for each position out.

    Named activations, for `trace=` and `edits=`: `embed.tokens`, `embed.positions`, `embed.segments`, `embed.out`; in
    block i `blocks.i.attn.q`, `.k`, `.v`, `.weights`, `.heads` and `.out`, the same under `blocks.i.cross`,
    `blocks.i.ff.hidden`, `blocks.i.ff.out`, `blocks.i.out`; and `final`. An encoder-decoder's encoder has `encoder.`
    before each.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        both = config.kind == "encoder-decoder"
        causal = config.kind != "encoder"
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.n_segments:
            self.segments = nn.Embedding(config.n_segments, config.d_model)
        self.embed_norm = make_norm(config) if config.norm_embeddings else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.positions = SCHEMES[config.positions](config, causal=causal)
        self.stack = Stack(config, causal=causal, cross=both)
        if both:
            self.encoder_positions = SCHEMES[config.positions](config, causal=False)
            self.encoder = Stack(config, causal=False)
        self.apply(_draw)
        for name, weight in self.named_parameters():  # GPT-2: what is added to the stream 2 L times is drawn smaller
            if name.endswith(("attn.out.weight", "cross.out.weight", "ff.down.weight")):
                added = 3 if both and name.startswith("stack") else 2  # by each block
                nn.init.normal_(weight, std=0.02 / math.sqrt(added * config.n_layers))

    def forward(
        self,
        ids: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        segments: Tensor | None = None,
        places: Tensor | None = None,
        mask: Tensor | None = None,
        source: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Sequence[KVCache] | None = None,
        trace: MutableMapping[str, Tensor] | None = None,
        edits: Mapping[str, Edit] | None = None,
    ) -> Tensor:
        """From token ids to the last block's vectors.

        Args:
            ids: token ids (B, T).
            embeddings: vectors (B, P, D) that stand before the tokens as if they were token embeddings, already
                scaled: soft prompts, pictures. May come without ids.
            segments: which sentence each position belongs to (B, P + T), for a model with segments; 0 when None.
            places: where each position stands (P + T,) or (B, P + T), for texts with padding before them; counted
                from 0, or on from the cache, when None. Schemes that know distances alone don't look at it.
            mask: bool, (P + T, all) or broadcastable to (B, H, P + T, all), "all" counting cached positions too; True
                means "may attend". A decoder is causal by itself.
            source: for an encoder-decoder, token ids (B, S) of the sequence that the encoder reads.
            memory: or what `encode` made of it (B, S, D).
            memory_mask: bool, (B, 1, 1, S): which of the source's positions are text; for its encoder too.
            cache: from `new_cache`; then only new positions are given.
            trace: a dictionary that is filled with the named activations. Changes no result.
            edits: for some names, a function whose result takes the activation's place.

        Returns:
            (B, P + T, D).

        Raises:
            ValueError: an id, segment or place that is not there, more positions than `context_length`, embeddings, a
                memory or caches that do not fit the model, a source missing or unwanted, or an edit of an activation
                that is not there. The caches are then as before.
        """
        taps = NO_TAPS if trace is None and edits is None else Taps(trace, edits)
        self._check_kind(source, memory, memory_mask, cache)
        start = 0 if cache is None else cache[0].length
        try:
            if source is not None:
                memory = self._encode(source, memory_mask, taps)
            x = self._embed(ids, embeddings, segments, places, self.positions, start, taps)
            y = self.stack(
                x, mask=mask, positions=self.positions, cache=cache, memory=memory, memory_mask=memory_mask, taps=taps
            )
            taps.finish()
        except BaseException:
            for one in cache or []:
                one.length = start
            raise
        return y  # (B, P + T, D)

    def _check_kind(self, source, memory, memory_mask, cache) -> None:
        both = self.config.kind == "encoder-decoder"
        if both and (source is None) == (memory is None):
            raise ValueError("an encoder-decoder wants either the source's ids or its memory")
        if not both and not (source is None and memory is None and memory_mask is None):
            raise ValueError(f"a model of kind {self.config.kind!r} reads one sequence: it takes no source or memory")
        if cache is not None and self.config.kind == "encoder":
            raise ValueError("an encoder sees all positions at once: it can't work with a cache")
        if memory is not None and (memory.dim() != 3 or memory.size(-1) != self.config.d_model):
            raise ValueError(f"a memory must be (B, S, {self.config.d_model}), got shape {tuple(memory.shape)}")
        if cache is not None:
            lengths = [one.length for one in cache]
            if len({id(one) for one in cache}) != len(self.stack.blocks) or len(set(lengths)) != 1:
                raise ValueError(
                    f"there must be a cache of its own for each of the {len(self.stack.blocks)} blocks, all of one "
                    f"length, as new_cache makes them; got lengths {lengths}"
                )

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """What an encoder-decoder's encoder makes of a source (B, S): its memory (B, S, D).

        Raises:
            ValueError: the model has no encoder beside its decoder.
        """
        if self.config.kind != "encoder-decoder":
            raise ValueError(f"a model of kind {self.config.kind!r} has no encoder of its own: call the model itself")
        return self._encode(source, mask, NO_TAPS)

    def new_cache(self) -> list[KVCache]:
        """An empty key-value cache for each block."""
        return [KVCache(self.config.context_length) for _ in self.stack.blocks]

    def _encode(self, source: Tensor, mask: Tensor | None, taps: Taps) -> Tensor:
        taps = taps.inside("encoder")
        x = self._embed(source, None, None, None, self.encoder_positions, 0, taps)
        return self.encoder(x, mask=mask, positions=self.encoder_positions, taps=taps)

    def _embed(
        self,
        ids: Tensor | None,
        embeddings: Tensor | None,
        segments: Tensor | None,
        places: Tensor | None,
        positions: NoPositions,
        start: int,
        taps: Taps,
    ) -> Tensor:
        parts = [] if embeddings is None else [self._checked(embeddings)]
        if ids is not None:
            _check_ids(ids, "ids", self.config.vocab_size)
            scale = math.sqrt(self.config.d_model) if self.config.scale_embeddings else 1.0
            parts.append(self.tokens(ids) * scale)
            if len(parts[0]) != len(ids):
                raise ValueError(f"{len(parts[0])} rows of embeddings do not fit {len(ids)} rows of ids")
        if not parts:
            raise ValueError("there is nothing to read: give ids, embeddings or both")
        x = taps("embed.tokens", torch.cat(parts, dim=1))  # (B, P + T, D)
        t = x.size(1)
        if start + t > self.config.context_length:
            raise ValueError(
                f"{start + t} positions are more than context_length ({self.config.context_length}): "
                "cut the text, or build the model with a longer context"
            )
        where = positions.add(self._places(places, start, x))
        if where is not None:
            x = x + taps("embed.positions", where.expand_as(x))
        if self.config.n_segments:
            segments = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if segments is None else segments
            _check_ids(segments, "segments", self.config.n_segments)
            if segments.shape != x.shape[:2]:
                raise ValueError(f"segments {tuple(segments.shape)} do not fit positions {tuple(x.shape[:2])}")
            x = x + taps("embed.segments", self.segments(segments))
        elif segments is not None:
            raise ValueError("the model has no segments: n_segments is 0")
        return taps("embed.out", self.dropout(self.embed_norm(x)))  # (B, P + T, D)

    def _places(self, places: Tensor | None, start: int, x: Tensor) -> Tensor:
        if places is None:
            return torch.arange(start, start + x.size(1), device=x.device)  # (P + T,)
        if places.shape not in (x.shape[:2], x.shape[1:2]):
            raise ValueError(f"places {tuple(places.shape)} do not fit positions {tuple(x.shape[:2])}")
        _check_ids(places.expand(x.shape[:2]), "places", self.config.context_length)
        return places

    def _checked(self, embeddings: Tensor) -> Tensor:
        width, dtype = self.config.d_model, self.tokens.weight.dtype
        if embeddings.dim() != 3 or 0 in embeddings.shape or embeddings.size(-1) != width or embeddings.dtype != dtype:
            raise ValueError(
                f"embeddings must be (B, P, {width}) of {dtype}, got {tuple(embeddings.shape)} of {embeddings.dtype}"
            )
        return embeddings


def _check_ids(ids: Tensor, name: str, size: int) -> None:
    if ids.dim() != 2 or 0 in ids.shape or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name} must be whole numbers (B, T), none of them 0; got shape {tuple(ids.shape)}, {ids.dtype}"
        )
    low, high = ids.aminmax()
    if low < 0 or high >= size:
        at = tuple(((ids < 0) | (ids >= size)).nonzero()[0].tolist())
        raise ValueError(f"{name} holds {ids[at]} at {at}: they run from 0 to {size - 1}")


def _draw(module: nn.Module) -> None:
    """Draw a module's weights as GPT-2 did."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
