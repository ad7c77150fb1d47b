"""Questions whose answers stand in a text: who says these words, in a scene of Shakespeare's.

Chapter: Fine-tuning. The questions are made by a rule from real scenes, for want of a set that people wrote and that
installs as a package. Rajpurkar et al. 2016 and 2018 made the set SQuAD, with questions that have no answer too.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

_SPEECH = re.compile(r"(?m)^([A-Z][A-Za-z' ]{1,20})\.\n((?:[^\n]+\n?)+)")


class Asked(NamedTuple):
    """A question, the words of a text, and the words of the answer in it: None if the text does not say."""

    question: str
    words: list[str]
    answer: list[str] | None


def speeches(play: str) -> list[tuple[str, list[str]]]:
    """Who speaks, and the words, for each speech of a play in which a name stands on a line of its own before it.

    Stage directions in brackets are left out.
    """
    return [(name, re.sub(r"\[[^\]]*\]|--", " ", said).split()) for name, said in _SPEECH.findall(play)]


def make_questions(
    plays: Mapping[str, str], n: int, generator: torch.Generator, *, longest: int = 9, share_unanswerable: float = 0.25
) -> list[Asked]:
    """Questions by a rule: two to four speeches in a row, cut short, and who says some four words of them.

    For some the four words are taken from another speech of the play, and no speaker of the scene says them.

    Args:
        plays: names and texts, cleaned.
        n: how many questions.
        generator: where the randomness comes from.
        longest: the words that are kept of a speech.
        share_unanswerable: how likely a question has no answer.

    Raises:
        ValueError: no play has 300 speeches that can be told apart.
    """
    spoken = [found for text in plays.values() if len(found := speeches(text)) >= 300]
    if not spoken:
        raise ValueError(f"none of the {len(plays)} plays has 300 speeches with a name on a line of its own")

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    made: list[Asked] = []
    while len(made) < n:
        play = spoken[draw(len(spoken))]
        at = draw(len(play) - 4)
        scene = [(name, said[:longest]) for name, said in play[at : at + 2 + draw(3)] if len(said) >= 4]
        other, there = play[draw(len(play))][1][:longest], torch.rand((), generator=generator) >= share_unanswerable
        if len({name for name, _ in scene}) < 2 or len(other) < 4:
            continue
        who, said = scene[draw(len(scene))]
        said = said if there else other
        start = draw(len(said) - 3)
        quote = " ".join(said[start : start + 4])
        if sum(quote in " ".join(words) for _, words in scene) != int(there):
            continue  # it must be clear who says it, or that nobody does
        words = [word for name, words in scene for word in [*f"{name}:".split(), *words]]
        made.append(Asked(f"Who says {quote}?", words, f"{who}:".split() if there else None))
    return made
