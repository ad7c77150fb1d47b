"""Text written with a cache is the text that the model would write without one."""

import pytest
import torch

from bookformer.config import ModelConfig
from bookformer.generate import generate
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
        (PROMPT, 1, {"temperature": -1.0}, r"temperature must be at least 0 and finite, got -1.0"),
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
