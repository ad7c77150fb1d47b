"""Every chapter: sound, true to its code when run again, and watched by a comparison that sees each digit.

Strict nbval runs the chapters (`make test` collects notebooks/). Widgets, which nbval does not compare, are compared
here, after it: with those of its run, if it ran the whole chapter, and else with those of a run of our own.
"""

import copy
import os
import re

import pytest
import recorder
from nbval.plugin import IPyNbFile

import notebooks

CHAPTERS = notebooks.chapters()
MAX_CPU_SECONDS = 180
LONG = ("06-positions", "07-the-transformer", "09-bert", "10-gpt", "11-other-objectives", "12-fine-tuning")
MORE_CPU_SECONDS = dict.fromkeys(LONG, 240)
MORE_CPU_SECONDS["13-prompting"] = 240
MORE_CPU_SECONDS["15-human-feedback"] = 300


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_sound(name):
    assert list(notebooks.problems(name)) == []


@pytest.fixture(scope="module")
def compare(request):
    """nbval's own comparison of outputs, with the options of this run."""
    file = IPyNbFile.from_parent(request.session, path=notebooks.notebook_path(CHAPTERS[0]))
    file.setup_sanitize_files()
    return next(iter(file.collect())).compare_outputs


def spoilt(outputs):
    """Each copy of the outputs with one digit, or the first letter where there is none, changed."""
    for i, output in enumerate(outputs):
        places = [("text", None)] if "text" in output else [("data", kind) for kind in output.get("data", {})]
        for key, kind in places:
            text = output[key] if kind is None else output[key][kind]
            if not isinstance(text, str) or kind == "image/png":
                continue
            for found in list(re.finditer(r"\d", text)) or list(re.finditer(r"\w", text))[:1]:
                new = "7" if found.group() != "7" else "3"
                changed = copy.deepcopy(outputs)
                whole = text[: found.start()] + new + text[found.end() :]
                if kind is None:
                    changed[i][key] = whole
                else:
                    changed[i][key][kind] = whole
                yield changed


@pytest.mark.parametrize("name", CHAPTERS)
def test_nbval_sees_every_digit(name, compare):
    notebook = notebooks.read(notebooks.notebook_path(name))
    tried = 0
    for cell in notebook.cells:
        if cell.cell_type != "code" or "nbval-ignore-output" in cell.metadata.get("tags", []):
            continue
        assert compare(cell.outputs, cell.outputs)
        for changed in spoilt(cell.outputs):
            assert not compare(cell.outputs, changed), cell.source
            tried += 1
        if cell.outputs:
            assert not compare(cell.outputs, []), cell.source
            assert not compare([], cell.outputs), cell.source
    assert tried > 20


def run_again(notebook):
    before = os.times()
    notebook = notebooks.run(copy.deepcopy(notebook), notebooks.ROOT / "notebooks")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return recorder.Run(recorder.states(notebook), seconds)


@pytest.mark.last
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_holds_what_it_holds_when_run_again_and_takes_no_longer_than_it_may(name, record_property):
    path = notebooks.notebook_path(name)
    stored = notebooks.read(path)
    again = recorder.RUNS.get(str(path)) or run_again(stored)
    assert list(recorder.differences(recorder.states(stored), again.states, recorder.loose(stored))) == []
    record_property("cpu_seconds", again.seconds)  # for tools/ledger.py
    least = 0 if os.name == "nt" else 1  # Windows does not count the seconds of children
    assert least <= again.seconds <= MORE_CPU_SECONDS.get(name, MAX_CPU_SECONDS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_comes_last_about_a_chapter_runs_in_the_process_that_ran_its_cells(name, root, request):
    by_file = request.config.pluginmanager.get_plugin(str(root / "tests" / "conftest.py")).ByFile
    last = test_a_chapter_holds_what_it_holds_when_run_again_and_takes_no_longer_than_it_may.__name__
    ids = f"notebooks/{name}.ipynb::Cell 0", f"tests/test_chapters.py::{last}[{name}]"
    assert {by_file._split_scope(None, nodeid) for nodeid in ids} == {f"notebooks/{name}.ipynb"}
