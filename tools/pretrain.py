"""Pretrain the book's own language models, and write what made them beside their weights.

    python tools/pretrain.py shakespeare-3m

Interrupted, the same command goes on where it stopped. It writes NAME.safetensors (half precision), NAME.json (the
recorded run) and the tokenizer into lib/bookformer/models/.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch

from bookformer import checkpoints
from bookformer.bpe import END_OF_TEXT, BPETokenizer
from bookformer.config import ModelConfig, TrainConfig
from bookformer.data import CORPORA, HELD_OUT, batches, clean, join_documents, load_works
from bookformer.heads import LanguageModel
from bookformer.metrics import nats_per_character
from bookformer.train import Record, fit, next_token_loss

MODELS = Path(__file__).parents[1] / "lib" / "bookformer" / "models"
WORK = Path(__file__).parents[1] / ".pretrain"  # what an interrupted run goes on from
TOKENIZER = "shakespeare.tokenizer.json"
VOCAB_SIZE = 2048
LLAMA_LIKE = {"positions": "rotary", "norm": "rms", "bias": False, "dropout": 0.1}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One run: all that decides what its weights become, the machine apart."""

    model: ModelConfig
    train: TrainConfig
    threads: int = 1


RECIPES = {
    "shakespeare-3m": Recipe(
        ModelConfig(vocab_size=VOCAB_SIZE, context_length=256, d_model=192, n_heads=6, n_layers=6, **LLAMA_LIKE),
        TrainConfig(steps=3000, batch_size=16, learning_rate=3e-3, final_fraction=0.02),
    ),
}


def texts() -> tuple[dict[str, str], dict[str, str]]:
    """The works to train on and the four held out, cleaned."""
    works = {name: clean(text) for name, text in load_works().items()}
    train = {name: text for name, text in works.items() if name not in HELD_OUT}
    return train, {name: works[name] for name in HELD_OUT}


def tokenizer_of(train: dict[str, str]) -> BPETokenizer:
    """Byte-level BPE, learnt from the training works alone."""
    return BPETokenizer.train("\n\n".join(train.values()), VOCAB_SIZE, [END_OF_TEXT])


def encode(works: dict[str, str], tokenizer: BPETokenizer) -> torch.Tensor:
    """The works as one row of ids."""
    return join_documents(map(tokenizer.encode, works.values()), tokenizer.special[END_OF_TEXT])


def start(recipe: Recipe) -> LanguageModel:
    """The model before its first step."""
    torch.manual_seed(recipe.train.seed)
    return LanguageModel(recipe.model)


def steps(
    recipe: Recipe, model: LanguageModel, ids: torch.Tensor, sample: torch.Tensor, checkpoint: Path | None
) -> Iterator[Record]:
    """The run itself: records, with the loss on the held-out sample every now and then."""
    t = recipe.model.context_length
    return fit(
        model,
        lambda g: batches(ids, context_length=t, batch_size=recipe.train.batch_size, generator=g),
        recipe.train,
        validate=lambda m: next_token_loss(m, (sample[:, :-1], sample[:, 1:])).item(),
        checkpoint=checkpoint,
    )


def sample_of(held: torch.Tensor, t: int, windows: int = 32) -> torch.Tensor:
    """Windows and one token more (32, T + 1), from all over the held-out text: enough to see a curve by."""
    starts = torch.linspace(0, len(held) - t - 1, windows).long()
    return torch.stack([held[s : s + t + 1] for s in starts])


