"""What stands on a Transformer and makes an answer of its vectors.

Chapter: GPT (language model). Paper: Press and Wolf 2017 (one table for reading in and reading out).
"""

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

    def forward(self, ids: Tensor | None = None, **rest: object) -> Tensor:
        """From token ids (B, T), and whatever else `Transformer.forward` takes, to logits (B, P + T, V)."""
        table = self.body.tokens.weight if self.config.tie_embeddings else self.out.weight  # (V, D)
        return F.linear(self.body(ids, **rest), table)

    def new_cache(self) -> list[KVCache]:
        """An empty key-value cache for each block."""
        return self.body.new_cache()
