"""Fine-tune MiniLM with few labels, in several ways and with five seeds, and write down what came of it.

    python tools/finetune.py

Interrupted, the same command goes on with the next seed. It writes lib/bookformer/runs/finetune.json.
"""

import copy
import dataclasses
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from bookformer import checkpoints
from bookformer.adapt import add_lora
from bookformer.config import TrainConfig
from bookformer.data import CORPORA, load_rated
from bookformer.heads import Classifier
from bookformer.metrics import predict
from bookformer.splits import draw_labelled, labelled_batches, require_no_shared_texts, split_groups
from bookformer.train import Record, fit
from bookformer.transformer import Transformer
from bookformer.weights import MINILM, RUNS, load_minilm
from pretrain import library_hash, machine_of

SEEDS = range(5)
LABELS = (16, 64)
RANKS = (1, 8, 32)  # the middle one is used at every number of labels
LAYERS = ("attn.q", "attn.v")
LONGEST = 32  # tokens of a sentence, its two marks included
CLEAR = 0.8  # ratings nearer to 0 are left out
TRAIN = TrainConfig(
    steps=64, batch_size=16, learning_rate=1e-4, warmup_fraction=0.1, weight_decay=0.01, beta2=0.98, validate_every=8,
    patience=3,
)  # fmt: skip
RATES = {"full": 5e-5, "lora": 1e-3, "random": 1e-4}
STEPS = {16: 24, 64: 56}  # the most


@dataclasses.dataclass
class Side:
    """One side of the split: texts, as ids too, and whether each says something good."""

    texts: list[str]
    ids: list[list[int]]
    labels: Tensor


def sides(tokenizer) -> dict[str, Side]:
    """Sentences of editorials with clear ratings, as many good as bad ones on each side, whole articles together."""
    rows = [row for row in load_rated("news") if abs(row.rating) >= CLEAR]
    generator = torch.Generator().manual_seed(0)
    made = {}
    names = ("test", "validation", "train")
    for name, items in zip(names, split_groups([r.group for r in rows], [0.67, 0.06, 0.27], generator), strict=True):
        good = [int(rows[i].rating > 0) for i in items]
        kept = draw_labelled(good, 2 * min(sum(good), len(good) - sum(good)), 2, generator)
        texts = [rows[items[i]].text for i in kept]
        ids = [
            [tokenizer.special["[CLS]"], *tokenizer.encode(t)[: LONGEST - 2], tokenizer.special["[SEP]"]] for t in texts
        ]
        made[name] = Side(texts, ids, torch.tensor([good[i] for i in kept]))
    require_no_shared_texts(**{name: side.texts for name, side in made.items()})
    return made


class Mean(nn.Module):
    """The mean of a model's vectors over a text, as a fixed description of it."""

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """From ids (B, T) to (B, D)."""
        x = self.body(ids, mask=real[:, None, None, :]) * real[..., None]
        return x.sum(dim=1) / real.sum(dim=1, keepdim=True)


def accuracy(model: nn.Module, side: Side, padding: int) -> float:
    """The share of texts whose class the model says."""
    return (predict(model, side.ids, padding).argmax(dim=1) == side.labels).float().mean().item()


def on_features(body: Transformer, probe: LogisticRegression) -> Classifier:
    """A classifier that says what a logistic regression on a body's mean vectors says."""
    model = Classifier(body, 2, reads="mean")
    w, b = torch.tensor(probe.coef_[0]).float() / 2, float(probe.intercept_[0]) / 2
    with torch.no_grad():
        model.out.weight.copy_(torch.stack([-w, w]))
        model.out.bias.copy_(torch.tensor([-b, b]))
    return model


def train(model: Classifier, few: Side, held: Side, padding: int, rate: float, n: int, seed: int) -> list[Record]:
    """The last step of all ways: until the validation loss stops falling, the best weights kept, or the first ones."""
    config = dataclasses.replace(TRAIN, learning_rate=rate, steps=STEPS[n], seed=seed)

    def held_out_loss(m: nn.Module) -> float:
        return F.cross_entropy(predict(m, held.ids, padding), held.labels).item()

    before, first = (
        held_out_loss(model),
        {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad},
    )
    records = list(
        fit(
            model,
            lambda g: labelled_batches(few.ids, few.labels, padding, config.batch_size, g),
            config,
            loss=lambda m, batch: F.cross_entropy(m(batch[0], batch[1]), batch[2]),
            validate=held_out_loss,
            progress=False,
        )
    )
    if min(r.held_out for r in records if r.held_out is not None) > before:
        model.load_state_dict(first, strict=False)
    return records


