"""Text to token ids and back: characters, and BERT's WordPiece. Byte-pair encoding stands in `bpe`.

Chapter: Tokens. Papers: Wu et al. 2016 and Devlin et al. 2019 (WordPiece). No torch is needed to read this module.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import regex


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    special: dict[str, int]  # name -> id of the tokens that stand for no text

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


def known_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list, if all of them are in a vocabulary.

    Raises:
        ValueError: an id is outside 0 to vocab_size - 1; the message says which, and where.
    """
    ids = list(ids)
    for at, i in enumerate(ids):
        if not 0 <= i < vocab_size:
            raise ValueError(f"id {i} at index {at} is outside 0 to {vocab_size - 1}")
    return ids


class CharTokenizer:
    """One token a character; ids follow the characters' code points.

    Args:
        alphabet: the characters to know, in any order; repeats are welcome, so a whole text will do.

    Raises:
        ValueError: there are no characters.
    """

    def __init__(self, alphabet: Iterable[str]) -> None:
        self.tokens = sorted(set(alphabet))  # id -> character
        if not self.tokens:
            raise ValueError("the text is empty: there is no character to make a vocabulary from")
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self.special: dict[str, int] = {}  # it has none

    @property
    def vocab_size(self) -> int:
        """V, the number of distinct tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The id of each character.

        Raises:
            ValueError: a character is not in the vocabulary; the message says which, and where.
        """
        try:
            return [self._ids[char] for char in text]
        except KeyError:
            at, char = next((i, c) for i, c in enumerate(text) if c not in self._ids)
            raise ValueError(
                f"character {char!r} at index {at} is not among the {self.vocab_size} characters of the vocabulary"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that these ids spell: the exact inverse of `encode`.

        Raises:
            ValueError: an id is outside 0 to vocab_size - 1; the message says which, and where.
        """
        return "".join(self.tokens[i] for i in known_ids(ids, self.vocab_size))


class WordPieceTokenizer:
    """BERT's: words cut into the longest pieces that the vocabulary has, from the left; "##" marks what continues one.

    Text is cleaned first: control characters go, and with `lowercase` capitals and accents too. So what is decoded is
    like the text, and is not the text.

    Wu et al. 2016; the cleaning and the search are those of Devlin et al. 2019.

    Args:
        vocabulary: the tokens, in the order of their ids.
        lowercase: whether capitals and accents are taken away, as in the models called "uncased".
        unknown: the token for a word that can't be spelled, or has more than 100 characters.

    Raises:
        ValueError: a token stands there twice, or the unknown token does not.
    """

    def __init__(self, vocabulary: Sequence[str], *, lowercase: bool = True, unknown: str = "[UNK]") -> None:
        self.tokens = list(vocabulary)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            twice = next(token for token, n in Counter(self.tokens).items() if n > 1)
            raise ValueError(f"{twice!r} stands in the vocabulary twice")
        if unknown not in self._ids:
            raise ValueError(f"the vocabulary of {len(self.tokens)} tokens has no {unknown!r}")
        self.lowercase, self.unknown = lowercase, unknown
        self.special = {name: self._ids[name] for name in _BERT_MARKS if name in self._ids}  # name -> id

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without [CLS] and [SEP]: those belong to a model's input, not to the text."""
        return [self._ids[token] for word in self._words(text) for token in self._spell(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Words with spaces between them, pieces joined.

        Raises:
            ValueError: an id is outside the vocabulary; the message says which, and where.
        """
        return " ".join(self.tokens[i] for i in known_ids(ids, self.vocab_size)).replace(" ##", "")

    def _words(self, text: str) -> list[str]:
        kept = "".join(
            " " if c.isspace() else c
            for c in text
            if c.isspace() or (c not in "\0\ufffd" and unicodedata.category(c)[0] != "C")
        )
        kept = regex.sub(f"([{_HAN}])", r" \1 ", kept)  # Chinese has no spaces: each character is a word
        if self.lowercase:
            kept = "".join(c for c in unicodedata.normalize("NFD", kept) if unicodedata.category(c) != "Mn").lower()
        return regex.findall(r"[!-/:-@\[-`{-~\p{P}]|[^\s!-/:-@\[-`{-~\p{P}]+", kept)

    def _spell(self, word: str) -> list[str]:
        pieces, start = [], 0
        while start < len(word) and len(word) <= 100:
            mark = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in self._ids), None)
            if end is None:
                return [self.unknown]
            pieces.append(mark + word[start:end])
            start = end
        return pieces or [self.unknown]


_BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What Unicode calls CJK ideographs, as BERT has them
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(token: str) -> str:
    """A token as a figure shows it: spaces and line ends as marks, what has no shape of its own as its code point."""
    return "".join(_MARKS.get(c, c if c.isprintable() else f"⟨{ord(c):X}⟩") for c in token) or "∅"
