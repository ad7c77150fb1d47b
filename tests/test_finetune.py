"""The recorded runs of the chapter on fine-tuning: of this data and recipe, and beginning again as they began."""

import hashlib
import itertools

import pytest
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression

import finetune
import reader
from bookformer import checkpoints
from bookformer.metrics import predict
from bookformer.weights import RUNS, load_minilm, load_record


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


@pytest.fixture(scope="module")
def split(minilm):
    return finetune.sides(minilm[1])


def test_the_record_is_of_this_data_and_recipe(split):
    record = load_record("finetune")
    wanted = finetune.about(split)
    assert {key: record[key] for key in wanted} == wanted
    assert list(record["seeds"]) == [str(seed) for seed in finetune.SEEDS][: len(record["seeds"])]
    assert len(record["seeds"]) >= 3
    assert len(split["test"].texts) > 1000


def test_the_cheap_ways_are_computed_again(minilm, split):
    """Words and features at 16 labels, and the first losses of LoRA, which begin at the regression's."""
    body, tokenizer = minilm
    padding = tokenizer.special["[PAD]"]
    recorded = load_record("finetune")["seeds"]["0"]["16"]
    few, chosen = finetune.few_of(split["train"], 16, 0)
    features = predict(finetune.Mean(body), few.ids, padding)
    probe = LogisticRegression(C=0.1, max_iter=2000).fit(features, few.labels)
    model = finetune.start("lora", body, probe, 8, 0)
    short = finetune.Side(few.texts, few.ids, few.labels)
    records = finetune.train(model, short, short, padding, finetune.RATES["lora"], 16, 0)
    losses = [record.loss for record in records[:3]]
    assert losses == pytest.approx(recorded["lora 8"]["losses"], abs=2e-3)
    assert len(set(losses)) == 3
    assert len(chosen) == 16


def test_the_readers_run_begins_again_as_it_was_recorded(minilm):
    body, tokenizer = minilm
    run = load_record("reader")
    taught = reader.questions(tokenizer)
    assert checkpoints.digest(*(f"{q.ids} {q.span}" for q in taught)) == run["questions_sha256"]
    model = reader.start(body)
    records = itertools.islice(reader.steps(model, taught, tokenizer.special["[PAD]"]), 3)
    losses = [record.loss for record in records]
    assert losses == pytest.approx(run["losses"][:3], abs=2e-3)
    assert len(run["losses"]) == reader.TRAIN.steps


def test_what_is_shipped_is_what_the_reader_learnt():
    content = (RUNS / "reader.safetensors").read_bytes()
    run = load_record("reader")
    assert hashlib.sha256(content).hexdigest() == run["weights_sha256"]
    assert all(t.dtype == torch.half and t.isfinite().all() for t in safetensors.torch.load(content).values())
