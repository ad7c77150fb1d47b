"""Byte-pair encoding over bytes: the tokens of GPT-2 and of most language models since.

Chapter: Tokens. Papers: Gage 1994 (as compression), Sennrich et al. 2016 (as tokens), Radford et al. 2019 (on bytes).
No torch is needed to read this module.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import regex

from bookformer.tokenizers import known_ids

END_OF_TEXT = "<|endoftext|>"  # GPT-2's mark between two documents
# GPT-2 cuts text into pieces before it merges: a contraction's end, a word or a number or a run of signs, each with
# the one space before it, and what is left of white space. No token crosses such a cut.
PIECES = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def printable_bytes() -> dict[int, str]:
    """GPT-2's way to write each of the 256 bytes as one character that can be seen, in the order of its ids.

    Those that have a shape stand for themselves; the others take the code points from 256 on, so a space is "Ġ".
    """
    shaped = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in shaped]
    return {b: chr(b) for b in shaped} | {b: chr(256 + n) for n, b in enumerate(others)}


_SHOWN = printable_bytes()  # byte -> character
_BYTES = {char: b for b, char in _SHOWN.items()}  # character -> byte
_ID = {b: i for i, b in enumerate(_SHOWN)}  # byte -> id
_DIGITS = regex.compile(r"(\p{N})")
_NEVER = (1 << 60, -1)  # the rank of a pair that no merge joins


def missing_bytes(vocabulary: Collection[str]) -> bytes:
    """The bytes that have no token among these, written as `printable_bytes` has them."""
    return bytes(b for b, char in printable_bytes().items() if char not in vocabulary)


class BPETokenizer:
    """Byte-pair encoding over the bytes of UTF-8: any text has ids, and gets back from them what it was.

    First come the 256 bytes, in GPT-2's order; then one id for each merge, in the order in which they were learnt; and
    after all these, or before them, the special tokens, which no text turns into: their ids are in `special`.

    Sennrich et al. 2016 (the merges), Radford et al. 2019 (on bytes).

    Args:
        merges: pairs of tokens, as bytes, such as (b" t", b"he").
        special_tokens: names for tokens that stand for no text.
        special_first: whether they have the lowest ids, as in SmolLM2, or the highest, as in GPT-2.
        digits_apart: whether each digit is a token of its own, as in SmolLM2, however often some stand side by side.
        without: bytes that have no token, as in SmolLM2, whose makers met no text with them.

    Raises:
        ValueError: a merge joins what neither is a byte nor was merged before, or stands there twice; a special token
            has no name, or one that is taken.
    """

    def __init__(
        self,
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Iterable[str] = (),
        *,
        special_first: bool = False,
        digits_apart: bool = False,
        without: bytes = b"",
    ) -> None:
        self.special_first, self.digits_apart, self.without = special_first, digits_apart, without
        self.tokens = [bytes([b]) for b in _SHOWN if b not in without]  # id -> bytes; no special tokens as yet
        ids = {token: i for i, token in enumerate(self.tokens)}
        self.merges: list[tuple[bytes, bytes]] = []
        self._merged: dict[tuple[int, int], tuple[int, int]] = {}  # pair of ids -> the merge's number, and its token
        for at, (left, right) in enumerate(merges):
            for part in (left, right):
                if part not in ids:
                    raise ValueError(f"merge {at} joins {left!r} and {right!r}, but no merge before it makes {part!r}")
            pair = ids[left], ids[right]
            if pair in self._merged:
                raise ValueError(f"merge {at} joins {left!r} and {right!r}, as merge {self._merged[pair][0]} does")
            if left + right not in ids:  # two merges can make one token: b"a" + b"bc", b"ab" + b"c"
                ids[left + right] = len(self.tokens)
                self.tokens.append(left + right)
            self._merged[pair] = at, ids[left + right]
            self.merges.append((left, right))
        self.special: dict[str, int] = {}  # name -> id
        for name in special_tokens:
            if not name or name in self.special:
                raise ValueError(f"special token {name!r} needs a name that no other has")
            self.special[name] = len(self.special) + (0 if special_first else len(self.tokens))
        names = [name.encode() for name in self.special]
        self.tokens = [*names, *self.tokens] if special_first else [*self.tokens, *names]
        self._first = len(names) if special_first else 0  # the first byte's id
        self._numbers = {b: i for i, b in enumerate(b for b in _SHOWN if b not in without)}  # counted from there
        self._pieces: dict[bytes, list[int]] = {}  # what was encoded before: words come back

    @classmethod
    def train(cls, text: str, vocab_size: int, special_tokens: Collection[str] = ()) -> "BPETokenizer":
        """Learn merges: join the most frequent pair of neighbours, and again, until there are `vocab_size` tokens.

        Among pairs that are equally frequent, the one with the lowest ids goes first.

        Args:
            text: what to learn from.
            vocab_size: V, the 256 bytes and the special tokens included.
            special_tokens: names for tokens that stand for no text.

        Raises:
            ValueError: the text is empty or too short for so many tokens, or `vocab_size` leaves no room for merges.
        """
        wanted = vocab_size - 256 - len(special_tokens)
        if not text:
            raise ValueError("the text is empty: there is nothing to learn merges from")
        if wanted < 1:
            raise ValueError(
                f"vocab_size ({vocab_size}) leaves no room for a merge beside 256 bytes and {len(special_tokens)} "
                "special tokens"
            )
        merges = _learn(Counter(_cut(text)), wanted)
        if len(merges) < wanted:
            raise ValueError(
                f"the text has {len(merges)} merges and no more: vocab_size ({vocab_size}) can be "
                f"{vocab_size - wanted + len(merges)} at most"
            )
        return cls(merges, special_tokens)

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens: bytes, merges and special tokens."""
        return len(self.tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text, or of bytes that need not be text.

        The name of a special token is text like any other here: nobody can write a token that means something else.

        Raises:
            ValueError: the text holds half of a surrogate pair, which UTF-8 can't write, or a byte that has no token;
                the message says which.
        """
        ids = []
        for piece in _cut(text, self.digits_apart):
            found = self._pieces.get(piece)
            if found is None:
                found = [self._first + i for i in self._merge(self._spell(piece))]
                if len(self._pieces) < 100_000 and len(piece) < 64:
                    self._pieces[piece] = found
            ids.extend(found)
        return ids

    def _spell(self, piece: bytes) -> list[int]:
        unknown = [b for b in piece if b not in self._numbers]
        if unknown:
            raise ValueError(f"byte {unknown[0]:#04x} of {piece!r} has no token in this vocabulary")
        return [self._numbers[b] for b in piece]

    def _merge(self, ids: list[int]) -> list[int]:
        while len(ids) > 1:
            first = min(pairwise(ids), key=lambda pair: self._merged.get(pair, _NEVER))
            rank, new = self._merged.get(first, _NEVER)
            if rank == _NEVER[0]:
                break
            ids = _join(ids, first, new)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that these ids spell: the exact inverse of `encode`.

        Raises:
            ValueError: an id is outside 0 to vocab_size - 1; the message says which, and where.
        """
        return b"".join(self.tokens[i] for i in known_ids(ids, self.vocab_size))

    def decode(self, ids: Iterable[int], errors: str = "strict") -> str:
        """The text that these ids spell.

        Args:
            ids: any of the vocabulary; special tokens are spelled by their names.
            errors: what to do with bytes that are no text, such as a character cut in half: "strict" raises,
                "replace" puts U+FFFD in their place.

        Raises:
            ValueError: an id is outside the vocabulary, or the bytes are not UTF-8 and `errors` is "strict".
        """
        content = self.decode_bytes(ids)
        try:
            return content.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            bad = content[error.start : error.end]
            raise ValueError(
                f"these ids spell bytes that are not UTF-8: {bad!r} at byte {error.start} of {len(content)} "
                f"({error.reason}); errors='replace' shows the rest"
            ) from None

    @classmethod
    def from_vocabulary(
        cls,
        vocabulary: dict[str, int],
        merges: Iterable[Sequence[str]],
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        **how: bool | bytes,
    ) -> "BPETokenizer":
        """A tokenizer in the form in which GPT-2's was published.

        Args:
            vocabulary: each token, its bytes written as `printable_bytes` has them, and its id.
            merges: pairs of such tokens, in order.
            special_tokens: those that stand for no text, in the order of their ids.
            how: `special_first`, `digits_apart` and `without`, as when a tokenizer is made.

        Raises:
            ValueError: the two do not fit each other; the message says where they part.
        """
        made = cls([tuple(_bytes(part) for part in merge) for merge in merges], special_tokens, **how)
        names = made._names()
        for i, name in enumerate(names):
            if vocabulary.get(name) != i:
                there = f"id {vocabulary[name]}" if name in vocabulary else "not there"
                raise ValueError(f"the merges do not fit the vocabulary: {name!r} should be id {i}, and is {there}")
        extra = vocabulary.keys() - set(names)
        if extra:
            raise ValueError(
                f"the merges do not fit the vocabulary: {min(extra)!r} is no byte, no merge makes it, and it is not "
                "among the special tokens"
            )
        return made

    def _names(self) -> list[str]:
        """The tokens as files write them, by id."""
        end = self._first + self.vocab_size - len(self.special)  # of the bytes and the merges
        names = [*map(_shown, self.tokens[self._first : end])]
        return [*self.special, *names] if self.special_first else [*names, *self.special]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, which the package `tokenizers` reads too."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content = {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": name, **flags, "special": True} for name, i in self.special.items()],
            "pre_tokenizer": _DIGITS_APART if self.digits_apart else _BYTE_LEVEL,
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "vocab": {name: i for i, name in enumerate(self._names())},
                "merges": [[_shown(left), _shown(right)] for left, right in self.merges],
            },
        }
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """What `save` wrote.

        Raises:
            ValueError: the file is cut short or is no such file, or its merges and its vocabulary do not fit.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            model, cut = content["model"], content["pre_tokenizer"]
            vocabulary, merges = model["vocab"], model["merges"]
            special = [token["content"] for token in content["added_tokens"]]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is cut short, or is no tokenizer: {error!r}") from None
        if model.get("type") != "BPE" or cut not in (_BYTE_LEVEL, _DIGITS_APART):
            raise ValueError(f"{path} is another kind of tokenizer: {model.get('type')!r} on pieces cut by {cut}")
        how = {
            "special_first": bool(special) and vocabulary.get(special[0]) == 0,
            "digits_apart": cut == _DIGITS_APART,
            "without": missing_bytes(vocabulary),
        }
        return cls.from_vocabulary(vocabulary, merges, special, **how)


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS_APART = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}


def _shown(token: bytes) -> str:
    return "".join(_SHOWN[b] for b in token)


def _bytes(shown: str) -> bytes:
    unknown = [char for char in shown if char not in _BYTES]
    if unknown or not shown:
        raise ValueError(f"{shown!r} is no token of bytes: {unknown[:1] or 'it is empty'} stands for none of the 256")
    return bytes(_BYTES[char] for char in shown)


def _cut(text: str | bytes, digits_apart: bool = False) -> Iterator[bytes]:
    """The pieces in which merges happen. Bytes that are no UTF-8 pass through as lone surrogates (PEP 383)."""
    if isinstance(text, str):
        half = regex.search(r"\p{Cs}", text)
        if half:
            raise ValueError(f"{half[0]!r} at index {half.start()} is half of a surrogate pair: UTF-8 can't write it")
    else:
        text = text.decode("utf-8", "surrogateescape")
    parts = _DIGITS.split(text) if digits_apart else [text]
    return (piece[0].encode("utf-8", "surrogateescape") for part in parts for piece in PIECES.finditer(part))


def _join(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Every occurrence of a pair, from the left, becomes the new token."""
    joined, at = [], 0
    while at < len(ids):
        here = at + 1 < len(ids) and (ids[at], ids[at + 1]) == pair
        joined.append(new if here else ids[at])
        at += 2 if here else 1
    return joined


