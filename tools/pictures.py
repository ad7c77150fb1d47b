"""Train models to caption scenes of two digits: a small one for longer than a page allows, and the book's own language
model, frozen and not.

    python tools/pictures.py

It writes pictures.json, the recorded run that the chapter Pictures as prompts reads, into lib/bookformer/runs/. What a
run that was interrupted had finished stays.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bookformer import checkpoints
from bookformer.bpe import END_OF_TEXT
from bookformer.config import ModelConfig, TrainConfig
from bookformer.data import CORPORA
from bookformer.heads import LanguageModel
from bookformer.scenes import DIGITS, Scenes, load_digits, make_scenes, varied
from bookformer.tokenizers import Tokenizer, WordPieceTokenizer
from bookformer.train import Batch, Record, fit
from bookformer.vision import PatchEmbedding, PictureEncoder, PicturePrompt, caption_ids, caption_loss
from bookformer.weights import RUNS, load_pretrained
from pretrain import library_hash, machine_of

SIZE, PATCH = 20, 4
UNSEEN = [(a, b) for a in range(10) for b in range(10) if (a - b) % 10 in (3, 7)]  # never together in training
SEEN = [(a, b) for a in range(10) for b in range(10) if (a, b) not in UNSEEN]
TIMES = 20  # each digit is drawn so often a little otherwise
TESTED = 1000  # scenes
WORDS = ["[CLS]", "[SEP]", "[UNK]", "a", *DIGITS, "left", "of", "above"]
SMALL = ModelConfig(
    vocab_size=len(WORDS), context_length=40, d_model=64, n_layers=3, positions="rotary", norm="rms", bias=False
)
ENCODER = ModelConfig(
    kind="encoder", vocab_size=1, context_length=25, d_model=64, n_layers=2, positions="none", norm="rms", bias=False
)
Draw = Callable[[torch.Generator], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to train."""

    language_model: str  # "small", from a random start; or the book's own
    steps: int
    frozen: bool = False
    encoder: bool = False
    batch_size: int = 32
    learning_rate: float = 2e-2
    seeds: int = 1


VARIANTS = {
    "the book's model, frozen, encoder trained": Variant(
        "shakespeare-3m", 800, frozen=True, encoder=True, batch_size=16, learning_rate=1e-2
    ),
    "the book's model, all trained": Variant("shakespeare-3m", 600, encoder=True, batch_size=16, learning_rate=1e-2),
    "small, as on the page but longer": Variant("small", 3000, seeds=2),
}


def sides() -> dict[str, tuple[Tensor, Tensor]]:
    """Digits to train on, and of those at the end of the set every other to validate and to test."""
    pictures, labels = load_digits()
    parts = {"train": slice(1400), "validation": slice(1400, None, 2), "test": slice(1401, None, 2)}
    return {name: (pictures[part].contiguous(), labels[part].contiguous()) for name, part in parts.items()}


def start(variant: Variant, seed: int) -> tuple[PicturePrompt, Tokenizer, dict[str, int], str]:
    """A model before its first step, its tokenizer, the ids around a caption, and what its text begins with."""
    torch.manual_seed(seed)
    if variant.language_model == "small":
        model, tokenizer = LanguageModel(SMALL), WordPieceTokenizer(WORDS)
        marks, space = {"begin": tokenizer.special["[CLS]"], "end": tokenizer.special["[SEP]"]}, ""
    else:
        model, tokenizer = load_pretrained(variant.language_model)
        end = tokenizer.special[END_OF_TEXT]
        marks, space = {"begin": end, "end": end}, " "
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # there are new scenes at every step
    model.requires_grad_(not variant.frozen)
    size, width = (1, SIZE, SIZE), model.config.d_model
    eyes = PictureEncoder(size, PATCH, ENCODER, width) if variant.encoder else PatchEmbedding(size, PATCH, width)
    return PicturePrompt(model, eyes), tokenizer, marks, space


def asked(scenes: Scenes, tokenizer: Tokenizer, marks: dict[str, int], space: str) -> Batch:
    """Scenes as pictures, inputs and targets."""
    return scenes.pictures, *caption_ids([space + caption for caption in scenes.captions()], tokenizer, **marks)


