"""`make check` finds what it should: a small sound chapter, spoilt in one way at a time."""

import copy
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

import notebooks

TEXT = (
    notebooks.HEADER
    + """
# A chapter

See [this chapter](01-sound.ipynb), and [a page](../book/page.md).

```{code-cell} ipython3
SEED = 0
print(6 * 7)
```

```{code-cell} ipython3
---
mystnb:
  image:
    alt: A line that rises.
---
from bookformer import plots
plots.curves([1, 2], {"line": [1, 2]}, xlabel="x", ylabel="y")
```

```{code-cell} ipython3
:tags: [nbval-ignore-output]

loss = 2.5
loss
```

```{code-cell} ipython3
from bookformer.checks import below, check
from bookformer.widgets import AttentionView
check("the loss is low", below(loss, 3))
AttentionView([[[[1.0]]]], ["a"])
```
"""
)


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A folder with one chapter, executed once for all tests here."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("book/chapters", "notebooks", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "requirements.txt").write_text("")
    (folder / "requirements-book.txt").write_text("")
    (folder / "requirements-data.txt").write_text("")
    (folder / "book/page.md").write_text("# A page\n")
    (folder / "book/chapters/01-sound.md").write_text(TEXT)
    assert notebooks.execute("01-sound", folder)
    return folder


@pytest.fixture
def chapter(executed):
    """The chapter as a notebook to spoil; it is put back afterwards."""
    path, text = executed / "notebooks/01-sound.ipynb", executed / "book/chapters/01-sound.md"
    before = path.read_bytes(), text.read_bytes()
    yield Chapter(executed, notebooks.read(path))
    path.write_bytes(before[0])
    text.write_bytes(before[1])


class Chapter:
    def __init__(self, folder, notebook):
        self.folder, self.notebook = folder, notebook
        self.text = folder / "book/chapters/01-sound.md"

    def code(self, i):
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"][i]

    def say(self, output):
        self.code(0).outputs[0].text = output

    def problems(self):
        notebooks.write(copy.deepcopy(self.notebook), self.folder / "notebooks/01-sound.ipynb")
        return list(notebooks.problems("01-sound", self.folder))

    def edit_text(self, old, new):
        self.text.write_text(self.text.read_text().replace(old, new))


def test_a_sound_chapter_has_no_problems(chapter):
    assert chapter.problems() == []


def spoil_outputs(chapter):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    chapter.code(0).outputs.append(error)


SPOILT = {
    "an error output": (spoil_outputs, "the output is an error: ValueError: no"),
    "a missing count": (lambda c: c.code(1).update(execution_count=None), "its execution count is None, not 2"),
    "counts out of order": (lambda c: c.code(0).update(execution_count=7), "its execution count is 7, not 1"),
    "an address": (lambda c: c.say("<object at 0x7f3a2b1c>"), "the output holds an address: '0x7f3a2b1c'"),
    "a path": (lambda c: c.say("saved to /home/me/x"), "the output holds a path: '/home/'"),
    "a clock": (lambda c: c.say("done at 12:30:59"), "the output holds a clock: '12:30:59'"),
    "a date": (lambda c: c.say("on 2026-01-31"), "the output holds a clock: '2026-01-31'"),
    "a time taken": (lambda c: c.say("took 3.2 ms"), "the output holds a clock: '3.2 ms'"),
    "a progress bar": (lambda c: c.say("50%|#### "), "the output holds a progress bar"),
    "a warning": (lambda c: c.say("x.py:1: UserWarning: careful"), "the output holds a warning"),
    "stderr": (lambda c: c.code(0).outputs[0].update(name="stderr"), "writes to stderr: 42"),
    "no alt text": (lambda c: c.code(1).outputs[0].metadata.clear(), "the picture has no alt text"),
    "a lost widget": (lambda c: c.notebook.metadata.pop("widgets"), "the widget's state is not stored"),
    "a skipped cell": (lambda c: c.code(0).metadata.update(tags=["nbval-skip"]), "is kept from nbval"),
    "code that was not run": (lambda c: c.code(0).update(source="SEED = 0\nprint(42)"), "not the code that made"),
    "text that differs": (lambda c: c.edit_text("# A chapter", "# Another"), "text and notebook differ"),
    "a broken link": (lambda c: c.edit_text("01-sound.ipynb", "gone.ipynb"), "broken link: gone.ipynb"),
    "a directive": (lambda c: c.edit_text("See", ":::{note}\nNo\n:::\n\nSee"), "':::{' is MyST"),
    "a fenced directive": (lambda c: c.edit_text("See", "```{note}\nNo\n```\n\nSee"), "'```{' is MyST"),
    "a role": (lambda c: c.edit_text("See", "{doc}`x` See"), "'{doc}`' is MyST"),
    "too large": (lambda c: c.say("x" * 1_100_000), "1.1 MB with its outputs; a chapter stays under 1 MB"),
    "too many ignored": (
        lambda c: [c.code(i).metadata.update(tags=["nbval-ignore-output"]) for i in (0, 1)],
        "3 of 4 code cells are tagged nbval-ignore-output: at most a third",
    ),
    "an unchecked result": (
        lambda c: c.code(2).update(source=c.code(2).source.replace("loss", "gain")),
        "the next check uses none of ['gain']",
    ),
}