def _replace(word: list[int], pair: tuple[int, int], new: int) -> tuple[list, list]:
    """The same in place; returns the pairs of neighbours that are gone, and those that have come."""
    gone, come, at = [], [], -1
    while pair[0] in (rest := word[at + 1 :]):
        at += 1 + rest.index(pair[0])
        if word[at + 1 : at + 2] == [pair[1]]:
            before, after = word[max(at - 1, 0) : at], word[at + 2 : at + 3]  # at most one id each
            gone += [pair, *((b, pair[0]) for b in before), *((pair[1], a) for a in after)]
            come += [*((b, new) for b in before), *((new, a) for a in after)]
            word[at : at + 2] = [new]
    return gone, come


def _learn(pieces: Counter[bytes], wanted: int) -> list[tuple[bytes, bytes]]:
    """The merges, each the most frequent pair at its time. Only what stands beside a join is counted again."""
    tokens = [bytes([b]) for b in _SHOWN]  # id -> bytes
    ids = {token: i for i, token in enumerate(tokens)}
    words = [[_ID[b] for b in piece] for piece in pieces]
    times = list(pieces.values())
    counts: Counter[tuple[int, int]] = Counter()
    places = defaultdict(set)  # pair -> the words that have held it
    for w, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += times[w]
            places[pair].add(w)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges: list[tuple[bytes, bytes]] = []
    while queue and len(tokens) < 256 + wanted:
        count, pair = heapq.heappop(queue)
        if counts[pair] != -count or not count:
            continue  # an old count: the pair was queued again when it changed
        token = tokens[pair[0]] + tokens[pair[1]]
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        changed = set()
        for w in places.pop(pair):
            gone, come = _replace(words[w], pair, ids[token])
            for near in gone:
                counts[near] -= times[w]
            for near in come:
                counts[near] += times[w]
                places[near].add(w)
            changed.update(gone, come)
        for near in changed:
            heapq.heappush(queue, (-counts[near], near))
    return merges