def steps(
    variant: Variant, seed: int, train: tuple[Tensor, Tensor]
) -> tuple[PicturePrompt, Iterator[Record], Callable]:
    """A model, its training, and how scenes are put to it."""
    model, *words = start(variant, seed)
    more = varied(train[0], TIMES, torch.Generator().manual_seed(seed))
    pictures, labels = torch.cat([train[0], more]), train[1].repeat(TIMES + 1)
    config = TrainConfig(
        steps=variant.steps,
        batch_size=variant.batch_size,
        optimizer="muon",
        learning_rate=variant.learning_rate,
        final_fraction=0.02,
        seed=seed,
    )

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        while True:
            scenes = make_scenes(pictures, labels, config.batch_size, generator, pairs=SEEN, size=SIZE, step=PATCH)
            yield asked(scenes, *words)

    return model, fit(model, batches, config, loss=caption_loss), lambda scenes: asked(scenes, *words)


@torch.no_grad()
def right(model: PicturePrompt, batch: Batch, *, swapped: bool = False) -> tuple[float, float]:
    """The share of captions that are right word for word, and of their tokens, given those before.

    With `swapped`, each is asked about the picture before its own.
    """
    pictures, inputs, targets = batch
    vectors = model.eyes(pictures)
    said = model(inputs, vectors=vectors.roll(1, dims=0) if swapped else vectors).argmax(dim=-1)  # (B, T)
    asked = targets >= 0
    good = (said == targets) | ~asked
    return good.all(dim=1).float().mean().item(), good[asked].float().mean().item()


def measure(variant: Variant, seed: int, split: dict[str, tuple[Tensor, Tensor]]) -> dict:
    """Train one model with one seed, and say what came of it."""
    model, records, put = steps(variant, seed, split["train"])

    def tested(side: str, pairs: list[tuple[int, int]], n: int = TESTED) -> Batch:
        drawn = torch.Generator().manual_seed(1)
        return put(make_scenes(*split[side], n, drawn, pairs=pairs, size=SIZE, step=PATCH))

    losses, curve, seconds, begun = [], {}, 0.0, time.process_time()
    for record in records:
        losses.append(round(record.loss, 4))
        if record.step % (variant.steps // 10) == 0:
            seconds += time.process_time() - begun
            model.eval()
            exact, tokens = right(model, tested("validation", SEEN, 200))
            curve[record.step] = {
                "cpu_seconds": round(seconds, 1),
                "exact": round(exact, 4),
                "tokens": round(tokens, 4),
            }
            print(record.step, curve[record.step], flush=True)
            model.train()
            begun = time.process_time()
    model.eval()
    found = {
        "pairs seen": right(model, tested("test", SEEN)),
        "pairs not seen": right(model, tested("test", UNSEEN)),
        "validation": right(model, tested("validation", SEEN)),
        "training digits": right(model, tested("train", SEEN)),
        "another scene": right(model, tested("test", SEEN), swapped=True),
    }
    return {
        "seed": seed,
        "exact": {name: round(exact, 4) for name, (exact, _) in found.items()},
        "tokens": {name: round(tokens, 4) for name, (_, tokens) in found.items()},
        "validation_curve": curve,
        "cpu_seconds": round(seconds, 1),
        "first_losses": losses[:3],
    }


def about(split: dict[str, tuple[Tensor, Tensor]]) -> dict:
    """What was trained and measured, and on what."""
    return {
        "command": "python tools/pictures.py",
        "data": {
            "package": CORPORA["digits"].package,
            "licence": CORPORA["digits"].licence,
            "sides": {name: {"digits": len(y), "sha256": checkpoints.digest(x, y)} for name, (x, y) in split.items()},
            "pairs_not_seen": [list(pair) for pair in UNSEEN],
            "size": SIZE,
            "patch": PATCH,
            "drawn_otherwise": TIMES,
            "test_scenes": TESTED,
        },
        "small": dataclasses.asdict(SMALL),
        "encoder": dataclasses.asdict(ENCODER),
    }


def main() -> None:
    """Train every variant with its seeds, and write the record after each."""
    torch.set_num_threads(1)
    split = sides()
    recipe = about(split)
    record = {
        **recipe,
        "library": library_hash(),
        "torch": torch.__version__.split("+")[0],
        "machine": machine_of(1),
        "variants": {},
    }
    path = RUNS / "pictures.json"
    old = json.loads(path.read_text()) if path.exists() else {"variants": {}}
    kept = old["variants"] if {key: old.get(key) for key in recipe} == json.loads(json.dumps(recipe)) else {}
    for name, variant in VARIANTS.items():
        settings = dataclasses.asdict(variant)
        if name in kept and {key: kept[name].get(key) for key in settings} == settings:
            record["variants"][name] = kept[name]
            continue
        model = start(variant, 0)[0]
        record["variants"][name] = {
            **settings,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "runs": [measure(variant, seed, split) for seed in range(variant.seeds)],
        }
        print(name, json.dumps(record["variants"][name], indent=1), flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
