"""The benchmarks: the recipes are what they claim, the same model is the same elsewhere, the page is the tool's."""

import dataclasses
import json
import re

import pytest
import torch
from torch.testing import assert_close

import bench
import benchpage
from bookformer.config import ModelConfig
from bookformer.heads import LanguageModel
from bookformer.layers import Stack

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"vocab_size": 11, "context_length": 12, "d_model": 16, "n_heads": 4, "n_layers": 2}
RECORD = json.loads(bench.RECORD.read_text())


def made(**parts):
    """A model whose every number matters: no zeros, no ones."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**SIZES | parts)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


def parameters(model, vocab_size):
    config = ModelConfig(vocab_size=vocab_size, context_length=bench.CONTEXT, **model)
    return {name: p.numel() for name, p in LanguageModel(config).named_parameters()}


# --- recipes -------------------------------------------------------------------------------------------------------


def test_nanogpts_recipe_is_the_published_one():
    """config/train_shakespeare_char.py, and the options in the README."""
    config = bench.NANOGPT_TRAIN
    published = {
        "steps": 2000,
        "batch_size": 12,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "beta2": 0.99,
        "clip": 1.0,
    }
    assert {name: getattr(config, name) for name in published} == published
    assert config.warmup_fraction * config.steps == pytest.approx(100)
    assert config.final_fraction * config.learning_rate == pytest.approx(1e-4)
    assert config.optimizer == "adamw"
    model = ModelConfig(vocab_size=65, context_length=64, **bench.NANOGPT_MODEL)
    assert (model.n_layers, model.n_heads, model.d_model, model.ff_width) == (4, 4, 128, 512)
    assert (model.positions, model.norm, model.activation, model.bias) == ("learned", "layer", "gelu", False)
    assert (model.dropout, model.tie_embeddings, bench.CONTEXT) == (0.0, True, 64)


def test_it_has_as_many_parameters_as_nanogpt_says_and_ours_has_no_more():
    """nanoGPT prints 0.80M for its 65 characters; it does not count positions."""
    counted = parameters(bench.NANOGPT_MODEL, 65)
    positions = counted.pop("body.positions.table.weight")
    assert positions == 64 * 128
    assert f"{sum(counted.values()) / 1e6:.2f}M" == "0.80M"
    assert sum(parameters(bench.OURS_MODEL, 65).values()) < sum(counted.values()) / 4


def test_the_text_is_of_nanogpts_size_and_the_play_is_on_one_side():
    text, held = bench.texts()
    assert 1_000_000 < len(text) < 1_100_000
    assert held.startswith("THE TEMPEST")
    assert "Caliban" in held
    assert "Caliban" not in text
    assert (len(text), len(held)) == (RECORD["loss"]["characters"], RECORD["loss"]["held_out_characters"])


def test_what_was_recorded_is_of_these_recipes():
    for name, model, config in (
        ("nanogpt", bench.NANOGPT_MODEL, bench.NANOGPT_TRAIN),
        ("ours", bench.OURS_MODEL, bench.OURS_TRAIN),
    ):
        recorded = RECORD["loss"][name]
        assert recorded["model"] == model
        assert recorded["train"] == dataclasses.asdict(config)
        counted = sum(parameters(model, RECORD["loss"]["vocab_size"]).values())
        assert [run["parameters"] for run in recorded["runs"]] == [counted] * 3
        assert [run["seed"] for run in recorded["runs"]] == list(bench.SEEDS)


def test_ours_reaches_nanogpts_loss_in_a_third_of_its_time():
    for theirs, ours in zip(RECORD["loss"]["nanogpt"]["runs"], RECORD["loss"]["ours"]["runs"], strict=True):
        assert ours["held_out"] <= theirs["held_out"]
        assert ours["seconds"] <= theirs["seconds"] / 3


def test_a_run_can_be_run(monkeypatch):
    """The first steps, so that the recipe does train, and the same twice."""
    torch.manual_seed(0)
    ids = torch.randint(11, (500,))
    short = dataclasses.replace(bench.OURS_TRAIN, steps=3, batch_size=2)
    first, again = (bench.train(bench.OURS_MODEL, short, 1, ids, ids[:200], 11) for _ in range(2))
    assert first["held_out"] == again["held_out"]
    assert first["seconds"] > 0
    assert bench.train(bench.OURS_MODEL, short, 2, ids, ids[:200], 11)["held_out"] != first["held_out"]


# --- the same model elsewhere --------------------------------------------------------------------------------------


def test_the_same_gpt2():
    model = made(**bench.GPT2_LIKE)
    assert_close(bench.to_gpt2(model)(IDS).logits, model(IDS), **CLOSE)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_same_llama_and_the_same_text(kv_heads):
    model = made(**bench.LLAMA_LIKE, d_model=32, n_kv_heads=kv_heads, d_ff=20, norm_eps=1e-3, rotary_base=500.0)
    theirs = bench.to_llama(model)
    assert_close(theirs(IDS).logits, model(IDS), **CLOSE)
    written = bench.written_by(theirs, IDS[:1, :4], 8)
    assert torch.equal(written, bench.generate(model, IDS[:1, :4], 8, temperature=0))


def test_the_same_encoder():
    torch.manual_seed(0)
    config = ModelConfig(**SIZES, kind="encoder")
    ours = Stack(config, causal=False)
    for p in ours.parameters():
        p.data += 0.2 * torch.randn_like(p)
    x = torch.randn(2, 5, 16)
    assert_close(bench.to_torch(ours, config)(x), ours(x), **CLOSE)


def test_the_loss_in_windows_by_hand():
    model = made(**bench.LLAMA_LIKE)
    expected = -model(IDS[:, :-1]).log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0].mean(dim=1)
    assert_close(bench.losses(model, IDS), expected.detach(), **CLOSE)


# --- statistics ----------------------------------------------------------------------------------------------------


def test_pairs_are_timed_in_turns(monkeypatch):
    order, clock = [], iter(range(1000))
    monkeypatch.setattr(bench.time, "process_time", lambda: next(clock))
    times = bench.pairs(lambda: order.append("o"), lambda: order.append("t"), 4)
    assert "".join(order) == "ot" + "to" + "ot" + "to" + "ot"  # the first of each does not count
    assert times == {"ours": [1] * 4, "theirs": [1] * 4}


def test_a_ratio_and_its_interval():
    times = {"ours": [1.0] * 9, "theirs": [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 9.0]}
    assert benchpage.against(times, "theirs", "ours") == "2.000 (2.000 to 2.000)"
    assert benchpage.against(times, "ours", "theirs") == "0.500 (0.500 to 0.500)"


def test_the_interval_holds_the_median_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(200, 15, generator=generator).tolist()
    intervals = [benchpage.median_interval(values, resamples=200) for values in draws]
    assert 0.88 < sum(low <= 0 <= high for low, high in intervals) / 200 < 0.995
    assert benchpage.median_interval([1, 2, 3]) == (1, 3)
    with pytest.raises(ValueError, match="an interval needs at least two values, got 1"):
        benchpage.median_interval([1.0])


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_tool_makes_of_the_record():
    assert set(RECORD) == set(bench.MEASURES) == set(benchpage.SECTIONS)
    assert bench.RECORD.with_suffix(".md").read_text(encoding="utf-8") == benchpage.page(RECORD)


def test_the_page_says_what_did_not_come_out_too():
    found = json.loads(json.dumps(RECORD["loss"]))
    assert "With every seed, our recipe ends at or below" in benchpage.loss(found)
    found["ours"]["runs"][1]["held_out"] = 9.0
    assert "Not with every seed, our recipe ends at or below" in benchpage.loss(found)
    case = json.loads(json.dumps(RECORD["int8"]))
    case["theirs"], case["change"] = [2 * t for t in case["ours"]], 0.005
    assert "Here it does." in benchpage.int8(case)
    case["change"] = 0.02
    assert "Here it does not." in benchpage.int8(case)
    case["theirs"], case["change"] = [1.2 * t for t in case["ours"]], 0.0
    assert "Here it does not." in benchpage.int8(case)


def test_the_page_names_no_machine_and_no_place():
    text = bench.RECORD.read_text() + bench.RECORD.with_suffix(".md").read_text()
    assert set(re.findall(r"https?://[^/]+", text)) == {"https://github.com", "https://kellerjordan.github.io"}
    assert not re.search(r"/(home|work|root|tmp|usr)\b", text)


def test_an_unknown_section(monkeypatch):
    monkeypatch.setattr(bench.sys, "argv", ["bench.py", "speed"])
    with pytest.raises(SystemExit, match="there is no section speed; there is loss, steps"):
        bench.main()
