"""Pictures in a language model's prompt: patches, a vector for each, and a text that goes on from them.

Chapter: Pictures as prompts. Papers: Dosovitskiy et al. 2020 (patches as tokens of an encoder); Tsimpoukelli et al.
2021 (a picture's vectors before the text of a language model, which may stay frozen); Liu et al. 2023 (a projection
from an encoder's vectors to the language model's).
Shapes: B pictures, C channels, H rows and W columns of pixels, N patches, D model width, T positions of the text, L
layers, V tokens.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.attention import KVCache
from bookformer.config import ModelConfig
from bookformer.heads import LanguageModel
from bookformer.objectives import IGNORED, pad
from bookformer.tokenizers import Tokenizer
from bookformer.transformer import Transformer


def to_patches(pictures: Tensor, patch: int) -> Tensor:
    """Pictures cut into squares, from left to right and from top to bottom: the numbers of each square in one row.

    Dosovitskiy et al. 2020.

    Args:
        pictures: (B, H, W) or (B, C, H, W), floating point, from 0 to 1.
        patch: the side of a square, in pixels.

    Returns:
        (B, N, C * patch * patch), N being H / patch times W / patch. A row holds one channel after the other.

    Raises:
        ValueError: the pictures have another shape or type, or a number that is nan or outside 0 to 1; or patches of
            this size do not divide them.
    """
    if pictures.dim() not in (3, 4) or 0 in pictures.shape:
        raise ValueError(f"pictures must be (B, H, W) or (B, C, H, W), none of them 0; got {tuple(pictures.shape)}")
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be floating point, from 0 to 1; got {pictures.dtype}: divide by the largest")
    low, high = pictures.aminmax()
    if not (low >= 0 and high <= 1):  # so that nan is refused as well
        raise ValueError(f"pictures must lie between 0 and 1; they hold {low.item():.4g} to {high.item():.4g}")
    c, (h, w) = pictures.size(1) if pictures.dim() == 4 else 1, pictures.shape[-2:]
    rows, columns = _grid(h, w, patch)
    cut = pictures.reshape(len(pictures), c, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C * patch * patch)


def from_patches(patches: Tensor, patch: int, columns: int) -> Tensor:
    """Pictures of one channel put together again: from (B, N, patch * patch), `columns` of them in a row, to (B, H, W).

    Raises:
        ValueError: the patches don't fill their rows, or have not so many numbers.
    """
    b, n, size = patches.shape
    if columns < 1 or n % columns or size != patch * patch:
        raise ValueError(
            f"{n} patches of {size} numbers do not make rows of {columns} patches of {patch} by {patch} pixels"
        )
    return patches.view(b, -1, columns, patch, patch).transpose(2, 3).reshape(b, -1, columns * patch)


class PatchEmbedding(nn.Module):
    """A vector for each patch: a linear map of its pixels, and a learned vector each for its row and its column.

    Args:
        size: (C, H, W) of every picture.
        patch: the side of a patch, in pixels.
        d_model: D.

    Raises:
        ValueError: patches of this size do not divide the pictures.
    """

    def __init__(self, size: tuple[int, int, int], patch: int, d_model: int) -> None:
        super().__init__()
        rows, columns = _grid(*size[1:], patch)
        self.size, self.patch, self.n_patches = tuple(size), patch, rows * columns
        self.pixels = nn.Linear(size[0] * patch * patch, d_model)
        self.rows, self.columns = nn.Embedding(rows, d_model), nn.Embedding(columns, d_model)
        nn.init.normal_(self.pixels.weight, std=(size[0] * patch * patch) ** -0.5)
        nn.init.zeros_(self.pixels.bias)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.5)  # as large as what the pixels give

    def forward(self, pictures: Tensor) -> Tensor:
        """From pictures (B, C, H, W), or (B, H, W) where C is 1, to vectors (B, N, D).

        Raises:
            ValueError: the pictures are of another size; or as `to_patches`.
        """
        patches = to_patches(pictures, self.patch)  # (B, N, C * patch * patch)
        found = (pictures.size(1) if pictures.dim() == 4 else 1, *pictures.shape[-2:])
        if found != self.size:
            raise ValueError(f"the model reads pictures of (C, H, W) = {self.size}, got {found}")
        where = self.rows.weight[:, None] + self.columns.weight  # (rows, columns, D)
        return self.pixels(patches) + where.flatten(0, 1)


class PictureEncoder(nn.Module):
    """A Transformer that reads patches before the language model does, each seeing all, and a projection after it.

    Dosovitskiy et al. 2020 (the encoder); Liu et al. 2023 (the projection).

    Args:
        size: (C, H, W) of every picture.
        patch: the side of a patch, in pixels.
        config: of the encoder. It reads no tokens, so its vocabulary may have a size of 1.
        d_model: D, of the language model.

    Raises:
        ValueError: the configuration is not of an encoder, or has no room for all patches; or as `PatchEmbedding`.
    """

    def __init__(self, size: tuple[int, int, int], patch: int, config: ModelConfig, d_model: int) -> None:
        super().__init__()
        if config.kind != "encoder":
            raise ValueError(f"each patch sees all others in an encoder; this configuration is of kind {config.kind!r}")
        self.patches = PatchEmbedding(size, patch, config.d_model)
        self.size, self.n_patches = self.patches.size, self.patches.n_patches
        if self.n_patches > config.context_length:
            raise ValueError(f"{self.n_patches} patches are more than context_length ({config.context_length})")
        self.body = Transformer(config)
        self.project = nn.Linear(config.d_model, d_model)

    def forward(self, pictures: Tensor) -> Tensor:
        """From pictures, as `PatchEmbedding` takes them, to vectors (B, N, D)."""
        return self.project(self.body(embeddings=self.patches(pictures)))


class PicturePrompt(nn.Module):
    """A language model, and before every text the vectors of a picture's patches, as if they were a prompt's.

    Tsimpoukelli et al. 2021. Which parts learn is the caller's choice: `model.requires_grad_(False)` freezes the
    language model, and gradients flow through it to the eyes.

    Args:
        model: a decoder. It is not copied.
        eyes: from pictures to vectors (B, N, D), with the number of patches as `n_patches`.

    Raises:
        ValueError: the model is no decoder, or the patches leave no room for a text in its context.
    """

    def __init__(self, model: LanguageModel, eyes: PatchEmbedding | PictureEncoder) -> None:
        super().__init__()
        config = model.config
        if config.kind != "decoder":
            raise ValueError(f"a picture stands before the text of a decoder; this model is of kind {config.kind!r}")
        if eyes.n_patches >= config.context_length:
            raise ValueError(
                f"{eyes.n_patches} patches leave no room for a text in context_length ({config.context_length}): take "
                "larger patches or a longer context"
            )
        self.model, self.eyes, self.config = model, eyes, config

    def forward(
        self, ids: Tensor, pictures: Tensor | None = None, *, vectors: Tensor | None = None, **rest: object
    ) -> Tensor:
        """From token ids (B, T) and their pictures to the logits after each token (B, T, V), none for the patches.

        Args:
            ids: token ids.
            pictures: as the eyes take them.
            vectors: (B, N, D) in place of pictures: what the eyes made of them, or something else.
            rest: whatever else `Transformer.forward` takes. Positions count the patches, and so do masks.

        Raises:
            ValueError: neither pictures nor vectors, or both; or as the eyes and `Transformer.forward`, if patches
                and text are longer than the context.
        """
        if (pictures is None) == (vectors is None):
            raise ValueError("give either pictures or the vectors that stand for them")
        vectors = self.eyes(pictures) if vectors is None else vectors
        return self.model(ids, embeddings=vectors, **rest)[:, -ids.size(1) :]

    def about(self, pictures: Tensor | None = None, *, vectors: Tensor | None = None) -> "About":
        """The language model with these pictures before its text, for `generate` and `beam_search`; arguments as above.

        The eyes look once; what they saw is kept without gradients.
        """
        if (pictures is None) == (vectors is None):
            raise ValueError("give either pictures or the vectors that stand for them")
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return About(self.model, self.eyes(pictures) if vectors is None else vectors)
        finally:
            self.train(was_training)


class About(nn.Module):
    """A language model that has B pictures before each of its B texts; made by `PicturePrompt.about`.

    With a cache the vectors are read with the first tokens, and never again.
    """

    def __init__(self, model: LanguageModel, vectors: Tensor) -> None:
        super().__init__()
        room = model.config.context_length - vectors.size(1)
        if room < 1:
            raise ValueError(
                f"{vectors.size(1)} vectors leave no room for a text in context_length ({model.config.context_length})"
            )
        self.model, self.vectors = model, vectors
        self.config = dataclasses.replace(model.config, context_length=room)  # what is left for the text

    def forward(self, ids: Tensor, *, cache: Sequence[KVCache] | None = None, **rest: object) -> Tensor:
        """From token ids (B, T) to logits (B, T, V); with a cache that holds the pictures, ids of new tokens only."""
        if cache is not None and cache[0].length:
            return self.model(ids, cache=cache, **rest)
        logits = self.model(ids, embeddings=self.vectors, cache=cache, **rest)
        return logits[:, -ids.size(1) :]  # with last=True there is one position, and it stays

    def new_cache(self) -> list[KVCache]:
        """An empty key-value cache for each block, with room for the patches."""
        return self.model.new_cache()


@torch.no_grad()
def attention_to_patches(model: PicturePrompt, pictures: Tensor, ids: Tensor) -> Tensor:
    """How much each position of the text attends to each patch: (B, L, heads, T, N).

    A row sums to less than 1: what is left goes to the text. Position t of the text predicts its token t + 1.
    """
    trace: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        model(ids, pictures, trace=trace)
    finally:
        model.train(was_training)
    n = model.eyes.n_patches
    layers = [trace[f"blocks.{i}.attn.weights"] for i in range(model.config.n_layers)]  # each (B, heads, N + T, N + T)
    return torch.stack(layers, dim=1)[..., n:, :n]


def caption_ids(captions: Sequence[str], tokenizer: Tokenizer, *, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Captions as a language model is trained on them: inputs (B, T), and targets (B, T) one token later.

    Args:
        captions: B texts.
        tokenizer: makes ids of them.
        begin: the token before each; the first word is predicted from it.
        end: the token after each; in the inputs it also fills what is left, where the targets are IGNORED.
    """
    rows = [tokenizer.encode(caption) for caption in captions]
    inputs, real = pad([[begin, *row] for row in rows], end)
    targets, _ = pad([[*row, end] for row in rows], end)
    return inputs, targets.masked_fill(~real, IGNORED)


def caption_loss(model: PicturePrompt, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats a token of the captions, of (pictures, inputs, targets): for `fit`."""
    pictures, inputs, targets = batch
    return F.cross_entropy(model(inputs, pictures).flatten(end_dim=-2), targets.flatten(), ignore_index=IGNORED)


def _grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """How many rows and columns of patches there are."""
    if patch < 1 or height < 1 or width < 1 or height % patch or width % patch:
        raise ValueError(f"patches of {patch} by {patch} pixels do not divide pictures of {height} by {width}")
    return height // patch, width // patch
