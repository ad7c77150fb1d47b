"""The recorded run of the picture models is of this recipe and this data, and begins again as it was recorded."""

import dataclasses
import itertools

import pytest
import torch

import pictures as tool
from bookformer.config import ModelConfig
from bookformer.objectives import IGNORED
from bookformer.weights import load_record


@pytest.fixture(scope="module")
def split():
    return tool.sides()


@pytest.fixture(scope="module")
def record():
    return load_record("pictures")


def test_it_is_of_this_recipe_and_this_data(record, split):
    assert {key: record[key] for key in tool.about(split)} == tool.about(split)
    assert ModelConfig(**record["small"]) == tool.SMALL
    assert list(record["variants"]) == list(tool.VARIANTS)
    for name, variant in tool.VARIANTS.items():
        found = record["variants"][name]
        assert {key: found[key] for key in dataclasses.asdict(variant)} == dataclasses.asdict(variant)
        assert [run["seed"] for run in found["runs"]] == list(range(variant.seeds))
        model = tool.start(variant, 0)[0]
        assert sum(p.numel() for p in model.parameters()) == found["parameters"]
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == found["trained"]


@pytest.mark.parametrize("name", tool.VARIANTS)
def test_each_run_begins_again_as_it_was_recorded(record, split, name):
    run = record["variants"][name]["runs"][0]
    _, records, _ = tool.steps(tool.VARIANTS[name], run["seed"], split["train"])
    assert [each.loss for each in itertools.islice(records, 3)] == pytest.approx(run["first_losses"], abs=2e-3)


def test_the_sides_share_no_digit_and_the_pairs_none(split):
    drawn = [{tuple(x.flatten().tolist()) for x in pictures} for pictures, _ in split.values()]
    assert len(set.union(*drawn)) == sum(map(len, drawn)) == 1797
    assert not set(tool.SEEN) & set(tool.UNSEEN)
    for place in (0, 1):  # each digit is seen in both places
        assert {pair[place] for pair in tool.SEEN} == set(range(10))


def test_a_frozen_model_stays_and_its_eyes_move(split):
    variant = tool.VARIANTS["the book's model, frozen, encoder trained"]
    model, records, _ = tool.steps(variant, 0, split["train"])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    next(records)
    moved = {name.split(".")[0] for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"eyes"}


def test_captions_are_scored_as_a_whole_and_by_token_and_about_another_picture():
    class Known(torch.nn.Module):
        """Says the first token of each row's picture at every place."""

        def eyes(self, pictures):
            return pictures

        def forward(self, inputs, vectors):
            return torch.nn.functional.one_hot(vectors[:, :1].expand_as(inputs), 5).float()

    targets = torch.tensor([[1, 1, 1], [2, 2, IGNORED], [3, 3, 4]])
    batch = (torch.tensor([[1], [2], [3]]), torch.zeros(3, 3, dtype=torch.long), targets)
    assert tool.right(Known(), batch) == pytest.approx((2 / 3, 7 / 8))
    assert tool.right(Known(), batch, swapped=True) == (0, 0)
