"""What several test files share."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import recorder
from xdist.scheduler import LoadScopeScheduling

import environment

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests of `make test` share the cores as processes


def pytest_configure(config):
    """Stop before the first test when the browser tests could not run: they are never skipped."""
    if not config.option.collectonly and environment.find_browser() is None:
        pytest.exit(environment.no_browser(), returncode=4)
    config.addinivalue_line("markers", "last: runs after all other tests, those of the notebooks' cells too")
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    recorder.record(patch)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


class ByFile(LoadScopeScheduling):
    """Tests of one file run in one process, and share its fixtures; so does what comes last about a chapter.

    It asks what the recorder noted while nbval ran the chapter in that process.
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        chapter = re.fullmatch(r"test_a_chapter_holds_what_it_holds\w*\[(.+)\]", test)
        return f"notebooks/{chapter[1]}.ipynb" if chapter else file


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A function that builds a book, a folder with _config.yml, without a single warning, and returns its HTML."""

    def build(folder):
        out = tmp_path_factory.mktemp("built")
        command = [Path(sys.executable).with_name("jupyter-book"), "build", str(folder), "--path-output", str(out)]
        done = subprocess.run([*command, "-W", "-n", "--keep-going"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "build succeeded." in done.stdout
        return out / "_build" / "html"

    return build
