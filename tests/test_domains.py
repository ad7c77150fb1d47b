"""The domains' texts are those that the book was written with, and no held-out line is one that was trained on."""

import pytest

from bookformer.data import near_duplicates
from bookformer.domains import hold_out, load_domains, load_licences, load_medicine, word_runs


@pytest.fixture(scope="module")
def domains():
    return load_domains()


def test_a_category_has_its_names_other_names_and_notes():
    medicine = load_medicine()
    assert len(medicine) == 1918
    assert medicine["A00"] == [
        "Cholera",
        "Cholera due to Vibrio cholerae 01, biovar cholerae",
        "Classical cholera",
        "Cholera due to Vibrio cholerae 01, biovar eltor",
        "Cholera eltor",
        "Cholera, unspecified",
    ]
    assert "high blood pressure" in medicine["I10"]  # what the category includes
    assert "Tuberculous bronchiectasis" in medicine["A15"]  # another name of a part of it
    assert "Hereditary factor IX deficiency" in medicine["D67"]
    assert all(line for lines in medicine.values() for line in lines)


def test_a_licence_reads_as_its_original():
    licences = load_licences()
    assert len(licences) == 53
    assert licences["Apache-2.0"][:2] == ["Apache License", "Version 2.0, January 2004"]
    text = {name: "\n".join(lines) for name, lines in licences.items()}
    assert not [name for name, each in text.items() if "<<" in each or ">>" in each or "  " in each]
    assert '<ORGANIZATION> ("<OWNER>"), the Original Program' in text["LPL-1.0"]
    assert "RESULTING FROM ITS USE." in text["CC-BY-NC-SA-3.0"]


def test_every_domain_has_both_sides_and_they_share_no_line(domains):
    assert list(domains) == ["medicine", "law", "software"]
    for train, held in domains.values():
        assert sum(map(len, train)) > 80_000
        assert sum(map(len, held)) > 15_000
        trained = {line for text in train for line in text.split("\n")}
        assert not trained & {line for text in held for line in text.split("\n")}


def test_every_domain_has_few_runs_of_words_on_both_sides(domains):
    for train, held in domains.values():
        trained = {run for text in train for run in word_runs(text)}
        runs = [run for text in held for run in word_runs(text)]
        assert sum(run in trained for run in runs) < len(runs) / 20


def test_of_licences_each_fourth_is_held_out(domains):
    assert [len(side) for side in domains["law"]] == [40, 13]


def test_the_documents_come_in_an_order_that_is_drawn_and_the_same_every_time(domains):
    held, train = domains["medicine"][1], domains["software"][0]
    assert held[0].startswith("Fissure and fistula of anal and rectal regions\n")
    assert held[1].startswith("Acquired pure red cell aplasia [erythroblastopenia]\n")
    assert train[0].startswith("Would you like to get notified about official Jupyter news?\n")


def test_no_held_out_line_of_software_is_nearly_one_that_was_trained_on(domains):
    train, held = ([line for text in side for line in text.split("\n")] for side in domains["software"])
    pairs = near_duplicates(train + held)
    assert not [pair for pair in pairs if pair[0] < len(train) <= pair[1]]


LINES = ["the quick brown fox jumps over the lazy dog", "a wholly different sentence about nothing at all"]


def test_every_nth_document_is_held_out_and_repeats_go():
    nearly = LINES[0] + "s"
    documents = [["one line"], [LINES[1], "the second held out"], ["three lines", nearly], [LINES[0], "the last"]]
    train, held = hold_out(documents, every=2)
    assert train == ["one line", "three lines\n" + nearly]
    assert held == [LINES[1] + "\nthe second held out", "the last"]


def test_a_line_of_a_held_out_document_that_is_trained_on_later_goes_too():
    train, held = hold_out([["first"], ["second", LINES[0]], [LINES[0]]], every=2)
    assert train == ["first", LINES[0]]
    assert held == ["second"]


def test_a_document_of_which_nothing_stays_goes():
    train, held = hold_out([[LINES[0]], ["held"], [LINES[0]]], every=2)
    assert (train, held) == ([LINES[0]], ["held"])


def test_a_run_of_words_is_without_case_and_marks():
    assert word_runs("The work, and\n(c) YOU", 3) == ["the work and", "work and c", "and c you"]
    assert word_runs("one two three four five six seven") == []
    assert word_runs("one two three four five six seven eight") == ["one two three four five six seven eight"]


WORDS = [f"word{i}" for i in range(60)]
TRAINED = " ".join(WORDS[:20])


@pytest.mark.parametrize(
    ("copied", "own", "kept"),
    [
        (8, 4, False),  # one run of the five stands in the training text
        (8, 5, True),  # one of six
        (9, 8, False),  # two of ten
        (9, 9, True),  # two of eleven
        (7, 5, True),  # none
    ],
)
def test_a_held_out_line_goes_if_a_fifth_of_its_runs_of_eight_words_are_trained_on(copied, own, kept):
    line = " ".join(WORDS[:copied] + WORDS[30 : 30 + own]).upper()
    _, held = hold_out([[TRAINED], [line, "stays"]], every=2)
    assert held == [line + "\nstays" if kept else "stays"]


def test_a_clause_of_the_training_text_may_run_over_its_lines_and_a_document_of_copies_goes():
    halves = [" ".join(WORDS[:5]), " ".join(WORDS[5:10])]
    _, held = hold_out([halves, [" ".join(WORDS[1:9])], ["other"], ["short of eight words"]], every=2)
    assert held == ["short of eight words"]


def test_sides_without_text():
    with pytest.raises(ValueError, match=r"every \(1\) must be at least 2"):
        hold_out([["a"]], every=1)
    with pytest.raises(ValueError, match="1 documents leave 1 to train on, and 0 held out"):
        hold_out([["a line"]])
