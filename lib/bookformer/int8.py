"""Weights of eight bits, for a model that only writes: a quarter of the memory to read for each token.

Chapters: none yet; the benchmarks say what it gains and what it costs. Paper: Dettmers et al. 2022 (one scale for each
row). The product is PyTorch's own, with vectors in bfloat16; it is no public function, and how fast it is depends on
the processor.
"""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from bookformer.heads import LanguageModel


class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127, with a scale for each row. It can't be trained.

    Args:
        weight: (N, K), K a multiple of 16, for PyTorch's product reads so many at a time and does not look.
        bias: (N,), or None.

    Raises:
        ValueError: the weight is no matrix, is not finite, or has another K.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.dim() != 2 or not weight.isfinite().all():
            raise ValueError(f"weights to round are finite, and a matrix (N, K); got shape {tuple(weight.shape)}")
        if weight.size(1) % 16:
            raise ValueError(f"rows of eight bits are read 16 numbers at a time: {weight.size(1)} is no multiple")
        weight = weight.detach().float()
        largest = weight.abs().amax(dim=1, keepdim=True)  # (N, 1)
        scales = torch.where(largest > 0, largest, 1.0) / 127
        self.register_buffer("whole", (weight / scales).round().to(torch.int8))  # (N, K)
        self.register_buffer("scales", scales[:, 0].bfloat16())  # (N,)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """From (..., K) to (..., N), in the type of `x`."""
        flat = x.reshape(-1, x.size(-1)).bfloat16()
        y = torch.ops.aten._weight_int8pack_mm(flat, self.whole, self.scales)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def in_int8(model: LanguageModel) -> LanguageModel:
    """A copy of a language model whose products with matrices are in eight bits; to write with, not to train.

    The table of tokens is read as it is; reading off has eight bits too.
    """
    config = dataclasses.replace(model.config, tie_embeddings=False)
    small = copy.deepcopy(model).requires_grad_(False)
    small.config = config
    small.out = Int8Linear(model.body.tokens.weight if model.config.tie_embeddings else model.out.weight)
    for module in list(small.body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias))
    return small.eval()