def start(way: str, body: Transformer, probe: LogisticRegression, rank: int, seed: int) -> Classifier:
    """A classifier before its first step."""
    torch.manual_seed(seed)
    if way == "random":
        return Classifier(Transformer(MINILM), 2, reads="mean")
    model = on_features(copy.deepcopy(body), probe)
    if way == "lora":
        add_lora(model, LAYERS, rank)
        model.out.requires_grad_()
    return model


def few_of(side: Side, n: int, seed: int) -> tuple[Side, list[int]]:
    """n labelled texts of a side, drawn with a seed; and which they are."""
    chosen = draw_labelled(side.labels.tolist(), n, 2, torch.Generator().manual_seed(seed))
    return Side([side.texts[i] for i in chosen], [side.ids[i] for i in chosen], side.labels[chosen]), chosen


def measure(split: dict[str, Side], body: Transformer, padding: int, features: dict[str, Tensor], seed: int) -> dict:
    """Everything with one seed: for each number of labels and each way, the accuracy on the test side."""
    found = {}
    for n in LABELS:
        few, chosen = few_of(split["train"], n, seed)
        words = TfidfVectorizer(sublinear_tf=True).fit(few.texts)
        counted = LogisticRegression(C=10.0).fit(words.transform(few.texts), few.labels)
        probe = LogisticRegression(C=0.1, max_iter=2000).fit(features["train"][chosen], few.labels)
        row = {
            "tfidf": counted.score(words.transform(split["test"].texts), split["test"].labels),
            "frozen": probe.score(features["test"], split["test"].labels),
        }
        ways = [("full", 0), *(("lora", rank) for rank in (RANKS if n == 64 else RANKS[1:2])), ("random", 0)]
        for way, rank in ways:
            model = start(way, body, probe, rank, seed)
            begun = time.process_time()
            records = train(model, few, split["validation"], padding, RATES[way], n, seed)
            seconds = time.process_time() - begun
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            row[f"{way} {rank}" if rank else way] = {
                "accuracy": accuracy(model, split["test"], padding),
                "parameters": trained,
                "steps": len(records),
                "cpu_seconds": round(seconds, 1),
                "losses": [round(r.loss, 4) for r in records[:3]],
                "held_out": [round(r.held_out, 4) for r in records if r.held_out is not None],
            }
            print(seed, n, way, rank, row[f"{way} {rank}" if rank else way], flush=True)
        found[str(n)] = row
    return found


def about(split: dict[str, Side]) -> dict:
    """What is the same at every seed."""
    return {
        "command": "python tools/finetune.py",
        "package": CORPORA["rated"].package,
        "data": {
            name: {"texts": len(side.texts), "sha256": checkpoints.digest(*side.texts)} for name, side in split.items()
        },
        "train": dataclasses.asdict(TRAIN),
        "rates": RATES,
        "ranks": list(RANKS),
    }


def main() -> None:
    """Run what is missing, and write the record after each seed."""
    torch.set_num_threads(1)
    body, tokenizer = load_minilm()
    padding = tokenizer.special["[PAD]"]
    split = sides(tokenizer)
    path = RUNS / "finetune.json"
    record = {
        **about(split),
        "library": library_hash(),
        "torch": torch.__version__.split("+")[0],
        "machine": machine_of(1),
        "seeds": {},
    }
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["data"] == record["data"] and kept["train"] == record["train"] and kept["rates"] == RATES:
            record = kept
    features = {name: predict(Mean(body), side.ids, padding) for name, side in split.items()}
    for seed in SEEDS:
        if str(seed) not in record["seeds"]:
            record["seeds"][str(seed)] = measure(split, body, padding, features, seed)
            path.parent.mkdir(exist_ok=True)
            Path(path).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
