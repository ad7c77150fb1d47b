"""The page of the chapters in numbers: counted right, and of the chapters as they stand."""

import json

import nbformat
import pytest

import ledger
import notebooks

RECORD = json.loads(ledger.TIMES.read_text())


def output(**parts):
    return nbformat.from_dict({"output_type": "display_data", "data": parts, "metadata": {}})


@pytest.fixture
def notebook():
    new = nbformat.v4
    code = [new.new_code_cell(source) for source in ("check(...)", "train()", "view", "for i in range(2): check(...)")]
    said = "Checked: one is one.\nsome number\nChecked: two is two.\n"
    code[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=said)]
    code[1].metadata["tags"] = ["nbval-ignore-output"]
    code[2].outputs = [output(**{notebooks.VIEW: {"model_id": "0"}}), output(**{"text/plain": "3"})]
    code[3].outputs = [nbformat.v4.new_output("stream", name="stdout", text="Checked: a.\n")]
    prose = [
        "# A title\n\n**1.** is no exercise here.",
        "> **What the articles say (row 7).** This.\n\n> **What the articles say (rows 10, 27 and 35).** That.",
        "> **What the articles say.** Nothing of this.\n\nWhat the articles say (row 2) elsewhere.",
        "## Exercises\n\n**1.** How many?\n\n**2.** Why?\n\n**Both** are hard.",
    ]
    return new.new_notebook(cells=[*map(new.new_markdown_cell, prose), *code])


def test_a_chapter_is_counted(notebook):
    assert ledger.counts(notebook) == [4, 3, 5, 1, 2, 1]


def test_the_page_is_what_the_tool_writes():
    assert ledger.PAGE.read_text() == ledger.page(RECORD)


def test_every_chapter_has_its_row_and_the_last_one_adds_them_up():
    rows = [line.strip("| ").split(" | ") for line in ledger.PAGE.read_text().splitlines() if line.startswith("|")]
    chapters, together = rows[2:-1], rows[-1]
    assert [row[0] for row in chapters] == [name[:2] for name in notebooks.chapters()]
    assert together[0] == "**together**"
    for i in range(2, 9):  # the row's first cell, a number, is empty
        assert sum(int(row[i]) for row in chapters) == pytest.approx(int(together[i - 1]), abs=10 if i == 2 else 0)


@pytest.mark.parametrize("name", notebooks.chapters())
def test_its_seconds_are_those_of_the_chapter_as_it_stands(name):
    assert RECORD["chapters"][name]["code"] == ledger.code_of(name)
    assert RECORD["chapters"][name]["seconds"] > 1
