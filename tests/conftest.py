"""What several test files share."""

import subprocess
import sys
from pathlib import Path

import pytest
import recorder

import environment

ROOT = Path(__file__).parents[1]


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
