"""Texts of a few domains: medicine, law and software, each with held-out documents that repeat nothing.

Chapter: Domain experts.
"""

import random
import re
from collections.abc import Collection, Iterator, Sequence
from xml.etree import ElementTree

from bookformer.data import clean, load_files, load_pairs, near_duplicates

# ICD-10-CM's chapters on diseases; without those (eyes, bones, births, injuries) that name each thing left and right
DISEASES = "ABCDEFGIJKLN"


def load_medicine() -> dict[str, list[str]]:
    """ICD-10-CM, the names of diseases and injuries by which American hospitals report: for each category, such as A00,
    the names of what belongs there, other names of it, and what is counted elsewhere, line by line. Raises as
    `load_files`.
    """
    (text,) = load_files("medicine").values()
    kept = {"inclusionTerm", "includes", "excludes1", "excludes2", "useAdditionalCode", "codeFirst", "codeAlso"}

    def lines(part: ElementTree.Element) -> Iterator[str]:
        yield part.findtext("desc").strip()
        for child in part:
            if child.tag == "diag":
                yield from lines(child)
            elif child.tag in kept:
                yield from (note.text.strip() for note in child.iter("note"))

    categories = ElementTree.fromstring(text.encode()).iterfind("chapter/section/diag")
    return {category.findtext("name"): list(lines(category)) for category in categories}


def load_licences() -> dict[str, list[str]]:
    """Licences of software and works, one of each family: the name in SPDX's list, and the text, line by line. What a
    licensor fills in has the original's words. Raises as `load_files`.
    """
    licences = {}
    for file, text in load_files("licences").items():
        text = re.sub(r"<<var;.*?original=(.*?);match=.*?>>", r"\1", text, flags=re.DOTALL)
        text = re.sub(r"<<beginOptional.*?>>|<<endOptional>>", "", text, flags=re.DOTALL)
        lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
        licences[file.removesuffix(".txt")] = [line for line in lines if line]
    return licences


def load_domains() -> dict[str, tuple[list[str], list[str]]]:
    """For each domain its documents to train on, and those held out, as `hold_out` divides them, in a shuffled order.

    Medicine: ICD-10-CM's categories of diseases. Law: licences, each fourth held out. Software: what JupyterLab says
    in English, thirty messages to a document. The order is the same every time; with the packages' own, the beginning
    of a text would be about infections alone, or about what begins with A. Raises as `load_files`.
    """
    messages = list(dict.fromkeys(clean(english).replace("\n", " ") for english, _ in load_pairs()))
    documents = {
        "medicine": [lines for code, lines in load_medicine().items() if code[0] in DISEASES],
        "law": list(load_licences().values()),
        "software": [messages[i : i + 30] for i in range(0, len(messages), 30)],
    }
    sides = {domain: hold_out(each, every=4 if domain == "law" else 6) for domain, each in documents.items()}
    draw = random.Random(0)
    return {domain: tuple(draw.sample(side, len(side)) for side in both) for domain, both in sides.items()}


def word_runs(text: str, length: int = 8) -> list[str]:
    """Every run of so many words in a row, in lower case, without what stands between them; none in a shorter text."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def hold_out(documents: Sequence[Sequence[str]], *, every: int = 6) -> tuple[list[str], list[str]]:
    """Every sixth document held out, the others to train on; lines that repeat others are left out.

    A line that nearly repeats one before it (as `near_duplicates` finds them) goes. The training documents come before
    the held-out ones in this, so no held-out line is a near-duplicate of one that is trained on. A held-out line may
    still share a clause with a longer or a shorter one: it goes if a fifth of its runs of eight words, or more, stand
    in the texts to train on. A document of which nothing stays is left out too.

    Args:
        documents: lists of lines.
        every: how many documents there are for each that is held out.

    Returns:
        The texts to train on, and those held out.

    Raises:
        ValueError: `every` is below 2, or a side has no text.
    """
    if every < 2:
        raise ValueError(f"every ({every}) must be at least 2, or nothing is left to train on")
    sides = [i % every == every - 1 for i in range(len(documents))]
    order = [i for i, held in enumerate(sides) if not held] + [i for i, held in enumerate(sides) if held]
    lines = [(i, line) for i in order for line in documents[i]]
    repeats = {j for _, j, _ in near_duplicates([line for _, line in lines])}
    kept: dict[int, list[str]] = {}
    for n, (i, line) in enumerate(lines):
        if n not in repeats:
            kept.setdefault(i, []).append(line)
    train = ["\n".join(kept[i]) for i in kept if not sides[i]]
    seen = {run for text in train for run in word_runs(text)}
    held = ["\n".join(line for line in kept[i] if not _copied(line, seen)) for i in kept if sides[i]]
    held = [text for text in held if text]
    if not train or not held:
        raise ValueError(f"{len(documents)} documents leave {len(train)} to train on, and {len(held)} held out")
    return train, held


def _copied(line: str, seen: Collection[str]) -> bool:
    runs = word_runs(line)
    return bool(runs) and sum(run in seen for run in runs) >= len(runs) / 5
