"""What is shipped is what the recorded runs made: their weights, their loss, and the first steps of their training."""

import itertools
import json
import shutil

import pytest

import pretrain
from bookformer import weights
from bookformer.bpe import END_OF_TEXT
from bookformer.config import ModelConfig, TrainConfig
from bookformer.metrics import nats_per_character
from bookformer.weights import load_pretrained, load_record, load_run, pretrained_names

NAMES = pretrained_names()


def test_there_is_one():
    assert "shakespeare-3m" in NAMES
    assert set(NAMES) <= set(pretrain.RECIPES)


def test_all_of_them_are_small():
    assert sum(path.stat().st_size for path in weights.MODELS.glob("*.safetensors")) < 16_000_000
    assert max(load_run(name)["parameters"] for name in NAMES) <= 8_000_000


@pytest.fixture(scope="module")
def works():
    return pretrain.texts()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_on_the_held_out_plays_is_the_recorded_one(name, works):
    model, tokenizer = load_pretrained(name)
    assert not model.training
    ids = pretrain.encode(works[1], tokenizer)
    found = nats_per_character(model, tokenizer, ids, model.config.context_length)
    recorded = load_run(name)["held_out_nats_per_character"]
    assert found == pytest.approx(recorded, abs=5e-4)
    assert recorded < 1.45


@pytest.mark.parametrize("name", NAMES)
def test_the_run_begins_again_as_it_was_recorded(name, works):
    """The first steps of training, with the same data, seed and threads, to what another processor's rounding does."""
    run, recipe = load_run(name), pretrain.RECIPES[name]
    train, held = works
    tokenizer = load_pretrained(name)[1]
    ids = pretrain.encode(train, tokenizer)
    sample = pretrain.sample_of(pretrain.encode(held, tokenizer), recipe.model.context_length)
    records = pretrain.steps(recipe, pretrain.start(recipe), ids, sample, None)
    losses = [record.loss for record in itertools.islice(records, 3)]
    assert losses == pytest.approx(run["losses"][:3], abs=2e-3)
    assert len(set(run["losses"][:3])) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_this_recipe_and_this_data(name, works):
    run, recipe = load_run(name), pretrain.RECIPES[name]
    train, held = works
    assert ModelConfig(**run["model"]) == recipe.model  # settings that came later have their defaults
    assert TrainConfig(**run["train"]) == recipe.train
    assert run["data"] == pretrain.data_of(train, held, load_pretrained(name)[1])
    assert len(run["losses"]) == recipe.train.steps
    assert run["command"] == f"python tools/pretrain.py {name}"


def test_the_tokenizer_is_learnt_from_the_training_works_alone(works):
    _, tokenizer = load_pretrained("shakespeare-3m")
    assert tokenizer.merges == pretrain.tokenizer_of(works[0]).merges
    assert tokenizer.special == {END_OF_TEXT: tokenizer.vocab_size - 1}


def test_an_unknown_record():
    with pytest.raises(ValueError, match=r"there is no recorded run 'bacon'; there is .*prompting"):
        load_record("bacon")
    assert load_record("prompting")["command"] == "python tools/prompting.py"


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"there is no pretrained model 'bacon'; there is .*shakespeare-3m"):
        load_pretrained("bacon")


@pytest.mark.parametrize("file", ["shakespeare-3m.safetensors", "shakespeare.tokenizer.json"])
def test_a_file_that_is_not_the_runs_is_refused(file, tmp_path, monkeypatch):
    shutil.copytree(weights.MODELS, tmp_path / "models")
    monkeypatch.setattr(weights, "MODELS", tmp_path / "models")
    load_pretrained("shakespeare-3m")
    content = bytearray((tmp_path / "models" / file).read_bytes())
    content[-5] ^= 1
    (tmp_path / "models" / file).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{file} is not the file that the recorded run wrote: its sha256 is \w{{64}}"
    ):
        load_pretrained("shakespeare-3m")


def test_an_interrupted_pretraining_goes_on_and_writes_the_same(tmp_path, monkeypatch, works):
    """The tool itself, on a small recipe: stopped after some steps, called again, against one that was not stopped."""
    small = pretrain.Recipe(
        pretrain.ModelConfig(vocab_size=300, context_length=16, d_model=16, n_heads=2, n_layers=1),
        pretrain.TrainConfig(steps=6, batch_size=2, validate_every=3, checkpoint_every=2),
    )
    text = works[0]["sonnets"]
    monkeypatch.setattr(pretrain, "RECIPES", {"small": small})
    monkeypatch.setattr(pretrain, "VOCAB_SIZE", 300)
    monkeypatch.setattr(pretrain, "texts", lambda: ({"a": text[:9000]}, {"b": text[9000:12_000]}))
    made = []
    for stops in ((), (3, 5)):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        monkeypatch.setattr(pretrain, "MODELS", folder)
        monkeypatch.setattr(pretrain, "WORK", folder / "work")
        monkeypatch.setattr(pretrain, "library_hash", lambda: "")
        for stop in stops:
            whole = pretrain.steps
            monkeypatch.setattr(pretrain, "steps", lambda *a, stop=stop, whole=whole: cut(whole(*a), stop))
            with pytest.raises(KeyboardInterrupt):
                pretrain.pretrain("small")
            monkeypatch.setattr(pretrain, "steps", whole)
        pretrain.pretrain("small")
        run = json.loads((folder / "small.json").read_text())
        made.append({key: value for key, value in run.items() if key != "seconds"})
    assert made[0] == made[1]
    assert len(made[0]["losses"]) == 6
    assert [step for step, _ in made[0]["held_out_sample"]] == [3, 6]


def cut(records, stop):
    for record in records:
        yield record
        if record.step == stop:
            raise KeyboardInterrupt


def test_a_pause_or_a_second_start_does_not_count():
    rows = [{"step": n, "seconds": s} for n, s in ((1, 1.0), (2, 3.0), (3, 5.0), (4, 905.0), (3, 0.5), (4, 2.5))]
    assert pretrain.seconds(rows) == 4 * 2.0
