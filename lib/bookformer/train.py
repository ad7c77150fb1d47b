"""Training: one loop for every model of the book, which goes on after an interruption as if there had been none.

Chapters: all that train. Papers: Loshchilov and Hutter 2019 (AdamW) and 2017 (cosine decay); Jordan et al. 2024 (Muon);
Pascanu et al. 2013 (clipping).
"""

import atexit
import contextlib
import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from bookformer import checkpoints
from bookformer.config import TrainConfig
from bookformer.layers import Stack
from bookformer.muon import Muon

Batch = tuple[Tensor, ...]  # each (B, ...)
Loss = Callable[[nn.Module, Batch], Tensor]  # to a scalar
Validate = Callable[[nn.Module], float]
BETAS = (0.9, TrainConfig.beta2)  # how long AdamW remembers gradients, and their squares where nothing else is asked
KIND = "training run 1"  # of the file, with the version of its format


@dataclasses.dataclass(frozen=True)
class Record:
    """What one step of training was."""

    step: int  # optimiser steps done, this one included
    loss: float  # of this step's batch, before the step changed the weights
    learning_rate: float
    gradient_norm: float  # before clipping
    held_out: float | None = None  # what `validate` returned after this step; None where it was not asked


def schedule(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, counted from 1: a straight rise, then half a cosine down to the floor.

    Raises:
        ValueError: there is no such step.
    """
    if not 1 <= step <= config.steps:
        raise ValueError(f"there is no step {step}: they run from 1 to {config.steps}")
    warmup = round(config.warmup_fraction * config.steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    way = (step - warmup) / (config.steps - warmup)  # from 0, after the warm-up, to 1, at the last step
    floor = config.final_fraction
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * way)) / 2)


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats: inputs (B, T) through a model that returns logits (B, T, V), and targets (B, T)."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(end_dim=-2), targets.flatten())


def fit(
    model: nn.Module,
    batches: Callable[[torch.Generator], Iterator[Batch]],
    config: TrainConfig,
    *,
    loss: Loss = next_token_loss,
    validate: Validate | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Iterator[Record]:
    """Train a model, where it lies; yield a record after each step.

    Started by torchrun, the processes share the work: each takes its slice of every batch, and records hold the mean
    over them. Give every one of them the same model, batches and configuration. They stay joined until they end.

    Args:
        model: any module; it is changed in place.
        batches: a function that draws batches with a generator, which is seeded with `config.seed`. Each tensor of a
            batch holds B rows, B being `config.batch_size`.
        config: how to train.
        loss: the mean over the rows of a batch, a scalar. It calls the model and does not look inside, for under
            torchrun the model comes wrapped.
        validate: the loss on held-out data; called without gradients, with the model in evaluation mode, after every
            `config.validate_every` steps and after the last. With `config.patience`, the weights of the best
            validation are put back at the end.
        checkpoint: one safetensors file, written after every `config.checkpoint_every` steps and after the last. If
            it is there, training goes on from it: on the same machine, with the same weights and records, bit for bit,
            as without the interruption (on a GPU, as far as its kernels are deterministic).
        progress: whether to show a bar where somebody can watch it, and nowhere else.

    Raises:
        ValueError: at the call: what was given does not fit together, or the checkpoint is damaged or of another run.
            Later: a batch or loss of the wrong shape, or batches that end too early.
        FloatingPointError: a loss or gradient is not finite, and the weights are those before that step; or a
            held-out loss, or a weight to be saved, and they are those after it. The checkpoint is the last one saved.
    """
    _, processes = _place()
    if config.patience is not None and validate is None:
        raise ValueError(f"patience ({config.patience}) counts validations: give validate too")
    if config.batch_size % processes:
        raise ValueError(
            f"batch_size ({config.batch_size}) must be a multiple of the number of processes ({processes})"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameter that can be trained")
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise ValueError(f"there is no folder {Path(checkpoint).absolute().parent} to keep the checkpoint in")
    stream = iter(batches(torch.Generator().manual_seed(config.seed)))
    run = _Run(model, config, processes, None if checkpoint is None else Path(checkpoint))
    if run.path is not None and run.path.exists():
        run.resume(stream)
    return _steps(run, stream, loss, validate, progress)


class _Run:
    """A training run as it stands: all that a checkpoint holds."""

    def __init__(self, model: nn.Module, config: TrainConfig, processes: int, path: Path | None) -> None:
        self.model, self.config, self.processes, self.path = model, config, processes, path
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.optimizers = _optimizers(model, list(self.parameters.values()), config)
        self.moved_by = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        self.step, self.saved = 0, 0  # steps done, and steps done when it was last saved
        self.batch: Batch = ()  # of the last step
        self.best, self.best_weights, self.waited = math.inf, {}, 0  # waited: validations since the best

    @property
    def done(self) -> bool:
        patience = self.config.patience
        return self.step >= self.config.steps or (patience is not None and self.waited >= patience)

    def settings(self) -> dict:
        """What must be the same for a run to go on as it began."""
        config = dataclasses.asdict(self.config)
        del config["checkpoint_every"]  # changes nothing but how much an interruption costs
        trained = sum(p.numel() for p in self.parameters.values())
        own = {"processes": self.processes, "trained parameters": trained}
        return checkpoints.settings(self.model) | config | own

    def save(self) -> None:
        checkpoints.require_finite(self.model)
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best_weights.items()}
        for name, p in self.parameters.items():
            for key, value in self.moved_by[p].state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        about = {"settings": self.settings(), "batch": checkpoints.digest(*self.batch)}
        about |= {"step": self.step, "waited": self.waited, "best": self.best if self.best_weights else None}
        checkpoints.write(self.path, KIND, tensors, about)

    def resume(self, stream: Iterator[Batch]) -> None:
        """Become the run that was saved, with its batches drawn again up to the last one.

        Raises:
            ValueError: the file is damaged, or of another run. The model is as it was then.
        """
        tensors, about = checkpoints.read(self.path, KIND)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        for full, t in tensors.items():
            part, name = full.split(".", 1)
            parts.setdefault(part, {})[name] = t
        weights, self.best_weights = parts.pop("model"), parts.pop("best")
        checkpoints.require_same(self.path, about["settings"], self.settings())
        checkpoints.require_same(self.path, checkpoints.shapes(weights), checkpoints.shapes(self.model.state_dict()))
        for step in range(1, about["step"] + 1):
            self.batch = self.draw(stream, step)
        if checkpoints.digest(*self.batch) != about["batch"]:
            raise ValueError(f"{self.path} is of another run: it saw another batch in step {about['step']}")
        self.model.load_state_dict(weights)
        for key, moments in parts.items():  # AdamW's step, kept on the CPU, exp_avg and exp_avg_sq; Muon's momentum
            for name, t in moments.items():
                p = self.parameters[name]
                self.moved_by[p].state[p][key] = t if key == "step" else t.to(p.device)
        self.step = self.saved = about["step"]
        self.waited, self.best = about["waited"], math.inf if about["best"] is None else about["best"]

    def draw(self, stream: Iterator[Batch], step: int) -> Batch:
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"the batches end after {step - 1} of {self.config.steps} steps")
        for t in batch:
            if t.dim() < 1 or len(t) != self.config.batch_size:
                raise ValueError(
                    f"a batch of shape {tuple(t.shape)} does not have batch_size ({self.config.batch_size}) rows"
                )
        return batch

    def require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            kept = f"the checkpoint of step {self.saved} is {self.path}" if self.saved else "no checkpoint was kept"
            raise FloatingPointError(
                f"{what} of step {step} is {value}: training stopped with the weights of step {self.step}; {kept}"
            )


def _optimizers(model: nn.Module, parameters: list[nn.Parameter], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """What moves the weights: AdamW; or Muon for the matrices of the blocks, and AdamW for all others."""
    decay = {"weight_decay": config.weight_decay}
    found, by_muon = [], set()
    if config.optimizer == "muon":
        inside = {p for stack in model.modules() if isinstance(stack, Stack) for p in stack.parameters()}
        by_muon = {p for p in parameters if p.dim() > 1 and p in inside}
        if not by_muon:
            raise ValueError(f"Muon moves the matrices in a Stack, and {type(model).__name__} has none to train")
        found.append(Muon([p for p in parameters if p in by_muon], config.learning_rate, **decay))
    matrices = [p for p in parameters if p.dim() > 1 and p not in by_muon]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, **decay}, {"params": vectors, "weight_decay": 0.0}]
    if groups := [group for group in groups if group["params"]]:
        betas = (BETAS[0], config.beta2)
        found.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas))
    return found


def _steps(
    run: _Run,
    stream: Iterator[Batch],
    loss: Loss,
    validate: Validate | None,
    progress: bool,
) -> Iterator[Record]:
    model, config, was_training = run.model, run.config, run.model.training
    if run.processes > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if run.device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # not sooner: a group can't be joined a second time
    rank, _ = _place()
    shared = DistributedDataParallel(model) if run.processes > 1 else model  # averages gradients over the processes
    rows = config.batch_size // run.processes
    shown = progress and rank == 0 and _watched()
    bar = tqdm(total=config.steps, initial=run.step, unit="step", leave=False, disable=not shown)
    try:
        while not run.done:
            run.batch = run.draw(stream, run.step + 1)
            ours = tuple(t[rank * rows : (rank + 1) * rows].to(run.device) for t in run.batch)
            with _randomness(f"{config.seed} {run.step} {rank}", run.device):
                model.train()
                mean, norm = _descend(run, shared, ours, loss)
                due = run.step % config.validate_every == 0 or run.step == config.steps
                held_out = _judge(run, validate) if due and validate is not None else None
            if run.path is not None and (run.step % config.checkpoint_every == 0 or run.done):
                checkpoints.require_finite(model)  # in every process, so that all of them stop
                if rank == 0:
                    run.save()
                run.saved = run.step
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            yield Record(run.step, mean, schedule(run.step, config), norm, held_out)
        if run.best_weights:
            model.load_state_dict(run.best_weights)
        if run.processes > 1:
            dist.barrier()  # the last checkpoint is there when any process goes on
    finally:
        bar.close()
        for optimizer in run.optimizers:
            optimizer.zero_grad()
        model.train(was_training)


def _descend(run: _Run, model: nn.Module, batch: Batch, loss: Loss) -> tuple[float, float]:
    """One step: the gradient, clipped, and the optimisers' answer. Returns the loss, and the norm before clipping."""
    step, config = run.step + 1, run.config
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    with torch.enable_grad():
        value = loss(model, batch)
    if value.dim():
        raise ValueError(f"the loss must be one number, got shape {tuple(value.shape)}")
    mean = _mean(value.item(), run)
    run.require_finite("the loss", mean, step)
    value.backward()
    limit = math.inf if config.clip is None else config.clip
    norm = nn.utils.clip_grad_norm_(run.parameters.values(), limit).item()
    run.require_finite("the norm of the gradient", norm, step)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, config)
        optimizer.step()
    run.step = step
    return mean, norm


def _judge(run: _Run, validate: Validate) -> float:
    """One validation, and what it means for early stopping."""
    run.model.eval()
    with torch.no_grad():
        held_out = _mean(float(validate(run.model)), run)
    run.require_finite("the held-out loss", held_out, run.step)
    if run.config.patience is not None and held_out < run.best:
        run.best, run.waited = held_out, 0
        run.best_weights = {name: t.detach().clone() for name, t in run.model.state_dict().items()}
    else:
        run.waited += 1
    return held_out


def _place() -> tuple[int, int]:
    """This process's number, and how many processes train together, as torchrun tells them."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _mean(value: float, run: _Run) -> float:
    """The mean over all processes, so that all of them decide alike."""
    if run.processes == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=run.device)
    dist.all_reduce(total)
    return total.item() / run.processes


@contextlib.contextmanager
def _randomness(name: str, device: torch.device) -> Iterator[None]:
    """Dropout's randomness follows from a name; the caller's is as it was before."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    cuda = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _watched() -> bool:
    """Whether somebody sees a bar: at a terminal, or at a notebook's front end, which can answer input()."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    return sys.stderr.isatty() if kernel is None else bool(getattr(kernel, "_allow_stdin", False))
