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


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "d_model", "n_heads", "kv_heads", "n_layers", "d_ff"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_a_size_is_a_positive_whole_number(name, value):
    shown = "ff_width" if name == "d_ff" else name
    with pytest.raises(ValueError, match=rf"{shown} must be a whole number of at least 1, got {value!r}"):
        ModelConfig(**SIZES | {"n_kv_heads" if name == "kv_heads" else name: value})


def test_d_model_must_split_into_heads():
    with pytest.raises(ValueError, match=r"d_model \(10\) must be a multiple of n_heads \(4\)"):
        ModelConfig(**SIZES | {"d_model": 10})


def test_query_heads_must_split_into_key_heads():
    with pytest.raises(ValueError, match=r"n_heads \(4\) must be a multiple of n_kv_heads \(3\)"):
        ModelConfig(**SIZES, n_kv_heads=3)


def test_the_feed_forward_width_is_four_times_the_model_width_unless_said():
    assert ModelConfig(**SIZES).ff_width == 64
    assert ModelConfig(**SIZES, d_ff=40).ff_width == 40


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": "both"}, "kind is one of decoder, encoder, encoder-decoder; got 'both'"),
        ({"positions": "absolute"}, "positions is one of learned, .* none; got 'absolute'"),
        ({"norm": "batch"}, "norm is one of layer, rms; got 'batch'"),
        ({"norm_place": "both"}, "norm_place is one of pre, post; got 'both'"),
        ({"activation": "tanh"}, "activation is one of gelu, gelu_tanh, relu, swiglu; got 'tanh'"),
        ({"positions": "rotary", "d_model": 12}, r"turn pairs of numbers: d_head \(3\) must be even"),
        ({"positions": "sinusoidal", "d_model": 9, "n_heads": 3}, r"sinusoids come in pairs: d_model \(9\)"),
        ({"positions": "relative", "relative_distance": 16}, r"relative_distance \(16\) must be above 16"),
        ({"positions": "alibi", "kind": "encoder"}, "kind 'encoder' could not tell a text from its mirror image"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
        ({"n_segments": -1}, "n_segments must be a whole number of at least 0, got -1"),
        ({"rotary_base": 0.0}, "rotary_base must be positive and finite, got 0.0"),
        ({"norm_eps": float("nan")}, "norm_eps must be positive and finite, got nan"),
    ],
)
def test_parts_that_are_not_there_or_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SIZES | parts)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SIZES).d_model = 32


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch_size", -3), ("steps", 1.5)])
def test_training_counts_are_positive(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, got {value}"):
        TrainConfig(**{"steps": 10} | {name: value})


@pytest.mark.parametrize("name", ["batch_size", "validate_every", "patience", "checkpoint_every"])
def test_every_training_count_is_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        TrainConfig(**{"steps": 10, name: 0})


@pytest.mark.parametrize("name", ["learning_rate", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_the_learning_rate_and_the_clip_are_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
        TrainConfig(**{"steps": 10, name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("warmup_fraction", -0.1, "warmup_fraction must be between 0 and 1, got -0.1"),
        ("warmup_fraction", 1.5, "warmup_fraction must be between 0 and 1, got 1.5"),
        ("final_fraction", float("nan"), "final_fraction must be between 0 and 1, got nan"),
        ("optimizer", "sgd", "optimizer is one of adamw, muon; got 'sgd'"),
        ("beta2", 0.0, "beta2 must be above 0 and below 1, got 0.0"),
        ("beta2", 1.0, "beta2 must be above 0 and below 1, got 1.0"),
        ("weight_decay", -0.1, "weight_decay must be at least 0 and finite, got -0.1"),
        ("seed", -1, "seed must be a whole number of at least 0, got -1"),
        ("seed", 0.5, "seed must be a whole number of at least 0, got 0.5"),
        ("seed", True, "seed must be a whole number of at least 0, got True"),
    ],
)
def test_training_values_outside_their_range(name, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10, name: value})


def test_no_clip_no_patience_and_shares_of_nothing_and_all_are_allowed():
    TrainConfig(steps=1, clip=None, patience=None, warmup_fraction=0, final_fraction=1, weight_decay=0)
    TrainConfig(steps=1, warmup_fraction=1, final_fraction=0, patience=1)
