"""Language models that count: n-grams with three kinds of smoothing, and a hidden Markov model.

Chapter: Counting words: n-gram language models. Papers: Kneser and Ney 1995 (continuation counts), Chen and
Goodman 1999 (their interpolated form, and its three discounts), Baum et al. 1970 and Rabiner 1989 (the hidden
Markov model). NumPy alone: no torch is needed to read this module.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

SMOOTHINGS = ("kneser-ney", "add-k", "none")


@dataclass(frozen=True)
class Level:
    """What one order knows after a context, and what it contributes to each next token.

    The shares of all levels add up to the probabilities. The lowest level, order 0, is the uniform distribution.
    """

    order: int  # m; it looks at m - 1 tokens of context
    context: tuple[Hashable, ...]  # those tokens; empty for orders 1 and 0
    counts: np.ndarray  # (V,) how often each token followed; in Kneser-Ney below the top, after how many tokens
    discounts: np.ndarray  # (3,) what is taken off a count of 1, of 2, and of 3 or more
    passed_on: float  # the part of its probability that this level leaves to those below
    shares: np.ndarray  # (V,)


class NGramModel:
    """Predicts each token from the n - 1 tokens before it, by counting.

    The first tokens of a text have fewer than n - 1 before them: they are predicted from those they have, by the
    model's lower orders.

    Args:
        order: n, the length of the longest window that is counted.
        smoothing: "kneser-ney", interpolated; "add-k"; or "none", the maximum likelihood.
        k: what add-k adds to each count.
        discounts: how many discounts each order of Kneser-Ney has: 3 (for counts of 1, 2, and more; Chen and Goodman
            call it modified), or 1. They are estimated from how many counts are 1, 2, 3 and 4; an order where that
            fails has one discount, and 1/2 where that fails too.

    Raises:
        ValueError: an order below 1, an unknown smoothing, another number of discounts, a `k` that is missing, not
            positive, or of no use.
    """

    def __init__(
        self, order: int, smoothing: str = "kneser-ney", *, k: float | None = None, discounts: int = 3
    ) -> None:
        if not isinstance(order, Integral) or isinstance(order, bool) or order < 1:
            raise ValueError(f"order must be a whole number of at least 1, got {order!r}")
        if smoothing not in SMOOTHINGS:
            raise ValueError(f"there is no smoothing {smoothing!r}; there is {', '.join(SMOOTHINGS)}")
        if not (k is None if smoothing != "add-k" else k is not None and 0 < k < float("inf")):
            raise ValueError(f"add-k, and it alone, takes a positive, finite k; {smoothing} got {k!r}")
        if discounts not in (1, 3):
            raise ValueError(f"an order has 1 or 3 discounts, not {discounts!r}")
        self.order, self.smoothing, self.k, self.discounts = int(order), smoothing, k, discounts
        self.vocabulary: list[Hashable] = []  # id -> token, sorted
        self._levels: list[tuple] = []

    @property
    def vocab_size(self) -> int:
        """V, the number of distinct tokens."""
        return len(self.vocabulary)

    def fit(self, tokens: Sequence[Hashable], vocabulary: Iterable[Hashable] | None = None) -> "NGramModel":
        """Count, and return this model.

        Args:
            tokens: a text (its characters are the tokens), or a list of words, or of anything that sorts and hashes.
            vocabulary: the tokens to know, those of the text among them; the text's own when None.

        Raises:
            ValueError: fewer tokens than the order; a token outside the vocabulary (which, where).
        """
        if len(tokens) < self.order:
            raise ValueError(f"a text of {len(tokens)} tokens is too short for order {self.order}")
        known = sorted(set(tokens if vocabulary is None else vocabulary))
        ids_of = {token: i for i, token in enumerate(known)}
        ids = _encode(tokens, ids_of)  # (N,)
        self.vocabulary, self._ids_of = known, ids_of
        # The m-grams are a tree, level by level. A node's code is its parent, the (m-1)-gram that it continues, times
        # V, plus its last token: in sorted codes, all that follows one context stands side by side.
        self._codes, self._raw, self._ways = [], [], []
        node = np.zeros(len(ids) + 1, dtype=np.int64)  # of the (m-1)-gram that starts at each place: at first the root
        for m in range(1, self.order + 1):
            codes = node[: len(ids) - m + 1] * len(known) + ids[m - 1 :]
            shorter = node
            codes, first, node, raw = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
            if m > 1:  # after how many tokens each (m-1)-gram occurs; the start of the text counts as one
                ways = np.bincount(shorter[first + 1], minlength=len(self._codes[-1]))
                ways[shorter[0]] += 1
                self._ways.append(ways)
            self._codes.append(codes)
            self._raw.append(raw)
        self._prepare()
        return self

    def variant(self, **settings: object) -> "NGramModel":
        """Another model over the same counts, as if fitted on the same text; settings not named stay as they are.

        Raises ValueError for an order higher than this model's, and as the constructor does.
        """
        self._check_fitted()
        own = {"order": self.order, "smoothing": self.smoothing, "k": self.k, "discounts": self.discounts}
        if settings.get("smoothing", self.smoothing) != self.smoothing:
            own["k"] = None
        other = NGramModel(**own | settings)
        if other.order > self.order:
            raise ValueError(f"order {other.order} is higher than {self.order}, up to which was counted")
        other.vocabulary, other._ids_of = self.vocabulary, self._ids_of
        other._codes, other._raw, other._ways = self._codes, self._raw, self._ways
        other._prepare()
        return other

    def _prepare(self) -> None:
        """For each order: its counts and discounts, and for each context the sum of both."""
        kneser_ney = self.smoothing == "kneser-ney"
        self._levels = []
        for m in range(1, self.order + 1):
            counts = self._ways[m - 1] if kneser_ney and m < self.order else self._raw[m - 1]
            taken = np.append(0.0, estimate_discounts(counts, self.discounts) if kneser_ney else np.zeros(3))
            context = self._codes[m - 1] // self.vocab_size
            totals = np.bincount(context, weights=counts, minlength=1 if m == 1 else len(self._codes[m - 2]))
            freed = np.bincount(context, weights=taken[np.minimum(counts, 3)], minlength=len(totals))
            self._levels.append((counts, taken, totals, freed))

    def _check_fitted(self) -> None:
        if not self._levels:
            raise ValueError("this model has counted nothing yet: call fit first")

    def _child(self, m: int, parents: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The m-gram that continues each (m-1)-gram by a token, or -1 where there is none."""
        codes = parents * self.vocab_size + ids
        at = np.searchsorted(self._codes[m - 1], codes).clip(max=len(self._codes[m - 1]) - 1)
        return np.where((parents >= 0) & (self._codes[m - 1][at] == codes), at, -1)

    def _divide(self, m: int, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What order m divides by after each context (-1: never seen), and the part that it passes on."""
        _, _, totals, freed = self._levels[m - 1]
        total = np.where(contexts >= 0, totals[contexts], 0.0)
        if self.smoothing == "add-k":
            added = self.k * self.vocab_size
            return total + added, added / (total + added)
        divisor = np.where(total > 0, total, 1.0)
        unseen = 1.0 if self.smoothing == "kneser-ney" else 0.0
        return divisor, np.where(total > 0, freed[contexts] / divisor, unseen)

    def token_log_probabilities(self, tokens: Sequence[Hashable]) -> np.ndarray:
        """The natural logarithm of the probability of each token, given those before it: (N,).

        Without smoothing, what was never seen has probability zero, and so has all that comes after a context which
        nothing ever followed.

        Raises ValueError for no tokens, or a token outside the vocabulary (which, where).
        """
        self._check_fitted()
        if len(tokens) == 0:
            raise ValueError("there are no tokens to score")
        ids = _encode(tokens, self._ids_of)
        p = np.full(len(ids), 1 / self.vocab_size)
        ending = np.zeros(len(ids), dtype=np.int64)  # the (m-1)-gram that ends before each place
        for m in range(1, self.order + 1):
            places = np.arange(m - 1, len(ids))  # those with m - 1 tokens before them
            contexts = ending[places]
            nodes = self._child(m, contexts, ids[places])
            ending = np.full(len(ids), -1)
            ending[m:] = nodes[:-1]
            if m < self.order and self.smoothing != "kneser-ney":  # a lower order speaks only where no other can
                places, contexts, nodes = places[:1], contexts[:1], nodes[:1]
            counts, taken, _, _ = self._levels[m - 1]
            count = np.where(nodes >= 0, counts[nodes], 0)
            divisor, passed_on = self._divide(m, contexts)
            p[places] = (count - taken[np.minimum(count, 3)]) / divisor + passed_on * p[places]
        with np.errstate(divide="ignore"):
            return np.log(p)

    def log_probability(self, tokens: Sequence[Hashable]) -> float:
        """The natural logarithm of the probability of a whole text: the sum over its tokens."""
        return float(self.token_log_probabilities(tokens).sum())

    def cross_entropy(self, tokens: Sequence[Hashable]) -> float:
        """The mean surprise of a text, in nats a token."""
        return -self.log_probability(tokens) / len(tokens)

    def levels(self, context: Sequence[Hashable] = ()) -> list[Level]:
        """What each order that takes part contributes after a context, from the longest down to the uniform.

        Raises ValueError for a token outside the vocabulary (which, where).
        """
        self._check_fitted()
        ids = _encode(context, self._ids_of)[max(0, len(context) - self.order + 1) :]
        tokens = tuple(self.vocabulary[i] for i in ids)
        top = len(ids) + 1
        rows, left = [], 1.0
        for m in range(top, 0, -1) if self.smoothing == "kneser-ney" else [top]:
            node = np.zeros(1, dtype=np.int64)
            for depth in range(1, m):
                node = self._child(depth, node, ids[top - 1 - m + depth])
            all_counts, taken, _, _ = self._levels[m - 1]
            counts = np.zeros(self.vocab_size, dtype=np.int64)
            if node[0] >= 0:
                start, end = np.searchsorted(self._codes[m - 1], [node[0] * len(counts), (node[0] + 1) * len(counts)])
                counts[self._codes[m - 1][start:end] % len(counts)] = all_counts[start:end]
            divisor, passed_on = (float(x[0]) for x in self._divide(m, node))
            shares = left * (counts - taken[np.minimum(counts, 3)]) / divisor
            rows.append(Level(m, tokens[top - m :], counts, taken[1:], passed_on, shares))
            left *= passed_on
        none = np.zeros(self.vocab_size, dtype=np.int64)
        return [*rows, Level(0, (), none, np.zeros(3), 0.0, np.full(self.vocab_size, left / self.vocab_size))]

    def probabilities(self, context: Sequence[Hashable] = ()) -> np.ndarray:
        """The distribution of the next token (V,), in the order of `vocabulary`.

        Raises ValueError for a token outside the vocabulary; without smoothing, for a context nothing ever followed.
        """
        levels = self.levels(context)
        if self.smoothing == "none" and not levels[0].counts.any():
            raise ValueError(f"nothing ever followed {levels[0].context!r}: without smoothing there is no distribution")
        return sum(level.shares for level in levels)

    def sample(self, length: int, generator: np.random.Generator, context: Sequence[Hashable] = ()) -> list[Hashable]:
        """Draw tokens, each from its distribution after the context and those drawn before it.

        Raises ValueError for a length below 1, and as `probabilities` does.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        tokens = list(context)
        for _ in range(length):
            p = self.probabilities(tokens[max(0, len(tokens) - self.order + 1) :])
            tokens.append(self.vocabulary[generator.choice(self.vocab_size, p=p)])
        return tokens[len(context) :]

    def grams(self) -> tuple[np.ndarray, np.ndarray]:
        """Every n-gram of the text as ids (G, n), sorted, and how often each occurs (G,)."""
        self._check_fitted()
        columns, node = [], np.arange(len(self._codes[self.order - 1]))
        for codes in self._codes[self.order - 1 :: -1]:
            node, last = np.divmod(codes[node], self.vocab_size)
            columns.insert(0, last)
        return np.stack(columns, axis=1), self._raw[self.order - 1]


def estimate_discounts(counts: np.ndarray, how_many: int) -> np.ndarray:
    """What Kneser-Ney takes off a count of 1, of 2, and of 3 or more: (3,); all alike if there is but one discount.

    With n_i the number of counts that are i, and Y = n_1 / (n_1 + 2 n_2): one discount is Y, and three are
    i - (i + 1) Y n_(i+1) / n_i for i = 1, 2, 3 (Chen and Goodman 1999).
    """
    n = [int((counts == i).sum()) for i in range(5)]
    if not (n[1] and n[2]):
        return np.full(3, 0.5)
    y = n[1] / (n[1] + 2 * n[2])
    if how_many == 3 and n[3] and n[4]:
        three = np.array([i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)])
        if (three > 0).all():
            return three
    return np.full(3, y)


