"""Text is drawn from the distribution that was asked for, the cache changes nothing, and a beam searches as it says."""

import itertools
import math

import pytest
import torch

from bookformer.config import POSITIONS, ModelConfig
from bookformer.generate import answer_log_likelihoods, beam_search, generate, next_token_probabilities
from bookformer.heads import LanguageModel

SIZES = {"vocab_size": 11, "context_length": 16, "d_model": 16, "n_heads": 2, "dropout": 0.2, "tie_embeddings": False}


def model(**changes):
    torch.manual_seed(0)
    made = LanguageModel(ModelConfig(**SIZES | changes))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(20)  # so that it has an opinion
    return made


def plainly(model, ids, length, **rest):
    """Greedy writing with no cache: the whole text again for each token."""
    model.eval()
    for _ in range(length):
        ids = torch.cat([ids, model(ids, **rest)[:, -1:].argmax(-1)], dim=1)
    return ids


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_greedy_writing_is_that_without_a_cache(positions):
    made = model(positions=positions)
    assert torch.equal(generate(made, PROMPT, 14, temperature=0), plainly(made, PROMPT, 14))


def test_an_encoder_decoder_reads_its_source_and_not_the_padding():
    made = model(kind="encoder-decoder")
    source = torch.tensor([[7, 8, 9, 1], [9, 8, 0, 0]])
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    written = generate(made, PROMPT, 6, temperature=0, source=source, source_real=real)
    mask = real[:, None, None, :]
    assert torch.equal(written, plainly(made, PROMPT, 6, source=source, memory_mask=mask))
    alone = generate(made, PROMPT[1:], 6, temperature=0, source=source[1:, :2])
    assert torch.equal(written[1:], alone)
    other = generate(made, PROMPT, 6, temperature=0, source=source.flip(0))
    assert not torch.equal(written, other)