def pretrain(name: str) -> None:
    """Train one model, or go on with it, and write its files."""
    recipe = RECIPES[name]
    torch.set_num_threads(recipe.threads)
    train, held = texts()
    tokenizer = tokenizer_of(train)
    ids, held_ids = encode(train, tokenizer), encode(held, tokenizer)
    model = start(recipe)
    WORK.mkdir(exist_ok=True)
    kept, log = WORK / f"{name}.safetensors", WORK / f"{name}.jsonl"
    if not kept.exists():
        about = {"library": library_hash(), "torch": torch.__version__.split("+")[0], "machine": machine(recipe)}
        log.write_text(json.dumps(about) + "\n")
    begun = time.perf_counter()
    with log.open("a") as file:
        for record in steps(recipe, model, ids, sample_of(held_ids, recipe.model.context_length), kept):
            row = dataclasses.asdict(record) | {"seconds": round(time.perf_counter() - begun, 1)}
            print(json.dumps(row), file=file, flush=True)
    write(name, recipe, model, tokenizer, train, held, log)


def write(
    name: str,
    recipe: Recipe,
    model: LanguageModel,
    tokenizer: BPETokenizer,
    train: dict[str, str],
    held: dict[str, str],
    log: Path,
) -> None:
    """Write the tokenizer, the weights in half precision, and the run that made them, measured as they were written."""
    MODELS.mkdir(exist_ok=True)
    checkpoints.require_finite(model)
    halves = {key: t.half() for key, t in model.state_dict().items()}
    model.load_state_dict({key: t.float() for key, t in halves.items()})  # the loss is that of what is shipped
    weights = safetensors.torch.save(halves, {"run": f"{name}.json"})
    (MODELS / f"{name}.safetensors").write_bytes(weights)
    tokenizer.save(MODELS / TOKENIZER)
    about, *rows = map(json.loads, log.read_text().splitlines())
    steps_done = {row["step"]: row for row in rows}  # a run that was interrupted has done some steps twice, alike
    curve = [steps_done[step] for step in range(1, recipe.train.steps + 1)]
    t = recipe.model.context_length
    plays = {
        play: nats_per_character(model, tokenizer, encode({play: text}, tokenizer), t) for play, text in held.items()
    }
    run = {
        "command": f"python tools/pretrain.py {name}",
        "model": dataclasses.asdict(recipe.model),
        "train": dataclasses.asdict(recipe.train),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data_of(train, held, tokenizer),
        "tokenizer": TOKENIZER,
        "tokenizer_sha256": hashlib.sha256((MODELS / TOKENIZER).read_bytes()).hexdigest(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **about,
        "seconds": seconds(rows),
        "held_out_nats_per_character": nats_per_character(model, tokenizer, encode(held, tokenizer), t),
        "held_out_nats_per_character_of_each": plays,
        "losses": [round(row["loss"], 4) for row in curve],
        "held_out_sample": [[row["step"], round(row["held_out"], 4)] for row in curve if row["held_out"] is not None],
    }
    (MODELS / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")


def data_of(train: dict[str, str], held: dict[str, str], tokenizer: BPETokenizer) -> dict:
    """What it was trained and measured on."""
    return {
        "package": CORPORA["shakespeare"].package,
        "licence": CORPORA["shakespeare"].licence,
        "training_works": len(train),
        "training_characters": sum(map(len, train.values())),
        "training_tokens": len(encode(train, tokenizer)),
        "training_sha256": checkpoints.digest(*train.values()),
        "held_out_works": list(held),
        "held_out_characters": sum(map(len, held.values())),
        "held_out_tokens": len(encode(held, tokenizer)),
        "held_out_sha256": checkpoints.digest(*held.values()),
    }


def seconds(rows: list[dict]) -> float:
    """What the steps take: their number times the median of one, so that a pause or a second start does not count."""
    times = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(rows) if b["seconds"] >= a["seconds"]]
    return round(statistics.median(times) * len({row["step"] for row in rows}), 1)


def library_hash() -> str:
    """The sha256 of the library's modules."""
    return checkpoints.digest(*(path.read_text() for path in sorted(MODELS.parent.glob("*.py"))))


def machine(recipe: Recipe) -> str:
    """What trained it, in words."""
    return machine_of(recipe.threads)


def machine_of(threads: int) -> str:
    """A machine in words, with how many of its threads were used."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, threads used: {threads}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    pretrain(parser.parse_args().name)
