"""A pretrained model made to do a task with few numbers trained, and the rest of it left as it was.

Chapters: Fine-tuning (LoRA), Prompting (soft prompts). Papers: Hu et al. 2021 (LoRA); Lester et al. 2021 (prompt
tuning).
Shapes: N numbers in, M numbers out, R rank; B batch, T positions, P vectors of a soft prompt, D model width, V tokens.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from bookformer.heads import LanguageModel


class LoRALinear(nn.Module):
    """A linear layer that stays as it is, and beside it two thin matrices that learn what to add to its output.

    y = W x + b + (alpha / R) B A x. A is drawn and B begins at zero, so that at first nothing is added. Hu et al. 2021.

    Args:
        layer: from N to M; its weights are used and not trained.
        rank: R, how many numbers there are between A and B.
        alpha: how much the product counts; over the rank, so that another rank needs no other learning rate.
        generator: where A is drawn from; PyTorch's own when None.

    Raises:
        ValueError: the rank is below 1 or above what the layer has, or alpha is not positive.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise ValueError(f"rank ({rank}) must be from 1 to {most}, the smaller side of the layer")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha ({alpha}) must be positive and finite")
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
        self.a = nn.Parameter(torch.empty(rank, layer.in_features, **like))  # (R, N)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, **like))  # (M, R)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)  # as nn.Linear draws its own

    def forward(self, x: Tensor) -> Tensor:
        """From (..., N) to (..., M)."""
        return self.layer(x) + self.scale * (x @ self.a.T @ self.b.T)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that gives the same, with W + (alpha / R) B A for its weight."""
        layer = nn.Linear(self.layer.in_features, self.layer.out_features, bias=self.layer.bias is not None)
        layer = layer.to(self.layer.weight)
        layer.weight.copy_(self.layer.weight + self.scale * self.b @ self.a)
        if self.layer.bias is not None:
            layer.bias.copy_(self.layer.bias)
        return layer


def add_lora(
    model: nn.Module,
    names: Collection[str],
    rank: int,
    alpha: float | None = None,
    *,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Put LoRA on some linear layers of a model, where it lies, and freeze everything else.

    A head that is to be trained as well is thawed afterwards: `model.out.requires_grad_()`.

    Args:
        model: of any kind.
        names: how the layers' names end, such as "attn.q" for the queries of all blocks.
        rank: R of each.
        alpha: of each; twice the rank when None.
        generator: where the matrices A are drawn from; PyTorch's own when None.

    Returns:
        The full names of the layers, in the model's order.

    Raises:
        ValueError: no linear layer has such a name (the message lists how those that exist end), or the model has LoRA
            already; or as `LoRALinear`. The model is then as it was.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA already: merge it first")
    found = [full for full in layers if any(f".{full}".endswith(f".{name}") for name in names)]
    unknown = [name for name in names if not any(f".{full}".endswith(f".{name}") for full in found)]
    if unknown or not found:
        ends = dict.fromkeys(".".join(full.split(".")[-2:]) for full in layers)
        raise ValueError(f"no linear layer is called {', '.join(unknown) or 'nothing'}; there are {', '.join(ends)}")
    alpha = 2 * rank if alpha is None else alpha
    wrapped = {full: LoRALinear(layers[full], rank, alpha, generator=generator) for full in found}
    model.requires_grad_(False)
    for full, module in wrapped.items():
        module.a.requires_grad_()
        module.b.requires_grad_()
        model.set_submodule(full, module)
    return found


def merge_lora(model: nn.Module) -> nn.Module:
    """Put one linear layer in the place of each that has LoRA, where it lies; the outputs stay. Returns the model.

    All weights can be trained again afterwards.

    Raises:
        ValueError: the model has no LoRA.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no LoRA to merge")
    for name in found:
        model.set_submodule(name, model.get_submodule(name).merged())
    return model.requires_grad_()


class SoftPrompt(nn.Module):
    """A language model that stays as it is, and before every text a few vectors that are trained. Lester et al. 2021.

    The vectors stand where the embeddings of a prompt's tokens would; they need not be any token's. Before training
    they are, and so the model says what it says after that prompt. (A model that norms its embeddings norms these too.)

    Args:
        model: a decoder. It is frozen, and not copied.
        ids: (P,), the tokens of the prompt to begin from.

    Raises:
        ValueError: the ids are not one row of tokens that the model has, or leave no room for a text in its context.
    """

    def __init__(self, model: LanguageModel, ids: Tensor) -> None:
        super().__init__()
        config = model.config
        if config.kind != "decoder":
            raise ValueError(
                f"a soft prompt stands before the text of a decoder; this model is of kind {config.kind!r}"
            )
        if ids.dim() != 1 or not len(ids):
            raise ValueError(f"a prompt to begin from is one row of tokens (P,), at least one; got {tuple(ids.shape)}")
        if len(ids) >= config.context_length:
            raise ValueError(
                f"a soft prompt of {len(ids)} vectors leaves no room for a text in context_length "
                f"({config.context_length})"
            )
        low, high = ids.aminmax()
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"the prompt holds tokens from {low} to {high}: they run from 0 to {config.vocab_size - 1}"
            )
        self.model, self.config = model.requires_grad_(False), config
        scale = math.sqrt(config.d_model) if config.scale_embeddings else 1.0
        self.vectors = nn.Parameter(model.body.tokens.weight[ids].detach() * scale)  # (P, D)

    def forward(self, ids: Tensor) -> Tensor:
        """From token ids (B, T) to the logits after each of them (B, T, V); those after the prompt's are left out.

        Raises:
            ValueError: prompt and text are longer than the context; or as `Transformer.forward`.
        """
        before = self.vectors.expand(len(ids), -1, -1)  # (B, P, D)
        return self.model(ids, embeddings=before)[:, len(self.vectors) :]
