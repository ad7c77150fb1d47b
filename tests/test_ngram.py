"""N-grams and hidden Markov models: against sums written straight from the formulas, by their laws, and by hand."""

import itertools
import math
from collections import Counter
from functools import cache

import numpy as np
import pytest

from bookformer.ngram import HiddenMarkovModel, NGramModel, estimate_discounts

ALPHABET = "abcd"


def corpus(seed, length=60):
    """A text with habits: a random chain over four letters, so that counts of 1, 2, 3 and 4 occur."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(4, 0.5), 4)
    state, letters = 0, []
    for _ in range(length):
        state = rng.choice(4, p=chain[state])
        letters.append(ALPHABET[state])
    return "".join(letters)


class Plain:
    """Interpolated Kneser-Ney from the raw list of tokens, with dictionaries and loops: slow, and nothing hidden."""

    def __init__(self, tokens, order, vocabulary, how_many):
        self.tokens, self.order, self.vocabulary = list(tokens), order, vocabulary
        self.tables = {m: self.table(m) for m in range(1, order + 1)}
        self.taken = {m: self.discounts(self.tables[m].values(), how_many) for m in self.tables}

    def table(self, m):
        grams = [(i, tuple(self.tokens[i : i + m])) for i in range(len(self.tokens) - m + 1)]
        if m == self.order:
            return Counter(gram for _, gram in grams)
        before = {(self.tokens[i - 1] if i else "the start", gram) for i, gram in grams}
        return Counter(gram for _, gram in before)

    @staticmethod
    def discounts(counts, how_many):
        n1, n2, n3, n4 = (sum(count == i for count in counts) for i in (1, 2, 3, 4))
        if n1 == 0 or n2 == 0:
            return {1: 0.5, 2: 0.5, 3: 0.5}
        y = n1 / (n1 + 2 * n2)
        if how_many == 3 and n3 > 0 and n4 > 0:
            three = {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
            if min(three.values()) > 0:
                return three
        return {1: y, 2: y, 3: y}

    @cache  # noqa: B019
    def p(self, token, context):
        if len(context) >= self.order:
            return self.p(token, context[len(context) - self.order + 1 :])
        m = len(context) + 1
        table, taken = self.tables[m], self.taken[m]
        lower = 1 / len(self.vocabulary) if m == 1 else self.p(token, context[1:])
        after = {gram: count for gram, count in table.items() if gram[:-1] == context}
        total = sum(after.values())
        if total == 0:
            return lower
        count = after.get((*context, token), 0)
        own = count - taken[min(count, 3)] if count else 0
        passed_on = sum(taken[min(count, 3)] for count in after.values())
        return own / total + passed_on / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("how_many", [1, 3])
def test_kneser_ney_equals_the_formula(order, how_many):
    for seed in range(8):
        text, held = corpus(seed, 30 + 40 * seed), corpus(100 + seed, 40)
        vocabulary = ALPHABET + "e" * (seed % 2)  # sometimes a token that never occurs
        model = NGramModel(order, discounts=how_many).fit(text, vocabulary)
        plain = Plain(text, order, vocabulary, how_many)
        wanted = [math.log(plain.p(token, tuple(held[:i]))) for i, token in enumerate(held)]
        assert model.token_log_probabilities(held) == pytest.approx(wanted, abs=1e-9)
        for context in ("", "a", "dab", "abcda", "dddddd"):
            wanted = [plain.p(token, tuple(context)) for token in vocabulary]
            assert model.probabilities(context) == pytest.approx(wanted, abs=1e-9)


def test_the_three_discounts_are_used():
    """The random texts above must reach every branch, or the comparison would not see them."""
    kinds = set()
    for seed, order in itertools.product(range(8), range(1, 6)):
        taken = Plain(corpus(seed, 30 + 40 * seed), order, ALPHABET, 3).taken
        kinds |= {"one" if d[1] == d[3] != 0.5 else "half" if d[1] == 0.5 else "three" for d in taken.values()}
    assert kinds == {"one", "half", "three"}


def test_discounts_by_hand():
    counts = np.array([1] * 6 + [2] * 3 + [3] * 2 + [4] + [9])
    assert estimate_discounts(counts, 1) == pytest.approx([0.5, 0.5, 0.5])  # 6 / (6 + 2 * 3)
    assert estimate_discounts(counts, 3) == pytest.approx([1 - 3 / 6, 2 - 1.5 * 2 / 3, 3 - 2 * 1 / 2])
    assert estimate_discounts(np.array([1, 1, 1, 2, 5]), 3) == pytest.approx([0.6] * 3)  # no count is 3
    assert estimate_discounts(np.array([1] * 5 + [2] + [3] * 9 + [4]), 3) == pytest.approx([5 / 7] * 3)  # D2 below 0
    assert estimate_discounts(np.array([5, 6]), 3) == pytest.approx([0.5] * 3)
    assert estimate_discounts(np.array([1, 1]), 1) == pytest.approx([0.5] * 3)


def test_a_bigram_by_hand():
    """Of "abab": ab twice, ba once, so D = 1 / (1 + 2). One token stands before each letter, or the start: a has b and
    the start, b has a, so their ways are 2 and 1, and D = 1 / 3 again."""
    model = NGramModel(2).fit("abab")
    a, b = (2 - 1 / 3) / 3 + 2 / 3 / 3 / 2, (1 - 1 / 3) / 3 + 2 / 3 / 3 / 2
    assert model.probabilities() == pytest.approx([a, b])
    assert model.probabilities("a") == pytest.approx([1 / 3 / 2 * a, (2 - 1 / 3) / 2 + 1 / 3 / 2 * b])
    assert model.probabilities("b") == pytest.approx([(1 - 1 / 3) / 1 + 1 / 3 * a, 1 / 3 * b])
    assert model.log_probability("ba") == pytest.approx(math.log(b) + math.log((1 - 1 / 3) + 1 / 3 * a))


@pytest.mark.parametrize("k", [0.1, 1.0])
def test_add_k_by_hand(k):
    model = NGramModel(3, "add-k", k=k).fit("abcabd")
    assert model.probabilities("ab") == pytest.approx(np.array([k, k, 1 + k, 1 + k]) / (2 + 4 * k))
    assert model.probabilities("dd") == pytest.approx([0.25] * 4)
    p = [(2 + k) / (6 + 4 * k), (2 + k) / (2 + 4 * k), (1 + k) / (2 + 4 * k), k / (1 + 4 * k), 1 / 4]
    assert model.token_log_probabilities("abccc") == pytest.approx(np.log(p))


def test_maximum_likelihood_by_hand():
    model = NGramModel(2, "none").fit("abac")
    assert model.probabilities("a") == pytest.approx([0, 0.5, 0.5])
    assert model.log_probability("ab") == pytest.approx(math.log(0.5) + math.log(0.5))
    assert model.log_probability("bb") == -math.inf
    assert model.token_log_probabilities("ca").tolist() == [math.log(0.25), -math.inf]  # nothing ever followed c
    assert model.levels("c")[-1].shares.sum() == 0
    with pytest.raises(ValueError, match=r"nothing ever followed \('c',\)"):
        model.probabilities("c")


SETTINGS = [
    {"smoothing": "kneser-ney"},
    {"smoothing": "kneser-ney", "discounts": 1},
    {"smoothing": "add-k", "k": 0.3},
    {"smoothing": "none"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_and_make_up_a_text(settings, order):
    text = corpus(3, 400)
    model = NGramModel(order, **settings).fit(text, ALPHABET + "z")
    contexts = ["", "a", "ab", "abc", "abcdabcd", *([] if settings["smoothing"] == "none" else ["zzz", "azb", "z"])]
    for context in contexts:
        p = model.probabilities(context)
        assert abs(p.sum() - 1) < 1e-12
        assert (p >= 0).all()
        assert (p > 0).all() or settings["smoothing"] == "none"
    part = text[50:120]
    one_by_one = [math.log(model.probabilities(part[:i])["abcdz".index(token)]) for i, token in enumerate(part)]
    assert model.token_log_probabilities(part) == pytest.approx(one_by_one, abs=1e-12)
    assert model.log_probability(part) == pytest.approx(sum(one_by_one), abs=1e-9)
    assert model.cross_entropy(part) == pytest.approx(-sum(one_by_one) / len(part), abs=1e-9)


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_the_shares_of_all_levels_make_up_the_probabilities(settings):
    model = NGramModel(3, **settings).fit(corpus(5, 200), ALPHABET + "z")
    for context in ("", "a", "ab", "za", "abcab"):
        levels = model.levels(context)
        assert sum(level.shares for level in levels) == pytest.approx(model.probabilities(context), abs=1e-15)
        assert [level.order for level in levels][-1] == 0
        left = 1.0
        for level in levels[:-1]:
            assert level.shares.sum() == pytest.approx(left * (1 - level.passed_on), abs=1e-12)
            assert len(level.context) == level.order - 1
            assert level.context == tuple(context)[len(context) - level.order + 1 :]
            left *= level.passed_on
        assert levels[-1].shares == pytest.approx(np.full(5, left / 5))


def test_the_levels_of_kneser_ney_count_occurrences_on_top_and_ways_below():
    levels = NGramModel(3).fit("abcabcaba").levels("ab")
    assert [level.context for level in levels] == [("a", "b"), ("b",), (), ()]
    assert levels[0].counts.tolist() == [1, 0, 2]  # aba once, abc twice
    assert levels[1].counts.tolist() == [1, 0, 1]  # ba and bc come after a alone
    assert levels[2].counts.tolist() == [3, 1, 1]  # a after the start, c and b; b after a; c after b


def test_a_context_never_seen_leaves_everything_to_the_shorter_one():
    model = NGramModel(3).fit("abcabcaba")
    assert model.probabilities("cc") == pytest.approx(model.probabilities("c"))
    assert model.levels("cc")[0].passed_on == 1


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_variant_is_the_model_fitted_anew(settings):
    text, held = corpus(1, 300), corpus(2, 80)
    whole = NGramModel(5).fit(text)
    for order in (1, 3, 5):
        variant = whole.variant(order=order, **settings)
        fresh = NGramModel(order, **settings).fit(text)
        assert variant.token_log_probabilities(held).tolist() == fresh.token_log_probabilities(held).tolist()
    assert whole.variant(smoothing="add-k", k=2).variant(order=2).k == 2
    with pytest.raises(ValueError, match="order 6 is higher than 5, up to which was counted"):
        whole.variant(order=6)


def test_words_numbers_and_characters_are_all_tokens():
    words = "to be or not to be".split()
    number = {word: i for i, word in enumerate(sorted(set(words)))}
    by_word, by_number = NGramModel(2).fit(words), NGramModel(2).fit(np.array([number[word] for word in words]))
    assert by_word.vocabulary == ["be", "not", "or", "to"]
    assert by_number.vocabulary == [0, 1, 2, 3]
    assert by_word.probabilities(["to"]).tolist() == by_number.probabilities([3]).tolist()
    letters = list("语言模型语言")
    assert NGramModel(2).fit("语言模型语言").log_probability("模型") == NGramModel(2).fit(letters).log_probability(
        "模型"
    )


def test_grams_are_the_windows_of_the_text():
    text = corpus(4, 100)
    grams, counts = NGramModel(3).fit(text).grams()
    found = {"".join(ALPHABET[i] for i in gram): count for gram, count in zip(grams, counts.tolist(), strict=True)}
    assert found == Counter(text[i : i + 3] for i in range(98))
    assert [tuple(gram) for gram in grams] == sorted(map(tuple, grams))
    grams, counts = NGramModel(4).fit(text).variant(order=2).grams()
    assert grams.shape[1] == 2
    assert counts.sum() == 99


def test_samples_follow_the_probabilities():
    model = NGramModel(2).fit("aaaabab")
    drawn = model.sample(4000, np.random.default_rng(0))
    after_a = [b for a, b in itertools.pairwise(drawn) if a == "a"]
    p = model.probabilities("a")[1]
    assert abs(after_a.count("b") / len(after_a) - p) < 5 * math.sqrt(p * (1 - p) / len(after_a))
    assert drawn == model.sample(4000, np.random.default_rng(0))


def test_a_sample_goes_on_from_its_context():
    model = NGramModel(4, "none").fit("abcdefg")
    assert model.sample(4, np.random.default_rng(0), "abc") == list("defg")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: NGramModel(0), "order must be a whole number of at least 1, got 0"),
        (lambda: NGramModel(2.5), r"at least 1, got 2\.5"),
        (lambda: NGramModel(True), "at least 1, got True"),
        (lambda: NGramModel(2, "backoff"), "there is no smoothing 'backoff'; there is kneser-ney, add-k, none"),
        (lambda: NGramModel(2, discounts=2), "1 or 3 discounts, not 2"),
        (lambda: NGramModel(2, "add-k"), "takes a positive, finite k; add-k got None"),
        (lambda: NGramModel(2, "add-k", k=0), "finite k; add-k got 0"),
        (lambda: NGramModel(2, "add-k", k=-1.5), r"finite k; add-k got -1\.5"),
        (lambda: NGramModel(2, "add-k", k=math.inf), "finite k; add-k got inf"),
        (lambda: NGramModel(2, k=1), "add-k, and it alone, .* kneser-ney got 1"),
        (lambda: NGramModel(4).fit("abc"), "a text of 3 tokens is too short for order 4"),
        (lambda: NGramModel(2).fit("abc", "ab"), "token 'c' at index 2 is not among the 2 known tokens"),
        (lambda: NGramModel(2).fit("abc", ""), "token 'a' at index 0 is not among the 0 known tokens"),
        (lambda: NGramModel(2).log_probability("a"), "counted nothing yet: call fit first"),
        (lambda: NGramModel(2).probabilities("a"), "call fit first"),
        (lambda: NGramModel(2).variant(order=1), "call fit first"),
        (lambda: NGramModel(2).grams(), "call fit first"),
        (lambda: NGramModel(2).fit("abc").log_probability(""), "there are no tokens to score"),
        (lambda: NGramModel(2).fit("abc").cross_entropy([]), "there are no tokens to score"),
        (lambda: NGramModel(2).fit("abc").log_probability("abxa"), "token 'x' at index 2 is not among the 3 known"),
        (lambda: NGramModel(2).fit(["to", "be"]).probabilities(["do"]), "token 'do' at index 0"),
        (lambda: NGramModel(2).fit("abc").sample(0, np.random.default_rng(0)), "length must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def random_hmm(seed, n_states=3, n_symbols=4):
    return HiddenMarkovModel(n_states, n_symbols, np.random.default_rng(seed))


def joint(model, path, symbols):
    p = model.initial[path[0]] * model.emission[path[0], symbols[0]]
    for t in range(1, len(symbols)):
        p *= model.transition[path[t - 1], path[t]] * model.emission[path[t], symbols[t]]
    return p


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [1, 2, 6])
def test_hidden_states_equal_the_sum_over_all_paths(seed, length):
    model, rng = random_hmm(seed, n_states=1 + seed % 3), np.random.default_rng(seed)
    symbols, states = rng.integers(4, size=length), len(model.initial)
    paths = list(itertools.product(range(states), repeat=length))
    p = np.array([joint(model, path, symbols) for path in paths])
    assert model.log_likelihood(symbols) == pytest.approx(math.log(p.sum()), abs=1e-9)
    posterior = np.array([[p[[path[t] == s for path in paths]].sum() for s in range(states)] for t in range(length)])
    assert model.posterior(symbols) == pytest.approx(posterior / p.sum(), abs=1e-9)
    path, log_p = model.viterbi(symbols)
    assert tuple(path) == paths[p.argmax()]
    assert log_p == pytest.approx(math.log(p.max()), abs=1e-9)
    alpha, log_each = model.forward(symbols)
    by_end = np.array([p[[path[-1] == s for path in paths]].sum() for s in range(states)])
    assert alpha[-1] == pytest.approx(by_end / p.sum(), abs=1e-9)
    assert np.exp(log_each).prod() == pytest.approx(p.sum(), abs=1e-9)


def test_several_sequences_are_treated_alike():
    model, symbols = random_hmm(0), np.random.default_rng(0).integers(4, size=(5, 7))
    assert model.log_likelihood(symbols) == pytest.approx([model.log_likelihood(row) for row in symbols])
    assert model.posterior(symbols) == pytest.approx(np.array([model.posterior(row) for row in symbols]))
    paths, log_p = model.viterbi(symbols)
    assert paths.tolist() == [model.viterbi(row)[0].tolist() for row in symbols]
    assert log_p == pytest.approx([model.viterbi(row)[1] for row in symbols])


def test_one_step_of_baum_welch_is_the_expected_counts_of_all_paths():
    model, rng = random_hmm(1), np.random.default_rng(1)
    sequences = rng.integers(4, size=(3, 5))
    initial, moves, emitted = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 4))
    for symbols in sequences:
        paths = list(itertools.product(range(3), repeat=5))
        p = np.array([joint(model, path, symbols) for path in paths])
        for path, weight in zip(paths, p / p.sum(), strict=True):
            initial[path[0]] += weight
            for t, state in enumerate(path):
                emitted[state, symbols[t]] += weight
                if t:
                    moves[path[t - 1], state] += weight
    before = model.log_likelihood(sequences).sum()
    history = model.fit(sequences, 1)
    assert model.initial == pytest.approx(initial / initial.sum(), abs=1e-9)
    assert model.transition == pytest.approx(moves / moves.sum(axis=1, keepdims=True), abs=1e-9)
    assert model.emission == pytest.approx(emitted / emitted.sum(axis=1, keepdims=True), abs=1e-9)
    assert history == pytest.approx([before, model.log_likelihood(sequences).sum()])


def test_baum_welch_never_lowers_the_likelihood():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        model = random_hmm(seed, n_states=1 + seed % 4)
        symbols = rng.integers(4, size=(1 + seed % 3, 1 + seed))
        history = model.fit(symbols, 15)
        assert len(history) == 16
        assert np.diff(history).min() > -1e-9
        for table in (model.initial, model.transition, model.emission):
            assert table.sum(axis=-1) == pytest.approx(1)


def test_baum_welch_finds_two_alternating_states():
    symbols = np.random.default_rng(0).integers(2, size=(40, 10)) + 2 * (np.arange(10) % 2)  # 0 or 1, then 2 or 3
    starts = [random_hmm(seed, n_states=2) for seed in range(5)]  # some end at a lesser peak
    best, model = max(((model.fit(symbols, 60)[-1], model) for model in starts), key=lambda pair: pair[0])
    assert best == pytest.approx(400 * math.log(0.5), abs=5)  # a little better than the truth
    assert model.transition.max(axis=1) == pytest.approx(1, abs=1e-3)
    paths, _ = model.viterbi(symbols)
    assert (paths[:, 1:] != paths[:, :-1]).all()


def test_a_long_sequence_does_not_underflow():
    symbols = np.random.default_rng(0).integers(4, size=20_000)
    model = random_hmm(2)
    assert model.log_likelihood(symbols) < -20_000
    assert model.posterior(symbols).sum(axis=1) == pytest.approx(1)
    assert np.isfinite(model.viterbi(symbols)[1])


def test_a_state_that_is_never_left_keeps_its_row():
    model = random_hmm(0)
    before = model.transition.copy()
    model.fit([0], 2)
    assert model.transition.tolist() == before.tolist()


def test_an_impossible_sequence_is_said_to_be_so():
    model = random_hmm(0)
    model.emission[:, 3] = 0
    assert model.log_likelihood([0, 3, 1]) == -math.inf
    with pytest.raises(ValueError, match="these symbols have probability zero"):
        model.posterior([0, 3, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: random_hmm(0, n_states=0), r"n_states \(0\) and n_symbols \(4\) must be at least 1"),
        (lambda: random_hmm(0, n_symbols=0), r"n_states \(3\) and n_symbols \(0\)"),
        (lambda: random_hmm(0).forward(np.array([], dtype=int)), r"none of them 0; got int\d+ of shape \(0,\)"),
        (lambda: random_hmm(0).viterbi(np.zeros((1, 2, 3), dtype=int)), r"of shape \(1, 2, 3\)"),
        (lambda: random_hmm(0).backward([0.5]), "whole numbers .* got float64"),
        (lambda: random_hmm(0).log_likelihood([0, 4]), r"symbol 4 at index \(1,\) is outside 0 to 3"),
        (lambda: random_hmm(0).fit([[0, 1], [0, -1]], 1), r"symbol -1 at index \(1, 1\) is outside 0 to 3"),
        (lambda: random_hmm(0).fit([0, 1], 0), "iterations must be at least 1, got 0"),
    ],
)
def test_hidden_states_refuse_what_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
