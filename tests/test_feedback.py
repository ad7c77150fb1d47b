"""The recorded run of learning from feedback is of this recipe and this data, and begins again as it was recorded."""

import copy
import itertools
import json
import statistics

import pytest
import torch

import feedback as tool
from bookformer.data import load_valences
from bookformer.weights import load_pretrained, load_record

PROMPT, LENGTH = tool.PROMPT, tool.LENGTH


@pytest.fixture(scope="module")
def world():
    return tool.World()


@pytest.fixture(scope="module")
def record():
    return load_record("feedback")


def test_it_is_of_this_recipe_and_this_data(record, world):
    recipe = json.loads(json.dumps(tool.recipe()))
    assert {name: record[name] for name in recipe} == recipe
    assert record["data"] == tool.data_of(world)
    assert [start["seed"] for start in record["starts"]] == list(tool.SEEDS)
    assert list(record["variants"]) == list(tool.VARIANTS)
    for name, found in record["variants"].items():
        variant = tool.VARIANTS[name]
        assert (found["method"], found["beta"], found["learning_rate"]) == tuple(vars(variant).values())
        assert [run["seed"] for run in found["runs"]] == list(tool.SEEDS)
        for run in found["runs"]:
            if variant.method == "dpo":
                assert len(run["losses"]) == tool.PREFERRED.steps
                assert run["losses"][0] == pytest.approx(0.6931, abs=0.15)  # dropout is on in a step of `fit`
            else:
                steps = tool.FEEDBACK.epochs * tool.FEEDBACK.texts // tool.LEARNT.batch_size
                assert len(run["rounds"]) == tool.LEARNT.steps // steps
                assert run["rounds"][0]["kl"] == pytest.approx(0, abs=0.01)
                # measured alike in training and after it, on prompts of other works, and so without dropout
                last = statistics.mean(told["kl"] for told in run["rounds"][-5:])
                assert run["after"]["kl"] == pytest.approx(last, rel=0.35), name


def test_it_begins_again_as_it_was_recorded(record, world):
    for start in record["starts"][:2]:
        steps = tool.show(world, copy.deepcopy(world.model), start["seed"])
        losses = [each.loss for each in itertools.islice(steps, 3)]
        assert losses == pytest.approx(start["demonstration_losses"][:3], abs=2e-3)


def test_passages_are_of_the_works_and_no_held_out_prompt_is_said_elsewhere(world):
    assert not (world.train == world.tokenizer.special["<|endoftext|>"]).any()
    told = set(map(tuple, world.train[:, :PROMPT].tolist()))
    assert not told & set(map(tuple, world.held[:, :PROMPT].tolist()))
    assert world.train.shape[1] == world.held.shape[1] == PROMPT + LENGTH


def test_gold_is_the_valence_of_words_less_repeats_and_the_nats_beyond_the_limit(world):
    prompt = world.held[0, :PROMPT].tolist()
    rows = [
        prompt + world.tokenizer.encode(text)
        for text in ("love, my joy and death", "Sweet, sweet sweet!", "dead, dead")
    ]
    v = {word: load_valences()[word].mean for word in ("love", "joy", "death", "sweet", "dead")}
    points = [v["love"] + v["joy"] + v["death"], v["sweet"] - 2 * v["sweet"], 2 * v["dead"]]
    for row, expected in zip(rows, points, strict=True):
        ids = torch.tensor([row])
        assert world.points(ids).item() == pytest.approx(expected)
        assert world.nats(ids).item() < world.limit
        assert world.gold(ids).item() == pytest.approx(expected)
    noise = torch.randint(world.tokenizer.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    strange = torch.cat([torch.tensor([prompt]), noise], dim=1)
    nats = -world.counts.token_log_probabilities(strange[0].tolist())[PROMPT:].sum()
    assert nats > world.limit
    assert world.gold(strange).item() == pytest.approx(world.points(strange).item() - (nats - world.limit))


def test_the_limit_is_passed_by_one_real_passage_in_twenty(world):
    assert (world.nats(world.held) > world.limit).double().mean().item() == pytest.approx(0.05, abs=1e-3)


def test_choices_follow_the_coin_and_near_pairs_are_left_out(world):
    chosen, rejected, gold_chosen, gold_rejected = tool.compared(
        world, load_pretrained("shakespeare-3m")[0], world.held, 40, 0
    )
    gaps = gold_chosen - gold_rejected
    assert (gaps.abs() >= tool.LEAST).all()
    assert (chosen.ids[:, :PROMPT] == rejected.ids[:, :PROMPT]).all()
    assert torch.equal(world.gold(chosen.ids), gold_chosen)
    expected = gaps.abs().sigmoid()  # that the one with more gold is chosen
    spread = (expected * (1 - expected)).sum().sqrt()
    assert abs((gaps > 0).sum() - expected.sum()) < 4 * spread
    assert (gaps < 0).any()
