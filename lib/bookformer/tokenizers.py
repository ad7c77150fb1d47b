"""Text to token ids and back.

Chapter: Tokens. Plain Python: no torch is needed to read this module.
"""

from collections.abc import Iterable


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
        ids = list(ids)
        for at, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} at index {at} is outside 0 to {self.vocab_size - 1}")
        return "".join(self.tokens[i] for i in ids)


_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(token: str) -> str:
    """A token as a figure shows it: spaces and line ends as marks, what has no shape of its own as its code point."""
    return "".join(_MARKS.get(c, c if c.isprintable() else f"⟨{ord(c):X}⟩") for c in token) or "∅"
