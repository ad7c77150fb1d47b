"""Weights of eight bits: against the same rounding in plain arithmetic, and in a model that writes."""

import pytest
import torch
from torch.testing import assert_close

from bookformer.config import ModelConfig
from bookformer.generate import generate
from bookformer.heads import LanguageModel
from bookformer.int8 import Int8Linear, in_int8

SIZES = {"vocab_size": 11, "context_length": 12, "d_model": 16, "n_heads": 4, "n_layers": 2}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_rounded_matrix(shape, with_bias):
    weight, bias = torch.randn(7, 16) * torch.arange(1.0, 8.0)[:, None], torch.randn(7) if with_bias else None
    x = torch.randn(shape)
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = (weight / scales).round() * scales
    expected = torch.nn.functional.linear(x, rounded, bias)
    found = Int8Linear(weight, bias)(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * expected.norm()  # bfloat16 has eight bits too
    assert_close(Int8Linear(weight).whole.float(), (weight / scales).round())


def test_small_rows_keep_their_numbers_beside_large_ones():
    weight = torch.randn(2, 16) * torch.tensor([[1000.0], [0.001]])
    x = torch.randn(5, 16)
    found, expected = Int8Linear(weight)(x), x @ weight.T
    for row in range(2):
        assert (found[:, row] - expected[:, row]).norm() < 0.02 * expected[:, row].norm()


def test_rows_by_hand():
    layer = Int8Linear(torch.tensor([[127.0, -63.6, 0.4, *[0.0] * 13], [0.0] * 16]))
    assert layer.whole[:, :3].tolist() == [[127, -64, 0], [0, 0, 0]]
    assert layer(torch.ones(16)).tolist() == [63.0, 0.0]
    assert layer.scales[1] == 1 / torch.tensor(127).bfloat16()  # a row of zeros: nothing is divided by zero


@pytest.mark.parametrize(
    "parts",
    [
        {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "n_kv_heads": 2},
        {"activation": "gelu_tanh"},
        {"tie_embeddings": False},
    ],
)
def test_a_model_of_eight_bits_says_nearly_the_same(parts):
    model = LanguageModel(ModelConfig(**SIZES | parts)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small, ids = in_int8(model), torch.randint(11, (2, 9))
    with torch.no_grad():
        found, expected = small(ids), model(ids)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert sum(isinstance(module, Int8Linear) for module in small.modules()) == 1 + sum(
        isinstance(module, torch.nn.Linear) for module in model.body.modules()
    )
    assert not any(isinstance(module, torch.nn.Linear) for module in small.modules())
    assert not any(p.requires_grad for p in small.parameters())
    cached = generate(small, ids[:, :3], 6, temperature=0)
    assert torch.equal(cached, generate(small, ids[:, :3], 6, temperature=0, use_cache=False))


@pytest.mark.parametrize("weight", [torch.ones(3), torch.tensor([[1.0, float("nan")]])])
def test_what_cannot_be_rounded_is_refused(weight):
    with pytest.raises(ValueError, match=r"weights to round are finite, and a matrix \(N, K\); got shape"):
        Int8Linear(weight)


@pytest.mark.parametrize("width", [3, 8, 24])
def test_a_width_that_the_product_would_read_beyond_is_refused(width):
    with pytest.raises(ValueError, match=f"rows of eight bits are read 16 numbers at a time: {width} is no multiple"):
        Int8Linear(torch.ones(2, width))
