"""A configuration that makes no sense can't be built, and says which of its values is wrong."""

import dataclasses

import numpy as np
import pytest

from bookformer.config import ModelConfig, TrainConfig

SIZES = {"vocab_size": 11, "context_length": 8, "d_model": 16, "n_heads": 4}


def test_head_width_and_default_key_heads():
    config = ModelConfig(**SIZES)
    assert config.d_head == 4
    assert config.kv_heads == 4
    assert dataclasses.replace(config, n_heads=8).kv_heads == 8


def test_sizes_may_be_numpy_integers():
    assert ModelConfig(**SIZES | {"d_model": np.int64(32)}).d_head == 8


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "d_model", "n_heads", "kv_heads"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_a_size_is_a_positive_whole_number(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, got {value!r}"):
        ModelConfig(**SIZES | {"n_kv_heads" if name == "kv_heads" else name: value})


def test_d_model_must_split_into_heads():
    with pytest.raises(ValueError, match=r"d_model \(10\) must be a multiple of n_heads \(4\)"):
        ModelConfig(**SIZES | {"d_model": 10})


def test_query_heads_must_split_into_key_heads():
    with pytest.raises(ValueError, match=r"n_heads \(4\) must be a multiple of n_kv_heads \(3\)"):
        ModelConfig(**SIZES, n_kv_heads=3)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SIZES).d_model = 32


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch_size", -3), ("steps", 1.5)])
def test_training_counts_are_positive(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, got {value}"):
        TrainConfig(**{"steps": 10} | {name: value})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_the_learning_rate_is_positive_and_finite(rate):
    with pytest.raises(ValueError, match=f"learning_rate must be positive and finite, got {rate}"):
        TrainConfig(steps=10, learning_rate=rate)