@pytest.mark.parametrize("way", SPOILT)
def test_what_is_spoilt_is_found(chapter, way):
    spoil, message = SPOILT[way]
    spoil(chapter)
    assert any(message in problem for problem in chapter.problems()), chapter.problems()


def test_a_missing_half_is_found(chapter):
    chapter.text.unlink()
    assert chapter.problems() == ["book/chapters/01-sound.md is missing: run `make notebooks`"]


def test_the_command_fails_with_the_number_of_problems(chapter, capsys):
    assert notebooks.check(chapter.folder) == 0
    chapter.edit_text("# A chapter", "# Another")
    assert notebooks.check(chapter.folder) == 1
    assert "01-sound: text and notebook differ" in capsys.readouterr().out


def test_an_older_library_is_a_warning(chapter, capsys):
    (chapter.folder / "lib/new.py").write_text("new = 1")
    assert chapter.problems() == []
    notebooks.check(chapter.folder)
    assert "01-sound: warning: ran with an older library" in capsys.readouterr().out
    (chapter.folder / "lib/new.py").unlink()


def test_an_unchanged_chapter_is_not_run_again(chapter):
    assert not notebooks.execute("01-sound", chapter.folder)


def test_running_again_changes_nothing_in_the_file(chapter):
    path = chapter.folder / "notebooks/01-sound.ipynb"
    before = path.read_text()
    assert notebooks.execute("01-sound", chapter.folder, everything=True)
    assert path.read_text() == before


def test_the_changed_one_of_text_and_notebook_wins(chapter):
    chapter.edit_text("# A chapter", "# From the text")
    synced = notebooks.sync("01-sound", chapter.folder)
    assert "# From the text" in synced.cells[0].source
    assert synced.cells[1].outputs[0].text == "42\n"  # an edit of the text keeps the outputs
    synced.cells[0].source = "# From the notebook"
    synced.metadata["editor"] = "adds this"
    nbformat.write(synced, chapter.folder / "notebooks/01-sound.ipynb")
    os.utime(chapter.text)  # whichever file is the newer
    notebooks.sync("01-sound", chapter.folder)
    assert "# From the notebook" in chapter.text.read_text()
    assert "adds this" not in (chapter.folder / "notebooks/01-sound.ipynb").read_text()
    assert list(notebooks.problems("01-sound", chapter.folder)) == []


def test_two_changes_are_refused_and_both_kept(chapter):
    path = chapter.folder / "notebooks/01-sound.ipynb"
    chapter.edit_text("# A chapter", "# From the text")
    chapter.notebook.cells[0].source = "# From the notebook"
    nbformat.write(chapter.notebook, path)
    before = chapter.text.read_text(), path.read_text()
    with pytest.raises(ValueError, match=r"01-sound.md and 01-sound.ipynb were both changed: undo one"):
        notebooks.sync("01-sound", chapter.folder)
    assert (chapter.text.read_text(), path.read_text()) == before


def test_no_random_name_is_left(chapter):
    text = notebooks.nbformat.writes(chapter.notebook)
    assert '"model_id": "' + "0" * 31 in text
    assert len(set(re.findall(r"\b[0-9a-f]{32}\b", text)) - {f"{i:032x}" for i in range(9)}) == 0


def test_jupyterlab_s_pairing_writes_the_same_text(chapter, root):
    """What `make edit` saves through jupytext is what `make notebooks` would write."""
    shutil.copy(root / "jupytext.toml", chapter.folder)
    chapter.notebook.cells[0].source = chapter.notebook.cells[0].source.replace("# A chapter", "# Edited in JupyterLab")
    path = chapter.folder / "notebooks/01-sound.ipynb"
    notebooks.write(chapter.notebook, path)
    os.utime(path, (chapter.text.stat().st_mtime + 5,) * 2)
    wanted = chapter.text.read_text().replace("# A chapter", "# Edited in JupyterLab")
    subprocess.run([sys.executable, "-m", "jupytext", "--sync", path], check=True, capture_output=True)
    assert chapter.text.read_text() == notebooks.as_text(notebooks.from_text(wanted))
