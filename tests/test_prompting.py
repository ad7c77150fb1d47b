"""The recorded run of prompts: what it asks, that it begins again as it was recorded, and goes on when interrupted."""

import json
from collections import Counter

import pytest
import torch

import prompting
from bookformer import weights
from bookformer.weights import load_pretrained, load_record, load_smollm2
from prompting import Setting

RECORD = load_record("prompting")
TESTS, POOL = prompting.sentences()
MEASURE = prompting.measure


def test_what_is_asked_about_shares_nothing_with_the_examples():
    assert Counter(label for _, label in TESTS) == {0: 80, 1: 80}
    assert Counter(label for _, label in TESTS[:40]) == {0: 20, 1: 20}
    assert Counter(label for _, label in POOL) == {0: 200, 1: 200}
    assert len({text for text, _ in TESTS + POOL}) == 560


def test_the_record_is_of_these_sentences_and_settings():
    assert RECORD["data"] == prompting.data_of(TESTS, POOL)
    assert RECORD["templates"] == prompting.TEMPLATES
    labels = [label for _, label in POOL]
    assert len(RECORD["settings"]) == 2 * (1 + 4 * 5) + 7
    for row, setting in zip(RECORD["settings"], prompting.settings(), strict=True):
        assert {name: row[name] for name in vars(setting)} == vars(setting)
        assert row["examples"] == setting.examples(labels)
        assert len(row["margins"]) == len(TESTS)
        assert len(row["blank_margins"]) == len(prompting.BLANKS)


def test_examples_are_half_of_each_class_and_orders_are_of_the_same():
    labels = [label for _, label in POOL]
    for shots in (2, 4, 8):
        for draw in range(5):
            chosen = Setting("label", shots, draw, 0).examples(labels)
            assert Counter(labels[i] for i in chosen) == {0: shots // 2, 1: shots // 2}
            assert len(set(chosen)) == shots
    orders = [Setting("label", 4, 0, order).examples(labels) for order in range(prompting.ORDERS)]
    assert len({tuple(sorted(chosen)) for chosen in orders}) == 1
    assert len({tuple(chosen) for chosen in orders}) > 4
    assert len({tuple(Setting("label", 4, draw, 0).examples(labels)) for draw in range(5)}) == 5
    assert Setting("label", 0, 0, 0).examples(labels) == []


def test_a_prompt_by_hand():
    pool = [("Bad.", 0), ("Good.", 1)] * 2
    setting = Setting("label", 2, 0, 0)
    first, second = (pool[i] for i in setting.examples([0, 1, 0, 1]))
    words = (" negative", " positive")
    assert prompting.prompts(setting, ["So so."], pool) == [
        f"Review: {first[0]}\nSentiment:{words[first[1]]}\n\n"
        f"Review: {second[0]}\nSentiment:{words[second[1]]}\n\n"
        "Review: So so.\nSentiment:"
    ]
    assert prompting.prompts(Setting("it was", 0, 0, 0), ["So so."], pool) == ["So so. It was"]


@pytest.mark.parametrize("at", [0, 21, 30])
def test_the_run_begins_again_as_it_was_recorded(at):
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    setting = list(prompting.settings())[at]
    row = prompting.measure(model, tokenizer, setting, [text for text, _ in TESTS[:8]], POOL)
    recorded = RECORD["settings"][at]
    assert row["margins"] == pytest.approx(recorded["margins"][:8], abs=0.01)
    assert row["blank_margins"] == pytest.approx(recorded["blank_margins"], abs=0.01)
    assert len(set(row["margins"])) == 8


def test_an_interrupted_run_goes_on_and_writes_the_same(tmp_path, monkeypatch):
    small = load_pretrained("shakespeare-3m")
    monkeypatch.setattr(prompting, "load_smollm2", lambda: small)
    monkeypatch.setattr(prompting, "SHOTS", (0, 1))
    monkeypatch.setattr(prompting, "DRAWS", 1)
    monkeypatch.setattr(prompting, "ORDERS", 1)
    monkeypatch.setattr(prompting, "TESTS", 4)
    records = []
    for stop in (None, 2):
        monkeypatch.setattr(prompting, "WORK", tmp_path / f"work {stop}")
        monkeypatch.setattr(prompting, "RUNS", tmp_path / f"runs {stop}")
        monkeypatch.setattr(prompting, "library_hash", lambda: "that of the library")
        measured = []

        def measure(*arguments, stop=stop, measured=measured):
            if len(measured) == stop:
                measured.append(None)
                raise KeyboardInterrupt
            measured.append(MEASURE(*arguments))
            return measured[-1]

        monkeypatch.setattr(prompting, "measure", measure)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                prompting.main()
            assert not (tmp_path / f"runs {stop}").exists()
        prompting.main()
        assert len([row for row in measured if row]) == 4
        records.append(json.loads((tmp_path / f"runs {stop}" / "prompting.json").read_text()))
        records[-1].pop("cpu_seconds")
    assert records[0] == records[1]
    assert records[0]["data"]["sentences"] == 4
    with (tmp_path / "work 2" / "prompting.jsonl").open() as file:
        assert len(file.readlines()) == 5
    monkeypatch.setattr(prompting, "TESTS", 6)
    with pytest.raises(SystemExit, match="is of other sentences"):
        prompting.main()


def test_the_record_ships_with_the_library():
    assert (weights.RUNS / "prompting.json").stat().st_size < 200_000