def _encode(tokens: Sequence[Hashable], ids_of: dict[Hashable, int]) -> np.ndarray:
    if isinstance(tokens, str) and ids_of and all(isinstance(t, str) and len(t) == 1 for t in ids_of):
        known = np.array([ord(token) for token in ids_of])  # sorted, as the vocabulary is
        points = np.frombuffer(tokens.encode("utf-32-le"), "<u4")  # a character a number: millions in no time
        ids = np.searchsorted(known, points).clip(max=len(known) - 1)
        if (known[ids] == points).all():
            return ids
    try:
        return np.array([ids_of[token] for token in tokens], dtype=np.int64)
    except KeyError:
        at, token = next((i, token) for i, token in enumerate(tokens) if token not in ids_of)
        raise ValueError(f"token {token!r} at index {at} is not among the {len(ids_of)} known tokens") from None


class HiddenMarkovModel:
    """A chain of hidden states, each of which emits a symbol: the symbols are seen, the states are not.

    Letters: N sequences, T symbols in each, S states, V symbols. Every method takes symbols (T,) or (N, T), and what
    it returns has the same leading axes. All numbers are float64.

    Args:
        n_states: S.
        n_symbols: V; symbols are the ids 0 to V - 1.
        generator: where the random start comes from: each row of the tables below is drawn uniformly.

    Raises ValueError for no states or no symbols.
    """

    def __init__(self, n_states: int, n_symbols: int, generator: np.random.Generator) -> None:
        if n_states < 1 or n_symbols < 1:
            raise ValueError(f"n_states ({n_states}) and n_symbols ({n_symbols}) must be at least 1")
        self.initial = generator.dirichlet(np.ones(n_states))  # (S,), of the first state
        self.transition = generator.dirichlet(np.ones(n_states), n_states)  # (S, S), a row for each state left
        self.emission = generator.dirichlet(np.ones(n_symbols), n_states)  # (S, V)

    def _check(self, symbols: object) -> np.ndarray:
        symbols, n_symbols = np.asarray(symbols), self.emission.shape[1]
        if symbols.ndim not in (1, 2) or 0 in symbols.shape or symbols.dtype.kind not in "iu":
            wanted = "symbols must be whole numbers of shape (T,) or (N, T), none of them 0"
            raise ValueError(f"{wanted}; got {symbols.dtype} of shape {symbols.shape}")
        wrong = np.argwhere((symbols < 0) | (symbols >= n_symbols))
        for at in map(tuple, wrong.tolist()):
            raise ValueError(f"symbol {symbols[at]} at index {at} is outside 0 to {n_symbols - 1}")
        return symbols

    def forward(self, symbols: object) -> tuple[np.ndarray, np.ndarray]:
        """The distribution of each state given the symbols so far (..., T, S), and log p of each symbol (..., T).

        The second, summed, is the log-likelihood. From a symbol that can't come on, they are 0 and -inf.
        Raises ValueError for an empty sequence, or a symbol outside the model's (which, where).
        """
        symbols = self._check(symbols)
        alpha, scale = np.empty((*symbols.shape, len(self.initial))), np.empty(symbols.shape)
        expected = np.broadcast_to(self.initial, alpha[..., 0, :].shape)  # of the next state, before its symbol
        for t in range(symbols.shape[-1]):
            joint = expected * self.emission.T[symbols[..., t]]  # (..., S)
            scale[..., t] = joint.sum(axis=-1)
            alpha[..., t, :] = joint / np.where(scale[..., t] > 0, scale[..., t], 1)[..., None]
            expected = alpha[..., t, :] @ self.transition
        with np.errstate(divide="ignore"):
            return alpha, np.log(scale)

    def backward(self, symbols: object) -> np.ndarray:
        """How likely the symbols after each place are, from each state there, in units of what `forward` expects.

        Shape (..., T, S): p(later symbols | state) / p(later symbols | symbols so far). Times the first result of
        `forward`, it is the posterior of the states.
        Raises ValueError as `forward` does, and for symbols that the model gives probability zero.
        """
        symbols = self._check(symbols)
        _, log_p = self.forward(symbols)
        if np.isneginf(log_p).any():
            raise ValueError("these symbols have probability zero, so nothing can be said of their states")
        beta = np.ones((*symbols.shape, len(self.initial)))
        for t in range(symbols.shape[-1] - 2, -1, -1):
            later = self.emission.T[symbols[..., t + 1]] * beta[..., t + 1, :]  # (..., S)
            beta[..., t, :] = later @ self.transition.T / np.exp(log_p[..., t + 1])[..., None]
        return beta

    def log_likelihood(self, symbols: object) -> np.ndarray:
        """The natural logarithm of the probability of each sequence (...,); -inf where it is impossible."""
        return self.forward(symbols)[1].sum(axis=-1)

    def posterior(self, symbols: object) -> np.ndarray:
        """The distribution of each state given all the symbols (..., T, S). Raises as `backward` does."""
        return self.forward(symbols)[0] * self.backward(symbols)

    def viterbi(self, symbols: object) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest path of states (..., T), and log p of it with the symbols (...,). Raises as `forward` does."""
        symbols = self._check(symbols)
        with np.errstate(divide="ignore"):
            initial, transition, emission = np.log(self.initial), np.log(self.transition), np.log(self.emission.T)
        best = initial + emission[symbols[..., 0]]  # (..., S), of the likeliest path that ends in each state
        came_from = np.zeros((*symbols.shape, len(initial)), dtype=np.int64)
        for t in range(1, symbols.shape[-1]):
            steps = best[..., :, None] + transition  # (..., S, S): from, to
            came_from[..., t, :] = steps.argmax(axis=-2)
            best = steps.max(axis=-2) + emission[symbols[..., t]]
        path = np.empty(symbols.shape, dtype=np.int64)
        path[..., -1] = best.argmax(axis=-1)
        for t in range(symbols.shape[-1] - 1, 0, -1):
            path[..., t - 1] = np.take_along_axis(came_from[..., t, :], path[..., t, None], axis=-1)[..., 0]
        return path, best.max(axis=-1)

    def fit(self, symbols: object, iterations: int) -> list[float]:
        """Baum-Welch: each iteration is one step of expectation, and one of maximisation.

        Returns the log-likelihood of all sequences together at the start and after each iteration: iterations + 1
        numbers, which never fall. Raises ValueError for no iterations, and as `backward` does.
        """
        symbols = np.atleast_2d(self._check(symbols))  # (N, T)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        history = []
        for _ in range(iterations):
            alpha, log_p = self.forward(symbols)
            beta = self.backward(symbols)
            history.append(float(log_p.sum()))
            states = alpha * beta  # (N, T, S), the posterior
            arrived = beta * self.emission.T[symbols] / np.exp(log_p)[..., None]  # (N, T, S)
            moves = np.einsum("nti,ntj->ij", alpha[:, :-1], arrived[:, 1:]) * self.transition  # (S, S), expected
            emitted = np.zeros_like(self.emission.T)  # (V, S), expected
            np.add.at(emitted, symbols, states)
            self.initial = _normalised(states[:, 0].sum(axis=0), self.initial)
            self.transition = _normalised(moves, self.transition)
            self.emission = _normalised(emitted.T, self.emission)
        return [*history, float(self.log_likelihood(symbols).sum())]


def _normalised(expected: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; a row of which nothing is expected, such as a state that is never left, stays as it was."""
    total = expected.sum(axis=-1, keepdims=True)
    return np.where(total > 0, expected / np.where(total > 0, total, 1), old)
