"""The recorded run of the mixtures is of this recipe and this data, and begins again as it was recorded."""

import dataclasses
import itertools

import pytest

import mixtures as tool
from bookformer.config import ModelConfig, TrainConfig
from bookformer.experts import active_parameters, mixtures
from bookformer.weights import load_pretrained, load_record


@pytest.fixture(scope="module")
def texts():
    return tool.texts(load_pretrained("shakespeare-3m")[1])


@pytest.fixture(scope="module")
def record():
    return load_record("mixtures")


def test_it_is_of_this_recipe_and_this_data(record, texts):
    assert ModelConfig(**record["model"]) == tool.MODEL
    assert TrainConfig(**record["train"]) == tool.TRAIN
    assert record["window"] == tool.WINDOW
    assert record["data"] == tool.data_of(*texts)
    assert list(record["variants"]) == list(tool.VARIANTS)
    for name, found in record["variants"].items():
        variant = tool.VARIANTS[name]
        assert {key: found[key] for key in dataclasses.asdict(variant)} == dataclasses.asdict(variant)
        assert [run["seed"] for run in found["runs"]] == list(tool.SEEDS)
        model = tool.start(variant, 0)
        assert sum(p.numel() for p in model.parameters()) == found["parameters"]
        assert active_parameters(model) == found["active_parameters"]


def test_each_run_begins_again_as_it_was_recorded(record, texts):
    for name, variant in tool.VARIANTS.items():
        for run in record["variants"][name]["runs"][:2]:
            model = tool.start(variant, run["seed"])
            records = tool.steps(variant, run["seed"], model, texts[0])
            losses = [each.loss for each in itertools.islice(records, 3)]
            assert losses == pytest.approx(run["first_losses"], abs=2e-3), name


def test_means_are_those_of_the_domains(record):
    for found in record["variants"].values():
        for run in found["runs"]:
            losses = run["held_out_nats"].values()
            assert run["mean_held_out_nats"] == pytest.approx(sum(losses) / 4, abs=1e-4)


def test_shares_are_those_of_all_experts(record):
    for found in record["variants"].values():
        for run in found["runs"]:
            assert len(run["shares"]) == len(run["balance"]) == (2 if found["n_experts"] else 0)
            for shares in run["shares"]:
                assert len(shares) == found["n_experts"]
                assert sum(shares) == pytest.approx(1, abs=1e-3)
                assert max(shares) <= 1 / found["k"] + 1e-4


def test_a_frozen_router_stays_and_another_moves(texts):
    for name, moves in (("mixture, 2 of 8", True), ("mixture, 2 of 8, router frozen", False)):
        variant = tool.VARIANTS[name]
        model = tool.start(variant, 0)
        router = mixtures(model)["blocks.0.ff"].router.weight
        before = router.detach().clone()
        next(tool.steps(variant, 0, model, texts[0]))
        assert ((router - before).abs().max() > 0) == moves
