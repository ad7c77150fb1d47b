"""Experts: models for one domain each, chosen by the prompt or merged; and mixtures of feed-forward parts in one model.

Chapter: Domain experts. Papers: Shazeer et al. 2017 (a mixture inside a network); Fedus et al. 2021 (Switch: one expert
for each token, and the balance loss); Jiang et al. 2024 (Mixtral: the gates of several are scaled); Komatsuzaki et al.
2022 (experts that begin as copies); Li et al. 2022 (experts trained apart, each on a domain); Wortsman et al. 2022 and
Ilharco et al. 2022 (averages of weights, and sums of what training changed).
Shapes: B batch, T positions, D model width, V tokens, E experts, k of them for each token.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer.taps import NO_TAPS, Taps


class MixtureOfExperts(nn.Module):
    """Several feed-forward parts, of which each position goes through `k`, chosen by a router.

    Stands in a block's `ff`. Its activations are `router`, the probabilities (B, T, E), and those of each expert under
    `experts.e`, for the positions that it was given. The output is the sum of what the chosen experts make, each times
    its gate: the router's probability of it; with `k` above 1, divided by the sum over those chosen.

    Args:
        experts: E modules, called as `FeedForward` is.
        d_model: D, the width that the router reads.
        k: how many experts work on a position.

    Raises:
        ValueError: `k` is below 1, or above the number of experts.
    """

    def __init__(self, experts: Sequence[nn.Module], d_model: int, *, k: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= len(experts):
            raise ValueError(f"k ({k}) must be at least 1 and at most the number of experts ({len(experts)})")
        self.k = k
        self.router = nn.Linear(d_model, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor, taps: Taps = NO_TAPS) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        probabilities = taps("router", self.router(x).softmax(dim=-1))  # (B, T, E)
        gates, chosen = probabilities.flatten(end_dim=-2).topk(self.k)  # (B T, k) each
        if self.k > 1:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        given = x.flatten(end_dim=-2)  # (B T, D)
        y = torch.zeros_like(given)
        for e, expert in enumerate(self.experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)  # (n,) each
            made = expert(given[rows], taps.inside(f"experts.{e}"))  # (n, D)
            y = y.index_add(0, rows, gates[rows, place, None] * made)
        return y.view_as(x)


def with_experts(
    model: nn.Module,
    n_experts: int,
    *,
    k: int = 1,
    blocks: Sequence[int] | None = None,
    copies: bool = False,
    generator: torch.Generator,
) -> nn.Module:
    """A copy of a model whose feed-forward parts are mixtures.

    Args:
        model: has a Transformer of one stack, such as a `LanguageModel`.
        n_experts: E, in each mixture.
        k: how many of them work on a position.
        blocks: in which blocks; in all when None.
        copies: whether the experts begin as copies of the part that was there. Otherwise each of their weights is
            drawn with the spread that it had there, and none is like another.
        generator: where the randomness comes from, and nowhere else.

    Raises:
        ValueError: fewer experts than 1 or than `k`, or no such block.
    """
    if n_experts < 1:
        raise ValueError(f"n_experts must be at least 1, got {n_experts}")
    model = copy.deepcopy(model)
    stack = getattr(model, "body", model).stack
    chosen = range(len(stack.blocks)) if blocks is None else blocks
    missing = sorted(set(chosen) - set(range(len(stack.blocks))))
    if missing:
        raise ValueError(f"there is no block {missing[0]}: they run from 0 to {len(stack.blocks) - 1}")
    d_model = getattr(model, "body", model).config.d_model
    for i in chosen:
        experts = [copy.deepcopy(stack.blocks[i].ff) for _ in range(n_experts)]
        mixture = MixtureOfExperts(experts, d_model, k=k)
        with torch.no_grad():
            mixture.router.weight.normal_(std=0.02, generator=generator)
            for p in [] if copies else mixture.experts.parameters():
                p.normal_(std=p.std().item(), generator=generator)
        stack.blocks[i].ff = mixture
    return model


def mixtures(model: nn.Module) -> dict[str, MixtureOfExperts]:
    """The mixtures in a model, each by the name that its activations begin with, such as `blocks.0.ff`."""
    found = ((name, part) for name, part in model.named_modules() if isinstance(part, MixtureOfExperts))
    return {name[name.index("blocks.") :]: part for name, part in found}


def active_parameters(model: nn.Module) -> int:
    """How many of a model's parameters work on a token: all but the experts that it does not go through."""
    total = sum(p.numel() for p in model.parameters())
    for mixture in mixtures(model).values():
        in_experts = sum(p.numel() for p in mixture.experts.parameters())
        total -= in_experts - in_experts * mixture.k // len(mixture.experts)
    return total


