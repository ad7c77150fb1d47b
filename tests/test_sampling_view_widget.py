"""What SamplingView takes, refuses, sends and computes. How it behaves in a page is tested in tests/book."""

import math

import numpy as np
import pytest
import torch
import traitlets

from bookformer.generate import next_token_probabilities
from bookformer.widgets import SamplingView

INF, NAN = math.inf, math.nan
CONTEXTS = ["To be", "or\nnot"]
TOKENS = [" be", "not", "\n", "<b>"]
HALVES = [0.1, 0.5, 0.3, 0.1]
LOGITS = np.log([HALVES, [0.25, 0.25, 0.25, 0.25]])
RANDOM = np.random.default_rng(0).normal(size=(3, 50)) * 3
LARGE = {"contexts": ["a", "b", "c"], "logits": RANDOM, "tokens": [f"w{n}" for n in range(50)]}


def view(**changes):
    return SamplingView(**{"contexts": CONTEXTS, "logits": LOGITS, "tokens": TOKENS} | changes)


def sent(made):
    return np.frombuffer(made.packed, "<f4").reshape(made.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_travel_as_float32_less_the_largest_of_their_row(dtype):
    logits = torch.tensor([[1.0, 3.0, -INF, 2.5], [-7.0, -6.5, -6.5, -INF]], dtype=dtype).requires_grad_()
    made = view(logits=logits)
    assert made.exact is True
    assert made.shape == [2, 4]
    assert sent(made).tolist() == [[-2, 0, 1, -0.5], [-0.5, 0, 0, 1]]  # 1 for what can not come


def test_contexts_stay_as_they_are_and_tokens_are_made_visible():
    made = view()
    assert made.contexts == CONTEXTS
    assert made.tokens == ["␣be", "not", "↵", "<b>"]


def test_it_opens_with_what_the_model_said():
    made = view()
    assert (made.context, made.temperature, made.top_k, made.top_p, made.draws) == (0, 1, None, 1, 0)
    assert made.probabilities() == pytest.approx(HALVES)
    assert made.probabilities(1) == pytest.approx([0.25] * 4)


SETTINGS = [{"temperature": t, "top_k": k, "top_p": p}
            for t in (0.1, 0.7, 1.0, 3.0) for k in (None, 1, 7, 50) for p in (1.0, 0.95, 0.6, 1e-9)]  # fmt: skip


def test_the_numbers_are_those_that_generate_draws_from():
    made = SamplingView(**LARGE)
    for settings in SETTINGS:
        expected = next_token_probabilities(torch.tensor(RANDOM, dtype=torch.float64), **settings).numpy()
        own = {name: value for name, value in settings.items() if value is not None}
        for context in range(3):
            assert made.probabilities(context, **own) == pytest.approx(expected[context], abs=1e-6)
    assert (expected > 0).sum() == 3


def test_the_temperature_is_applied_before_top_p_by_hand():
    """Halved, the temperature squares the odds: 1, 25, 9, 1 of 36. Then 0.6 is reached by the first alone."""
    assert view().probabilities(temperature=0.5) == pytest.approx([1 / 36, 25 / 36, 9 / 36, 1 / 36])
    assert view().probabilities(temperature=0.5, top_p=0.6) == pytest.approx([0, 1, 0, 0])
    assert view().probabilities(top_p=0.6) == pytest.approx([0, 0.5 / 0.8, 0.3 / 0.8, 0])


def test_top_p_counts_as_a_share_of_what_top_k_kept_by_hand():
    """Of 0.5, 0.3 and 0.1 the first has a share of 0.556: alone it reaches 0.55, though not of the whole."""
    assert view().probabilities(top_k=3, top_p=0.55) == pytest.approx([0, 1, 0, 0])
    assert view().probabilities(top_p=0.55) == pytest.approx([0, 0.5 / 0.8, 0.3 / 0.8, 0])


def test_a_sum_that_equals_p_has_reached_it():
    assert view().probabilities(top_p=0.8) == pytest.approx([0, 0.5 / 0.8, 0.3 / 0.8, 0])
    assert (view().probabilities(1, top_p=0.5) > 0).tolist() == [True, True, False, False]
    assert (view().probabilities(1, top_p=0.51) > 0).tolist() == [True, True, True, False]


def test_of_equals_the_lowest_ids_are_kept():
    assert view().probabilities(1, top_k=3) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert view().probabilities(0, top_k=3) == pytest.approx(np.array([0.1, 0.5, 0.3, 0]) / 0.9)
    assert view().probabilities(1, temperature=0).tolist() == [1, 0, 0, 0]


def test_no_temperature_takes_the_likeliest_whatever_else_is_set():
    for settings in ({}, {"top_k": 2}, {"top_p": 0.01}):
        assert view().probabilities(temperature=0, **settings).tolist() == [0, 1, 0, 0]


def test_what_can_not_come_never_does():
    made = view(logits=[[0, -INF, -INF, 0], [-INF, -INF, 5, -INF]], temperature=3)
    assert made.probabilities(0).tolist() == [0.5, 0, 0, 0.5]
    assert made.probabilities(0, top_k=3).tolist() == [0.5, 0, 0, 0.5]
    assert made.probabilities(1).tolist() == [0, 0, 1, 0]
    assert made.sentence(0).startswith("Temperature 3: 2 of 4 tokens are left.")


def test_logits_far_apart_do_not_overflow():
    made = view(logits=[[1000, -1000, 0, 0]] * 2, temperature=0.1)
    assert made.probabilities().tolist() == [1, 0, 0, 0]
    assert "Entropy 0.000 bits" in made.sentence()
    assert "4 of 4 tokens are left" in made.sentence()


def test_the_widgets_own_settings_hold_where_none_are_given():
    made = view(temperature=0.5, top_k=3, top_p=0.6)
    assert made.probabilities() == pytest.approx(view().probabilities(temperature=0.5, top_k=3, top_p=0.6))
    assert made.probabilities(temperature=1, top_k=4, top_p=1) == pytest.approx(HALVES)
    made.top_k = made.top_p = 1
    assert made.probabilities().tolist() == [0, 1, 0, 0]


def test_the_table_is_the_bars_as_text():
    assert view().table(top_k=2) == [
        ("token", "before", "after"), ("not", "0.500", "0.625"), ("↵", "0.300", "0.375"), ("␣be", "0.100", "cut"),
        ("<b>", "0.100", "cut"),
    ]  # fmt: skip
    assert view().table(temperature=0.5, rows=2)[1:] == [
        ("not", "0.500", "0.694"), ("↵", "0.300", "0.250"), ("2 others", "0.200", "0.056"),
    ]  # fmt: skip
    assert view().table(rows=3)[-1] == ("1 other", "0.100", "0.100")
    assert view().table(top_k=2, rows=3)[-1] == ("1 other", "0.100", "cut")
    never = view(logits=[[0, -INF, -INF, -INF]] * 2)
    assert never.table(rows=2)[1:] == [("␣be", "1.000", "1.000"), ("not", "0", "never"), ("2 others", "0", "never")]
    assert len(SamplingView(**LARGE).table()) == 18


def test_small_probabilities_are_told():
    table = view(logits=[np.log([1, 0.0005, 0.0002, 0.00001])] * 2).table()
    assert [row[1] for row in table[1:]] == ["0.999", "0.0005", "0.0002", "<0.0001"]


def test_the_sentence_by_hand():
    h0 = -(0.2 * math.log2(0.1) + 0.5 * math.log2(0.5) + 0.3 * math.log2(0.3))
    assert view(top_k=2).sentence() == (
        "Temperature 1, top-k 2: 2 of 4 tokens are left. They had 0.800 of the probability before. Entropy 0.954 bits, "
        f"as of 1.9 equally likely tokens (before: {h0:.3f} bits, {2**h0:.1f} tokens)."
    )
    assert view().sentence(temperature=0.5, top_p=0.9) == (
        "Temperature 0.5, top-p 0.9: 2 of 4 tokens are left. They had 0.800 of the probability before, and 0.944 at "
        f"this temperature. Entropy 0.834 bits, as of 1.8 equally likely tokens (before: {h0:.3f} bits, "
        f"{2**h0:.1f} tokens)."
    )
    assert view().sentence(1, temperature=0) == (
        "Temperature 0: 1 of 4 tokens is left. It had 0.250 of the probability before. Entropy 0.000 bits, as of 1.0 "
        "equally likely tokens (before: 2.000 bits, 4.0 tokens)."
    )


def test_the_repr_is_the_same_every_time():
    assert repr(view()) == "SamplingView(contexts=2, tokens=4)"


def test_the_most_is_taken():
    made = SamplingView(["x"] * 8, np.zeros((8, 4096)), ["t"] * 4096, top_k=4096)
    assert len(made.packed) == 8 * 4096 * 4
    assert made.sentence(7).startswith("Temperature 1, top-k 4,096: 4,096 of 4,096 tokens are left.")


def spoilt(value):
    logits = LOGITS.copy()
    logits[1, 2] = value
    return logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": LOGITS[0]}, r"logits of shape \(4,\) do not fit 2 contexts and 4 tokens: .* \(C, V\) = \(2, 4\)"),
        ({"logits": LOGITS[None]}, r"logits of shape \(1, 2, 4\)"),
        ({"logits": LOGITS.T}, r"logits of shape \(4, 2\)"),
        ({"tokens": TOKENS[:3]}, "do not fit 2 contexts and 3 tokens"),
        ({"contexts": ["a"]}, "do not fit 1 contexts and 4 tokens"),
        ({"logits": spoilt(NAN)}, "the logit of token 2 after context 1 is nan: give numbers, or minus infinity"),
        ({"logits": spoilt(INF)}, "the logit of token 2 after context 1 is inf"),
        ({"logits": [[0, 0, 0, 0], [-INF] * 4]}, "no token can come after context 1: all its logits are minus inf"),
        ({"contexts": "ab"}, "give a list of contexts, not the text 'ab'"),
        ({"tokens": "abcd"}, "give a list of tokens, not the text 'abcd'"),
        ({"contexts": []}, "0 contexts can not be shown: give 1 to 8"),
        ({"contexts": ["a"] * 9}, "9 contexts can not be shown"),
        ({"tokens": ["a"]}, "1 tokens can not be shown: give 2 to 4,096"),
        ({"tokens": ["a"] * 4097}, "4097 tokens can not be shown"),
        ({"tokens": ["a", "b", 7, "d"]}, "token 2 is 7: give the tokens as strings, not as ids"),
        ({"contexts": ["a", None]}, "context 1 is None: give the contexts as strings"),
    ],
)
def test_what_is_no_distribution_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        view(**changes)


