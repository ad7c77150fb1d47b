"""Muon: an optimiser for matrices, which moves a weight equally far in all directions of its gradient.

Chapter: Other objectives; and the fastest recipe of the benchmarks. Papers: Jordan et al. 2024 (Muon); Liu et al. 2025
(the size of its steps). `torch.optim.Muon` computes the same in bfloat16, which is made for graphics cards: on many
processors it is ten times slower. Here it is single precision, and all matrices of one shape go through it together.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: few steps lift even small singular values to about 1
STEPS = 5


def orthogonalised(x: Tensor) -> Tensor:
    """Matrices (..., M, N) with their singular vectors kept, and their singular values all brought near 1.

    Newton-Schulz's iteration: an odd polynomial of a matrix is that polynomial of its singular values, and needs
    nothing but products. Values that are not tiny beside the largest end between about 0.7 and 1.2.

    Raises:
        ValueError: these are no matrices.
    """
    if x.dim() < 2:
        raise ValueError(f"Muon moves matrices (..., M, N), got shape {tuple(x.shape)}")
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # the product of a matrix with itself is then the small one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT  # (..., M, M)
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay.

    A step is scaled by 0.2 times the root of the larger side, so that its numbers are about as large as those of
    AdamW's: one learning rate serves both (Liu et al. 2025).

    Args:
        params: matrices (M, N).
        lr: the learning rate.
        weight_decay: how much of itself a weight loses in a step, times the learning rate.
        momentum: how long past gradients are remembered.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, *, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dim() != 2:
                raise ValueError(f"Muon moves matrices (M, N), got shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, parameters in alike.items():
                ahead = torch.stack([self._ahead(p, group["momentum"]) for p in parameters])  # (n, M, N)
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, direction in zip(parameters, orthogonalised(ahead), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=scale)

    def _ahead(self, p: Tensor, momentum: float) -> Tensor:
        """The mean of past gradients, looked at one step ahead (Nesterov)."""
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        mean = self.state[p]["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum)