def routed(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A model's logits (B, T, V) for token ids (B, T), and what each mixture's router said: probabilities (B, T, E)."""
    seen: dict[str, Tensor] = {}
    names = [f"{name}.router" for name in mixtures(model)]
    logits = model(ids, edits={name: partial(_note, seen, name) for name in names})
    return logits, {name.removesuffix(".router"): seen[name] for name in names}


def _note(seen: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    seen[name] = x
    return x


def shares(probabilities: Tensor, k: int = 1) -> Tensor:
    """Which share of the tokens goes to each expert (E,), of a router's probabilities (..., E); they sum to 1."""
    n_experts = probabilities.size(-1)
    chosen = probabilities.flatten(end_dim=-2).topk(k).indices  # (N, k)
    return torch.bincount(chosen.flatten(), minlength=n_experts).to(probabilities.dtype) / chosen.numel()


def load_balance(probabilities: Tensor, k: int = 1) -> Tensor:
    """The balance loss of a router: 1 if the experts share the tokens evenly, up to E/k if it always wants the same k.

    E times the sum, over experts, of the share of tokens that it gets times its mean probability: the form of Fedus et
    al. 2021, after an idea of Shazeer et al. 2017.
    The shares have no gradient; the probabilities have, and fall where the share is large.

    Args:
        probabilities: of the router (..., E).
        k: how many experts each token goes to.
    """
    mean = probabilities.flatten(end_dim=-2).mean(dim=0)  # (E,)
    return probabilities.size(-1) * (shares(probabilities, k) * mean).sum()


def mixture_loss(balance: float = 0.01) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """The loss that `fit` takes for a model with mixtures: of the next token, and the mean balance loss times a weight.

    The weight is for the mean over the mixtures. (Fedus et al. 2021 give 0.01 to each of them.)

    Raises:
        ValueError: the weight is negative. At the first batch: the model has no mixture.
    """
    if not balance >= 0:
        raise ValueError(f"balance ({balance}) must be at least 0")

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        inputs, targets = batch  # (B, T) each
        logits, probabilities = routed(model, inputs)
        if not probabilities:
            raise ValueError("the model has no mixture of experts: make it with_experts, or use next_token_loss")
        uneven = [load_balance(probabilities[name], part.k) for name, part in mixtures(model).items()]
        return F.cross_entropy(logits.flatten(end_dim=-2), targets.flatten()) + balance * torch.stack(uneven).mean()

    return loss


class DomainExperts:
    """Language models with one tokenizer, each for a domain.

    Args:
        models: by the name of the domain.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        if not models:
            raise ValueError("there are no experts: give at least one")
        self.models = dict(models)

    def __getitem__(self, domain: str) -> nn.Module:
        """The expert of a domain.

        Raises:
            ValueError: there is none; the message lists those that there are.
        """
        if domain not in self.models:
            raise ValueError(f"there is no expert for {domain!r}; there are experts for {', '.join(self.models)}")
        return self.models[domain]

    def __iter__(self) -> Iterator[str]:
        """The domains, in the order given."""
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    @torch.no_grad()
    def prompt_losses(self, ids: Tensor) -> Tensor:
        """What each prompt costs each expert: the mean cross-entropy of its tokens after the first, in nats.

        Args:
            ids: prompts (B, T), all of one length; the first token is given and not predicted.

        Returns:
            (B, E), the experts in order.

        Raises:
            ValueError: a prompt has fewer than two tokens.
        """
        if ids.dim() != 2 or ids.size(1) < 2:
            raise ValueError(f"prompts must be (B, T) with at least two tokens each, got shape {tuple(ids.shape)}")
        columns = []
        for model in self.models.values():
            logits = model(ids[:, :-1]).transpose(1, 2)  # (B, V, T - 1): cross_entropy wants the classes second
            columns.append(F.cross_entropy(logits, ids[:, 1:], reduction="none").mean(dim=1))  # (B,)
        return torch.stack(columns, dim=1)

    def choose(self, ids: Tensor) -> list[str]:
        """For each prompt (B, T) the domain whose expert finds it likeliest. Raises as `prompt_losses`."""
        return [list(self.models)[e] for e in self.prompt_losses(ids).argmin(dim=1).tolist()]


def average(models: Mapping[str, nn.Module]) -> nn.Module:
    """A model whose weights are the means of several models' weights.

    Raises:
        ValueError: there is no model, or two differ in their names or shapes; the message names them.
    """
    _require_alike(models)
    merged = copy.deepcopy(next(iter(models.values())))
    states = [model.state_dict() for model in models.values()]
    merged.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return merged


def add_tasks(base: nn.Module, models: Mapping[str, nn.Module], scale: float) -> nn.Module:
    """Task arithmetic: a model's weights, and on them the sum of what training changed in each of its offspring.

    With scale 1 / E this is the average of the E offspring; with -1, of a single one, what it learnt is taken away.

    Args:
        base: what all of them began as.
        models: the offspring, by name.
        scale: by how much to multiply the sum.

    Raises:
        ValueError: there is no offspring, or one is not of the base's shape; the message names it.
    """
    _require_alike({"the base": base, **models} if models else {})
    merged = copy.deepcopy(base)
    start = base.state_dict()
    states = [model.state_dict() for model in models.values()]
    merged.load_state_dict({n: w + scale * sum(state[n] - w for state in states) for n, w in start.items()})
    return merged


def _require_alike(models: Mapping[str, nn.Module]) -> None:
    if not models:
        raise ValueError("there is nothing to merge: give at least one model")
    (first, one), *rest = models.items()
    wanted = {name: tuple(t.shape) for name, t in one.state_dict().items()}
    for other, model in rest:
        found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        for name in sorted(set(wanted) | set(found)):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"{other} can't be merged with {first}: {name} has shape {found.get(name)} there, and "
                    f"{wanted.get(name)} here"
                )