BAD = [
    ("temperature", -0.5, r"temperature must be 0 \(the likeliest token alone\) or from 0.1 to 3, got -0.5"),
    ("temperature", 0.09, "got 0.09"),
    ("temperature", 3.1, "got 3.1"),
    ("temperature", NAN, "got nan"),
    ("temperature", INF, "got inf"),
    ("top_k", 0, "top_k must be from 1 to the 4 tokens of the vocabulary, or None, got 0"),
    ("top_k", 5, "got 5"),
    ("top_p", 0.0, "top_p must be above 0 and at most 1, got 0.0"),
    ("top_p", 1.01, "got 1.01"),
    ("top_p", NAN, "got nan"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_settings_outside_their_range_are_refused_everywhere(name, value, message):
    with pytest.raises(ValueError, match=message):
        view(**{name: value})
    made = view()
    with pytest.raises(ValueError, match=message):
        setattr(made, name, value)
    for method in (made.probabilities, made.table, made.sentence):
        with pytest.raises(ValueError, match=message):
            method(**{name: value})


@pytest.mark.parametrize(("name", "good", "bad", "message"), [
    ("context", 1, 2, "context 2 is not there: they run from 0 to 1"),
    ("context", 0, -1, "context -1 is not there"),
    ("draws", 10_000, 10_001, "draws must be from 0 to 10000, got 10001"),
    ("draws", 0, -1, "draws must be from 0"),
    ("seed", 2**32 - 1, 2**32, r"seed must be from 0 to 2\^32 - 1, got 4294967296"),
    ("seed", 0, -1, "seed must be from 0"),
])  # fmt: skip
def test_a_kernel_can_set_what_is_there(name, good, bad, message):
    made = view()
    setattr(made, name, good)
    assert getattr(made, name) == good
    with pytest.raises(ValueError, match=message):
        setattr(made, name, bad)


def test_there_is_no_table_of_what_is_not_there():
    for method in (view().probabilities, view().table, view().sentence):
        with pytest.raises(ValueError, match="context 2 is not there: they run from 0 to 1"):
            method(2)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        view().table(rows=0)
    with pytest.raises(ValueError, match="seed must be from 0"):
        view(seed=-1)


@pytest.mark.parametrize(("name", "value"), [("top_k", 2.5), ("temperature", "1"), ("draws", 1.5)])
def test_a_setting_is_a_number(name, value):
    with pytest.raises(traitlets.TraitError):
        setattr(view(), name, value)
