"""Every chapter: sound, true to its code when run again, and watched by a comparison that sees each digit.

Strict nbval runs the chapters too (`make test` collects notebooks/). Widgets, which nbval
does not compare, are compared here.
"""

import base64
import copy
import os
import re

import numpy as np
import pytest
from nbval.plugin import IPyNbFile

import notebooks

CHAPTERS = notebooks.chapters()
MAX_CPU_SECONDS = 180


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


def states(notebook):
    return notebook.metadata.get("widgets", {}).get(notebooks.STATE, {}).get("state", {})


def numbers(model):
    """The bytes that a widget's model holds, by name."""
    packed = {"/".join(b["path"]): base64.b64decode(b["data"]) for b in model.get("buffers", [])}
    kind = "<f4" if model["state"].get("exact") else np.uint8
    return {
        name: np.frombuffer(data, kind).astype(float) / (1 if kind == "<f4" else 255) for name, data in packed.items()
    }


@pytest.mark.parametrize("name", CHAPTERS)
def test_widgets_hold_what_they_hold_when_run_again(name):
    stored = notebooks.read(notebooks.notebook_path(name))
    before = os.times()
    again = notebooks.run(copy.deepcopy(stored), notebooks.ROOT / "notebooks")
    after = os.times()
    assert list(states(again)) == list(states(stored))
    for key, model in states(stored).items():
        assert states(again)[key]["state"] == model["state"]
        theirs = numbers(states(again)[key])
        for path, values in numbers(model).items():
            assert np.abs(values - theirs[path]).max() <= 1 / 255 + 1e-9, (key, path)
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert os.name == "nt" or 1 < seconds <= MAX_CPU_SECONDS  # Windows does not count them
