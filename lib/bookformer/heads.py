"""What stands on a Transformer and makes an answer of its vectors.

Chapters: GPT (language model), BERT (masked language model), Fine-tuning (classifier, span), Human feedback (reward,
value). Papers: Press and Wolf 2017 (one table for reading in and reading out); Devlin et al. 2019 (masked words, next
sentence, spans); Radford et al. 2018 (a classifier on a decoder); Ouyang et al. 2022 (reward); Schulman et al. 2017
(value).
Shapes: B batch, T positions, D model width, V tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.attention import KVCache
from bookformer.config import ModelConfig
from bookformer.transformer import Transformer


class LanguageModel(nn.Module):
    """A logit for each token that might stand next (or, in an encoder, here).

    With `tie_embeddings` the output reads off with the token embeddings; otherwise it has a table of its own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.body = Transformer(config)
        if not config.tie_embeddings:
            self.out = nn.Linear(config.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, ids: Tensor | None = None, *, last: bool = False, **rest: object) -> Tensor:
        """From token ids (B, T), and whatever else `Transformer.forward` takes, to logits (B, P + T, V).

        With `last`, those of the last position alone (B, 1, V), which is all that writing needs.
        """
        x = self.body(ids, **rest)  # (B, P + T, D)
        x = x[:, -1:] if last else x
        return F.linear(x, self.body.tokens.weight) if self.config.tie_embeddings else self.out(x)

    def new_cache(self) -> list[KVCache]:
        """An empty key-value cache for each block."""
        return self.body.new_cache()


class MaskedLanguageModel(nn.Module):
    """BERT's two heads on an encoder: which token stands here, and does the second sentence follow the first.

    The token's logits come from one more layer, then from the token embeddings with a bias for each token; the
    sentence's from the vector of the first position, which is [CLS], through a layer with tanh.

    Raises:
        ValueError: the configuration is not of an encoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.kind != "encoder":
            raise ValueError(f"a masked language model sees both sides: kind must be 'encoder', got {config.kind!r}")
        self.config = config
        self.body = Transformer(config)
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pool = nn.Linear(config.d_model, config.d_model)
        self.follows = nn.Linear(config.d_model, 2)
        _draw_small(self.hidden, self.pool, self.follows)

    def forward(self, ids: Tensor, **rest: object) -> tuple[Tensor, Tensor]:
        """From token ids (B, T), and whatever else `Transformer.forward` takes, to logits of two kinds.

        Returns:
            For each token of the vocabulary at each place (B, T, V); and (B, 2): that the second sentence does not
            follow the first, and that it does.
        """
        x = self.body(ids, **rest)  # (B, T, D)
        hidden = self.norm(F.gelu(self.hidden(x)))  # (B, T, D)
        tokens = F.linear(hidden, self.body.tokens.weight, self.bias)  # (B, T, V)
        return tokens, self.follows(self.pool(x[:, 0]).tanh())


class Classifier(nn.Module):
    """A logit for each class, from one vector that stands for the whole text.

    Args:
        body: a Transformer that reads one sequence, such as a pretrained model's; it is trained with the head.
        n_classes: C, how many classes there are.
        reads: which vector that is: that of the "first" position (BERT's [CLS]), of the "last" that is text (the only
            one of a decoder that sees everything), or the "mean" over the text.

    Raises:
        ValueError: fewer than one class, no such vector, or the body is an encoder-decoder.
    """

    def __init__(self, body: Transformer, n_classes: int, *, reads: str) -> None:
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"n_classes must be at least 1, got {n_classes}")
        if reads not in ("first", "last", "mean"):
            raise ValueError(f"reads is one of first, last, mean; got {reads!r}")
        _require_one_sequence(body)
        self.body, self.reads = body, reads
        self.out = nn.Linear(body.config.d_model, n_classes)
        _draw_small(self.out)

    def forward(self, ids: Tensor, real: Tensor | None = None, **rest: object) -> Tensor:
        """From token ids (B, T) to logits (B, C).

        Args:
            ids: token ids, padded at the end.
            real: bool (B, T), False where a position is padding; nowhere when None.
            rest: whatever else `Transformer.forward` takes, but a mask.
        """
        x, real = _read(self.body, ids, real, rest)  # (B, T, D), (B, T)
        return self.out(_summary(x, real, self.reads))


class SpanReader(nn.Module):
    """Where in the text the answer begins, and where it ends: two logits for each position.

    Args:
        body: a Transformer that reads one sequence; it is trained with the head.

    Raises:
        ValueError: the body is an encoder-decoder.
    """

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        _require_one_sequence(body)
        self.body = body
        self.out = nn.Linear(body.config.d_model, 2)
        _draw_small(self.out)

    def forward(self, ids: Tensor, real: Tensor | None = None, **rest: object) -> tuple[Tensor, Tensor]:
        """From token ids (B, T), as `Classifier` takes them, to logits of the first and of the last position of the
        answer, each (B, T); minus infinity where there is padding.
        """
        x, real = _read(self.body, ids, real, rest)
        first, last = self.out(x).masked_fill(~real[..., None], float("-inf")).unbind(dim=-1)
        return first, last


class RewardModel(nn.Module):
    """One number for a whole text: how good it is. Read from the last position, which sees everything.

    Args:
        body: a Transformer that reads one sequence; it is trained with the head.

    Raises:
        ValueError: the body is an encoder-decoder.
    """

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        self.score = Classifier(body, 1, reads="last")

    def forward(self, ids: Tensor, real: Tensor | None = None, **rest: object) -> Tensor:
        """From token ids (B, T), as `Classifier` takes them, to rewards (B,)."""
        return self.score(ids, real, **rest)[:, 0]


class ValueModel(nn.Module):
    """One number after each position: how much reward is still to come. The critic of PPO.

    Args:
        body: a decoder, for what is yet to be written must not be seen; it is trained with the head.

    Raises:
        ValueError: the body is not a decoder.
    """

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        if body.config.kind != "decoder":
            raise ValueError(f"a value must not see what comes: kind must be 'decoder', got {body.config.kind!r}")
        self.body = body
        self.out = nn.Linear(body.config.d_model, 1)
        _draw_small(self.out)

    def forward(self, ids: Tensor, **rest: object) -> Tensor:
        """From token ids (B, T), and whatever else `Transformer.forward` takes, to values (B, T)."""
        return self.out(self.body(ids, **rest))[..., 0]


def _read(body: Transformer, ids: Tensor, real: Tensor | None, rest: dict) -> tuple[Tensor, Tensor]:
    """The body's vectors (B, T, D), padding hidden from them, and which of them are text (B, T)."""
    if real is None:
        return body(ids, **rest), torch.ones_like(ids, dtype=torch.bool)
    if real.shape != ids.shape or real.dtype != torch.bool:
        raise ValueError(f"real must be bool {tuple(ids.shape)}, got {real.dtype} {tuple(real.shape)}")
    if (real[:, 1:] & ~real[:, :-1]).any() or not real[:, 0].all():
        raise ValueError("padding stands at the end of a text, and no text is all padding")
    return body(ids, mask=real[:, None, None, :], **rest), real


def _summary(x: Tensor, real: Tensor, reads: str) -> Tensor:
    """The vector that stands for each text (B, D)."""
    if reads == "first":
        return x[:, 0]
    if reads == "last":
        return x[torch.arange(len(x), device=x.device), real.sum(dim=1) - 1]
    return (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)


def _require_one_sequence(body: Transformer) -> None:
    if body.config.kind == "encoder-decoder":
        raise ValueError("a classifier, span or reward reads one sequence, and an encoder-decoder takes two")


def _draw_small(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