def test_draws_follow_the_models_probabilities():
    made = model()
    prompts = PROMPT[:1].expand(4000, 3)
    drawn = generate(made, prompts, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, 3]
    made.eval()
    with torch.no_grad():
        expected = (made(PROMPT[:1])[0, -1] / 2).softmax(-1)
    shares = torch.bincount(drawn, minlength=11) / 4000
    assert (shares - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5
    assert expected.max() < 0.9  # there was something to draw


def test_the_generator_decides():
    made = model()
    first, again, other = (
        generate(made, PROMPT, 10, temperature=3.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_row_that_has_ended_stays_so():
    made = model()
    written = plainly(made, PROMPT, 12)
    at = next(i for i in range(4, 15) if written[0, i] not in written[0, 3:i])
    stop = int(written[0, at])
    ended = generate(made, PROMPT, 12, temperature=0, stop=stop)
    assert torch.equal(ended[0, :at], written[0, :at])
    assert set(ended[0, at:].tolist()) == {stop}
    alone = generate(made, PROMPT[:1], 12, temperature=0, stop=stop)
    assert alone.shape == (1, at + 1)  # all rows have ended: no more is written
    drawn = generate(
        made, PROMPT.repeat(20, 1), 12, temperature=50.0, generator=torch.Generator().manual_seed(0), stop=7
    )
    ended = (drawn[:, 3:] == 7).int().cummax(dim=1).values.bool()  # (40, 12), from a row's first 7 on
    assert 0 < ended.float().mean() < 1
    assert (drawn[:, 3:][ended] == 7).all()


def test_a_model_in_training_is_put_back_and_writes_without_dropout():
    made = model().train()
    first = generate(made, PROMPT, 8, temperature=0)
    assert made.training
    assert torch.equal(first, plainly(made, PROMPT, 8))


@pytest.mark.parametrize(
    ("ids", "length", "rest", "message"),
    [
        (PROMPT[:, :0], 1, {}, r"the prompt must be ids \(B, T\), none of them 0; got shape \(2, 0\)"),
        (PROMPT[0], 1, {}, r"got shape \(3,\)"),
        (PROMPT, 15, {}, r"a prompt of 3 tokens and 15 more do not fit context_length \(16\)"),
        (PROMPT, 0, {}, "a prompt of 3 tokens and 0 more"),
        (PROMPT, 1, {"temperature": -1.0}, r"temperature must be above 0 and finite, got -1.0"),
        (PROMPT, 1, {"temperature": float("nan")}, "got nan"),
        (PROMPT, 1, {"temperature": 1.0}, "a temperature of 1.0 draws at random: give a generator"),
    ],
)
def test_writing_that_makes_no_sense(ids, length, rest, message):
    with pytest.raises(ValueError, match=message):
        generate(model(), ids, length, **{"temperature": 0} | rest)


def test_a_source_longer_than_the_context():
    with pytest.raises(ValueError, match=r"17 positions are more than context_length \(16\)"):
        generate(model(kind="encoder-decoder"), PROMPT, 2, temperature=0, source=torch.ones(2, 17, dtype=torch.long))


def test_a_source_that_is_all_padding():
    source, real = torch.ones(2, 4, dtype=torch.long), torch.tensor([[True] * 4, [False] * 4])
    with pytest.raises(ValueError, match="hides"):
        generate(model(kind="encoder-decoder"), PROMPT, 2, temperature=0, source=source, source_real=real)


# The distribution that is drawn from


def by_hand(logits, temperature=1.0, top_k=None, top_p=1.0):
    """`next_token_probabilities` of one row in plain Python, from its description."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))  # of equal ones the lower id first
    kept = order[:top_k]
    if top_p < 1:
        whole, sums, n = sum(weights[i] for i in kept), 0.0, 0
        while sums < top_p:
            sums += weights[kept[n]] / whole
            n += 1
        kept = kept[:n]
    whole = sum(weights[i] for i in kept)
    return [weights[i] / whole if i in kept else 0.0 for i in range(len(logits))]


STRATEGIES = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 4},
    {"top_p": 0.3},
    {"top_p": 0.77},
    {"top_p": 1e-6},
    {"temperature": 1.7, "top_k": 6},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 7, "top_p": 0.85},
]


@pytest.mark.parametrize("how", STRATEGIES, ids=str)
def test_the_distribution_is_that_of_its_description(how):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, 11, generator=g) * 2
    found = next_token_probabilities(logits, **how)
    expected = torch.tensor([[by_hand(row, **how) for row in page] for page in logits.tolist()])
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(3, 50))


def test_of_equally_likely_tokens_the_lower_ids_stay():
    logits = torch.tensor([0.0, 1, 1, 0, 1, 1, float("-inf")])
    for k, kept in ((1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (5, [0, 1, 2, 4, 5])):
        found = next_token_probabilities(logits, top_k=k)
        assert found.nonzero()[:, 0].tolist() == kept
        assert torch.allclose(found, torch.tensor(by_hand(logits.tolist(), top_k=k)), atol=1e-6)
    quarters = torch.zeros(4)
    assert next_token_probabilities(quarters, top_p=0.5).tolist() == [0.5, 0.5, 0, 0]  # half is reached by two
    assert next_token_probabilities(quarters, top_p=0.51).tolist() == pytest.approx([1 / 3] * 3 + [0])


def test_top_p_counts_what_top_k_has_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    found = next_token_probabilities(logits, top_k=2, top_p=0.55)  # 0.4 is 4/7 of what two tokens have
    assert found.tolist() == [1, 0, 0, 0]
    assert next_token_probabilities(logits, top_p=0.55).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_what_keeps_everything_changes_nothing():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    plain = logits.softmax(-1)
    for how in ({}, {"temperature": 1.0}, {"top_k": 11}, {"top_p": 1.0}, {"top_k": 11, "top_p": 1.0}):
        assert torch.allclose(next_token_probabilities(logits, **how), plain, atol=1e-7)


def test_the_limits_of_the_temperature():
    logits = torch.tensor([-1.0, 80.0, 3.0])
    for cold in (1e-3, 1e-37):  # 80 divided by the second is more than a float holds
        assert next_token_probabilities(logits, temperature=cold).tolist() == [0, 1, 0]
    assert torch.allclose(next_token_probabilities(logits, temperature=1e9), torch.full((3,), 1 / 3))


def test_the_logits_stay_as_they_are():
    logits = torch.randn(2, 11)
    before = logits.clone()
    next_token_probabilities(logits, temperature=0.5, top_k=3, top_p=0.5)
    assert torch.equal(logits, before)


CHOICES = [
    ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
    ({"temperature": -0.5}, "got -0.5"),
    ({"temperature": float("nan")}, "got nan"),
    ({"temperature": float("inf")}, "got inf"),
    ({"top_k": 0}, "top_k must be from 1 to the 11 tokens of the vocabulary, got 0"),
    ({"top_k": 12}, "got 12"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
    ({"top_p": 1.01}, "got 1.01"),
    ({"top_p": float("nan")}, "got nan"),
]


@pytest.mark.parametrize(("how", "message"), CHOICES, ids=str)
def test_a_choice_that_makes_no_sense(how, message):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(torch.zeros(2, 11), **how)
    if how.get("temperature") != 0:  # which writing takes for the likeliest
        with pytest.raises(ValueError, match=message):
            generate(model(), PROMPT, 2, **{"temperature": 1.0, "generator": torch.Generator()} | how)
    if "temperature" not in how:
        with pytest.raises(ValueError, match=message):
            generate(model(), PROMPT, 2, temperature=0, **how)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_without_a_distribution(bad):
    with pytest.raises(ValueError, match="they have no distribution"):
        next_token_probabilities(torch.tensor([[0.0, 1.0], [bad, 0.0]]))
    with pytest.raises(ValueError, match="they have no distribution"):
        next_token_probabilities(torch.full((2,), float("-inf")))


@pytest.mark.parametrize("how", [h for h in STRATEGIES if h not in ({"top_k": 1}, {"top_p": 1e-6})], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_draws_pass_a_chi_square_test(how, use_cache):
    made, n = softer(model()), 3000
    prompts = PROMPT[:1].expand(n, 3)
    g = torch.Generator().manual_seed(1)
    drawn = generate(made, prompts, 2, generator=g, use_cache=use_cache, **how)[:, 3:]  # (n, 2)
    with torch.no_grad():
        first = by_hand(made(PROMPT[:1])[0, -1].tolist(), **how)
        after = made(torch.cat([PROMPT[:1].expand(11, 3), torch.arange(11)[:, None]], dim=1))[:, -1]  # (11, V)
    second = [by_hand(row, **how) for row in after.tolist()]
    # the two tokens together: 121 cells, all with their exact probabilities
    pairs = torch.tensor(first, dtype=torch.float64)[:, None] * torch.tensor(second, dtype=torch.float64)
    counts = torch.bincount(drawn[:, 0] * 11 + drawn[:, 1], minlength=121)
    assert p_value(counts, pairs.flatten()) > 1e-3
    assert p_value(counts, pairs.flatten().roll(1)) < 1e-6  # another distribution is told apart


def softer(made):
    """The same model with a third of the opinion, so that there is something to draw."""
    made.eval()
    with torch.no_grad():
        made.out.weight.div_(3)
    return made


def p_value(counts, probabilities):
    """How often a fair draw is as far from its probabilities as this one; 0 if it holds what can't come."""
    if counts[probabilities == 0].any():
        return 0.0
    expected = probabilities * counts.sum()
    rare = expected < 5  # such cells are taken together
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    assert freedom > 0
    return 1 - torch.special.gammainc(freedom, statistic / 2).item()


# With the cache and without


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_writing_is_the_same_with_the_cache_and_without(positions, kv_heads):
    made = softer(model(positions=positions, n_kv_heads=kv_heads))
    for how in ({"temperature": 0}, {"temperature": 1.3, "top_k": 8, "top_p": 0.95}):
        with_cache, without = (
            generate(made, PROMPT, 14, generator=torch.Generator().manual_seed(3), use_cache=use, stop=5, **how)
            for use in (True, False)
        )
        assert torch.equal(with_cache, without)
        assert torch.equal(with_cache[:, :3], PROMPT)


def test_an_encoder_decoder_writes_the_same_with_the_cache_and_without():
    made = softer(model(kind="encoder-decoder", n_kv_heads=1, positions="relative"))
    source = torch.tensor([[7, 8, 9, 1], [9, 8, 0, 0]])
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    for how in ({"temperature": 0}, {"temperature": 1.3, "top_p": 0.9}):
        rest = {"source": source, "source_real": real, **how}
        with_cache, without = (
            generate(made, PROMPT, 14, generator=torch.Generator().manual_seed(3), use_cache=use, **rest)
            for use in (True, False)
        )
        assert torch.equal(with_cache, without)


def test_without_the_cache_all_is_computed_again(monkeypatch):
    made = model()
    read = []
    forward = made.body.forward
    monkeypatch.setattr(made.body, "forward", lambda ids, **rest: read.append(ids.size(1)) or forward(ids, **rest))
    generate(made, PROMPT, 4, temperature=0)
    assert read == [3, 1, 1, 1]
    read.clear()
    generate(made, PROMPT, 4, temperature=0, use_cache=False)
    assert read == [3, 4, 5, 6]


# Beams


class Table(torch.nn.Module):
    """A stand-in for a model: the next token depends on the last one, by a table of probabilities (V, V)."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table)
        self.config = ModelConfig(vocab_size=len(table), context_length=8)

    def new_cache(self):
        return []

    def forward(self, ids, *, cache, last):
        assert not self.training
        return self.table[ids[:, -1:]].log()


# After 0, token 1 is likelier than 2. But after 1 anything may come, after 2 nearly always 3.
FORK = Table([[0, 0.6, 0.4, 0], [0.25] * 4, [0.04, 0.03, 0.03, 0.9], [0.1, 0.2, 0.3, 0.4]])


def test_a_beam_finds_what_greedy_misses():
    start = torch.tensor([[0]])
    greedy, its = beam_search(FORK, start, 2, width=1)
    assert greedy.tolist() == [[0, 1, 0]]
    assert its.exp().tolist() == pytest.approx([0.6 * 0.25])
    found, totals = beam_search(FORK, start, 2, width=2)
    assert found.tolist() == [[0, 2, 3], [0, 1, 0]]
    assert totals.exp().tolist() == pytest.approx([0.4 * 0.9, 0.6 * 0.25])


def test_a_beam_has_no_hypothesis_that_can_not_be():
    found, totals = beam_search(FORK, torch.tensor([[0]]), 1, width=4)
    assert found.tolist() == [[0, 1], [0, 2]]
    assert totals.isfinite().all()


def test_an_ended_hypothesis_waits_for_a_better_one():
    table = Table([[0.0, 0.5, 0.4, 0.1], [0, 1, 0, 0], [0.05, 0.05, 0.05, 0.85], [0, 0, 0, 1.0]])
    found, totals = beam_search(table, torch.tensor([[0]]), 3, width=2, stop=1)
    assert found.tolist() == [[0, 1, 1, 1], [0, 2, 3, 3]]  # the first ended at once, and costs nothing more
    assert totals.exp().tolist() == pytest.approx([0.5, 0.4 * 0.85])
    longer, totals = beam_search(table, torch.tensor([[0]]), 3, width=2, stop=1, length_power=1.0)
    assert longer.tolist() == [[0, 2, 3, 3], [0, 1, 1, 1]]  # shared out over three tokens, the second is better
    assert totals.exp().tolist() == pytest.approx([0.4 * 0.85, 0.5])  # the totals themselves stay what they are


def test_a_stop_in_the_prompt_ends_nothing():
    found, _ = beam_search(FORK, torch.tensor([[2, 0]]), 2, width=2, stop=2)
    assert found[0, 2:].tolist() == [2, 2]
    assert found[1, 2:].tolist() == [1, 0]


def every_continuation(made, ids, length, stop, length_power, source=None):
    """All of them, scored one by one with no cache, the best first: (ids, log-probability, what it is ranked by)."""
    v = made.config.vocab_size
    found = {}
    for tail in itertools.product(range(v), repeat=length):
        n = tail.index(stop) + 1 if stop in tail else length  # tokens that count
        found[tail[:n] + (stop,) * (length - n)] = n
    tails = torch.tensor(list(found))  # (N, length)
    whole = torch.cat([ids.expand(len(tails), -1), tails], dim=1)
    rest = {} if source is None else {"source": source.expand(len(tails), -1)}
    made.eval()
    with torch.no_grad():
        log_p = made(whole[:, :-1], **rest)[:, ids.size(1) - 1 :].double().log_softmax(-1)
    each = log_p.gather(-1, tails[..., None])[..., 0]  # (N, length)
    n = torch.tensor(list(found.values()))
    totals = (each * (torch.arange(length) < n[:, None])).sum(1)
    ranks = totals / n**length_power
    best = ranks.argsort(descending=True)
    return whole[best], totals[best]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("stop", "power"), [(None, 0.0), (None, 1.0), (2, 0.0), (2, 0.6), (2, 1.0), (2, 2.0)], ids=str)
def test_a_beam_with_room_for_all_is_exhaustive(seed, stop, power):
    torch.manual_seed(seed)
    made = LanguageModel(ModelConfig(vocab_size=4, context_length=9, d_model=8, n_heads=2, positions="rotary"))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(30)
    ids = torch.tensor([[0, 3, 1]])
    expected, totals = every_continuation(made, ids, 4, stop, power)
    found, found_totals = beam_search(made, ids, 4, width=4**4, stop=stop, length_power=power)
    assert found.shape == expected.shape
    assert torch.allclose(found_totals, totals, atol=1e-4)
    apart = (totals / totals.roll(1) - 1).abs() > 1e-5  # equal ones may change places
    assert apart.sum() > len(totals) / 2
    assert torch.equal(found[:20], expected[:20])


def a_beam(made, ids, length, width, stop, power):
    """The same search on lists, each hypothesis read again from its beginning."""
    kept, start = [(0.0, 0.0, ids[0].tolist())], ids.size(1)
    made.eval()
    for _ in range(length):
        grown = []
        for rank, total, row in kept:
            if stop in row[start:]:
                grown.append((rank, total, [*row, stop]))
                continue
            with torch.no_grad():
                log_p = made(torch.tensor([row]))[0, -1].double().log_softmax(-1).tolist()
            n = len(row) - start + 1
            grown += [((total + x) / n**power, total + x, [*row, i]) for i, x in enumerate(log_p)]
        kept = sorted(grown, reverse=True)[:width]
        if all(stop in row[start:] for *_, row in kept):
            break
    return [row for *_, row in kept], [total for _, total, _ in kept]


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize(("width", "stop", "power"), [(2, None, 0.0), (3, 7, 0.0), (5, 7, 0.8)])
def test_a_narrow_beam_is_the_search_on_lists(positions, width, stop, power):
    made = softer(model(positions=positions))
    rows, totals = a_beam(made, PROMPT[:1], 10, width, stop, power)
    found, found_totals = beam_search(made, PROMPT[:1], 10, width=width, stop=stop, length_power=power)
    assert found.tolist() == rows
    assert found_totals.tolist() == pytest.approx(totals, abs=1e-4)


@pytest.mark.parametrize("stop", [None, 5])
def test_a_beam_of_one_is_greedy(stop):
    for prompt in PROMPT:
        made = model()
        found, _ = beam_search(made, prompt[None], 12, width=1, stop=stop)
        assert torch.equal(found, generate(made, prompt[None], 12, temperature=0, stop=stop))


def test_a_search_ends_when_all_hypotheses_have():
    found, totals = beam_search(FORK, torch.tensor([[0]]), 6, width=1, stop=1)
    assert found.tolist() == [[0, 1]]
    assert totals.exp().tolist() == pytest.approx([0.6])


def test_a_beam_reads_its_source():
    torch.manual_seed(0)
    sizes = {"vocab_size": 4, "context_length": 9, "d_model": 8, "n_heads": 2, "kind": "encoder-decoder"}
    made = LanguageModel(ModelConfig(**sizes))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(30)
    ids, source = torch.tensor([[0]]), torch.tensor([[1, 2, 3, 3]])
    expected, totals = every_continuation(made, ids, 3, None, 0.0, source)
    found, found_totals = beam_search(made, ids, 3, width=64, source=source)
    assert torch.allclose(found_totals, totals, atol=1e-4)
    assert torch.equal(found[:5], expected[:5])
    padded = torch.tensor([[1, 2, 3, 3, 0, 0]])
    real = torch.tensor([[True] * 4 + [False] * 2])
    assert torch.equal(beam_search(made, ids, 3, width=4, source=padded, source_real=real)[0], found[:4])


def test_a_beam_puts_the_model_back():
    made = model().train()
    first, totals = beam_search(made, PROMPT[:1], 6, width=3)
    assert made.training
    again, same = beam_search(made.eval(), PROMPT[:1], 6, width=3)
    assert torch.equal(first, again)
    assert torch.equal(totals, same)
    assert not made.training


@pytest.mark.parametrize(
    ("ids", "length", "width", "rest", "message"),
    [
        (PROMPT, 2, 3, {}, r"a beam needs one prompt \(1, T\) and a width of at least 1, got \(2, 3\) and 3"),
        (PROMPT[:1], 2, 0, {}, r"got \(1, 3\) and 0"),
        (PROMPT[:1, :0], 2, 3, {}, r"got shape \(1, 0\)"),
        (PROMPT[:1], 15, 3, {}, r"a prompt of 3 tokens and 15 more do not fit context_length \(16\)"),
        (PROMPT[:1], 2, 3, {"source": PROMPT}, r"a beam reads one source \(1, S\), got \(2, 3\)"),
    ],
)
def test_a_beam_that_makes_no_sense(ids, length, width, rest, message):
    with pytest.raises(ValueError, match=message):
        beam_search(model(), ids, length, width=width, **rest)


def test_what_is_written_can_be_trained_on():
    """Human feedback does: the ids come out of a pass without gradients, and go into one with."""
    model = LanguageModel(ModelConfig(vocab_size=11, context_length=12, d_model=16, n_heads=2))
    ids = torch.tensor([[1, 2, 3]])
    written = generate(model, ids, 4, generator=torch.Generator().manual_seed(0))
    best, _ = beam_search(model, ids, 4, width=2)
    for found in (written, best):
        assert not found.is_inference()
        model(found).sum().backward()
        assert model.body.tokens.weight.grad.any()


# Answers that are given

PROMPTS = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4, 6, 7, 8]]
ANSWERS = [[9], [10, 1], [9, 3, 0], [2]]


def one_by_one(made, prompts, answers):
    """Each answer after each prompt, by itself, with no cache."""
    made.eval()
    found = torch.zeros(len(prompts), len(answers), dtype=torch.float64)
    for (i, prompt), (j, answer) in itertools.product(enumerate(prompts), enumerate(answers)):
        with torch.no_grad():
            log_p = made(torch.tensor([prompt + answer]))[0].double().log_softmax(-1)
        found[i, j] = sum(log_p[len(prompt) + n - 1, token] for n, token in enumerate(answer))
    return found


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_answers_are_weighed_as_one_by_one(positions, batch_size):
    made = softer(model(positions=positions))
    lists = [[3], [4, 5]], [[7, 1, 2]] * 2, [[1, 2], [1, 2, 3]], [[1, 2, 3], [1, 4, 3]], [[5, 6, 7], [8, 6, 7]]
    for prompts in (PROMPTS, PROMPTS[:1], *lists):
        found = answer_log_likelihoods(made, prompts, ANSWERS, batch_size=batch_size)
        assert found.dtype == torch.float64
        assert torch.allclose(found, one_by_one(made, prompts, ANSWERS), atol=1e-4)


def test_the_likelihoods_of_all_that_can_come_make_one():
    made = softer(model())
    one = answer_log_likelihoods(made, PROMPTS, [[i] for i in range(11)])
    two = answer_log_likelihoods(made, PROMPTS[:1], [[i, j] for i in range(11) for j in range(11)])
    assert one.exp().sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert two.exp().sum().item() == pytest.approx(1)


def test_what_prompts_share_is_read_once(monkeypatch):
    made = model()
    read = []
    forward = made.body.forward
    monkeypatch.setattr(made.body, "forward", lambda ids, **rest: read.append(tuple(ids.shape)) or forward(ids, **rest))
    answer_log_likelihoods(made, [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 8]], [[1], [2]])
    assert read == [(1, 4), (3, 2)]  # and one reading does for both answers
    read.clear()
    answer_log_likelihoods(made, [[1, 2, 3]] * 2, [[1], [2]])
    assert read == [(1, 2), (1, 1)]  # the last token is always read with the rest


def test_weighing_puts_the_model_back():
    made = model().train()
    first = answer_log_likelihoods(made, PROMPTS, ANSWERS)
    assert made.training
    assert torch.equal(first, answer_log_likelihoods(made.eval(), PROMPTS, ANSWERS))
    assert not made.training


@pytest.mark.parametrize(
    ("prompts", "answers", "size", "message"),
    [
        ([], ANSWERS, 1, "there is no prompt"),
        (PROMPTS, [], 1, "there is no answer"),
        ([[1], []], ANSWERS, 1, "prompt 1 is empty"),
        (PROMPTS, [[1], [2], []], 1, "answer 2 is empty"),
        ([[1] * 15], ANSWERS, 1, r"a prompt of 15 tokens and an answer of 3 do not fit context_length \(16\)"),
        (PROMPTS, ANSWERS, 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_answers_that_make_no_sense(prompts, answers, size, message):
    with pytest.raises(ValueError, match=message):
        answer_log_likelihoods(model(), prompts, answers, batch_size=size)


def test_a_prompt_and_an_answer_may_fill_the_context():
    made = model()
    found = answer_log_likelihoods(made, [[1] * 14], ANSWERS)
    assert torch.allclose(found, one_by_one_within(made, [1] * 14, ANSWERS), atol=1e-4)


def one_by_one_within(made, prompt, answers):
    """The same without reading an answer's last token, for which there may be no place."""
    made.eval()
    found = []
    for answer in answers:
        with torch.no_grad():
            log_p = made(torch.tensor([prompt + answer[:-1]]))[0].double().log_softmax(-1)
        found.append(sum(log_p[len(prompt) + n - 1, token] for n, token in enumerate(answer)))
    return torch.stack(found)[None]
