"""A chapter's notebook, alone in an empty folder, installs what it needs, and leaves what is there as it is.

The environment is Colab's but for Python and torch: a new venv with Colab's versions, to which the torch of these
tests is lent. The library comes as a wheel built here. Packages are fetched, so these tests need the network.
Of most chapters only the first cells run there, as far as the imports: nbval runs the whole of each elsewhere. WHOLE
names those that run to their end; `COLAB=all` in the environment runs all.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import notebooks

ROOT = Path(__file__).parents[1]
# What Colab has. Its notebook 6 (ipywidgets 7 asks for one) brings its jupyter_client 7.4 as well.
COLAB = ["ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1", "notebook==6.5.7", "traitlets==5.7.1"]
COLAB += ["anywidget==0.9.21", "numpy==2.1.3", "matplotlib==3.10.0", "safetensors==0.7.0", "tqdm==4.67.1"]
COLAB += ["regex==2024.11.6", "tokenizers==0.22.1", "tabulate==0.9.0", "lxml==6.0.0", "pyyaml==6.0.2"]
COLAB += ["requests==2.32.4", "platformdirs==4.3.8"]
COLAB += ["scikit-learn==1.6.1", "transformers==4.57.1"]
COLAB += [f"setuptools=={metadata.version('setuptools')}"]  # torch asks for a newer one than a venv has
ALONE = ["peft==0.17.1"]  # what it asks for would bring torch along
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
# All that the bootstrap may add: the library, what it asks for that Colab has not, and data packages.
NEW = {"bookformer", "sacrebleu", "portalocker", "colorama", "gguf"}
NEW |= {"onnx", "onnxruntime", "protobuf", "flatbuffers", "ml-dtypes"}
NEW |= {
    line.split("==")[0] for line in (ROOT / "requirements-data.txt").read_text().splitlines() if re.match(r"\w", line)
}
WHOLE = {"04-attention"}
# Printed by a Python: where bookformer is, what is installed, and torch and numpy to the byte and the clock.
LOOK = """
import hashlib, importlib.metadata, importlib.util, json
found = importlib.util.find_spec("bookformer")
installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
kept = {}
for name in ("torch", "numpy"):
    if importlib.util.find_spec(name):
        package = importlib.metadata.distribution(name)
        files = [package.locate_file(f) for f in package.files if f.name in ("METADATA", "RECORD")]
        states = [(str(f), f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]
        kept[name] = [package.version, sorted(states)]
print(json.dumps({"bookformer": found and found.origin, "installed": installed, "kept": kept}))
"""
pytestmark = pytest.mark.parametrize("name", notebooks.chapters())


def run(*command, cwd=None):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The library as a release carries it, built from a copy so that the repository gets no build/."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copy(ROOT / "LICENSE", source)
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    run(sys.executable, *PIP, "wheel", ".", "--no-deps", "--wheel-dir", out, cwd=source)
    (built,) = out.iterdir()
    return built


def needed(package):
    """The names of a package and of all that it requires, extras included, as this environment has them."""
    rest = [Requirement(package)]
    for wanted in rest:  # grows as it goes
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        requires = [Requirement(line) for line in metadata.requires(wanted.name) or []]
        rest += [r for r in requires if r not in rest and (not r.marker or any(map(r.marker.evaluate, extras)))]
    return {canonicalize_name(wanted.name) for wanted in rest}


class Colab:
    """A venv with Colab's packages and our torch, and its kernel, named to Jupyter."""

    def __init__(self, folder):
        self.folder, self.lent, self.python = folder, folder / "lent", folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", folder / "venv")
        run(self.python, *PIP, "install", "--no-compile", *COLAB)
        run(self.python, *PIP, "install", "--no-compile", "--no-deps", *ALONE)
        self.site = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # Links outside the venv: pip sees torch installed at its version, and can't uninstall what is ours.
        there = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions(path=[str(self.site)])}
        packages = map(metadata.distribution, needed("torch") - there)
        tops = {p.locate_file(f.parts[0]) for p in packages for f in p.files if f.parts[0] not in ("..", "__pycache__")}
        self.lent.mkdir()
        for top in tops:
            (self.lent / top.name).symlink_to(top)
        run(self.python, "-m", "ipykernel", "install", "--prefix", folder, "--name", "colab")

    def lend_torch(self, yes):
        (self.site / "lent.pth").write_text(f"{self.lent}\n" if yes else "")

    def look(self, folder):
        return json.loads(run(self.python, "-c", LOOK, cwd=folder))


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    made = Colab(tmp_path_factory.mktemp("colab"))
    yield made
    shutil.rmtree(made.folder)  # 300 MB


@pytest.fixture
def colab(venv, wheel, tmp_path, monkeypatch):
    """The environment with torch and without the library; what a bootstrap adds is removed afterwards."""
    venv.lend_torch(True)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("BOOKFORMER_WHEEL", str(wheel))
    monkeypatch.setenv("JUPYTER_PATH", str(venv.folder / "share" / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    yield venv
    run(venv.python, *PIP, "uninstall", "--yes", *NEW)


def prepare(name, folder):
    """Copy a chapter into an empty folder; return its code cells without outputs, and what will run it there."""
    folder.mkdir()
    shutil.copy(notebooks.notebook_path(name), folder)
    notebook = notebooks.read(folder / f"{name}.ipynb")
    notebook.metadata.pop("widgets", None)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    return code, NotebookClient(notebook, kernel_name="colab", timeout=900, resources={"metadata": {"path": folder}})


def test_a_chapter_runs_alone_in_colab(name, colab, wheel, tmp_path):
    code, client = prepare(name, tmp_path / "empty")
    whole = name in WHOLE or os.environ.get("COLAB") == "all"
    if not whole:
        del client.nb.cells[client.nb.cells.index(code[1]) + 1 :]
        del code[2:]
    before = colab.look(tmp_path / "empty")
    assert (before["bookformer"], *before["kept"]) == (None, "torch", "numpy")
    assert not NEW & set(before["installed"])  # what NEW names is removed between these tests
    state = client.execute().metadata.get("widgets", {}).get(notebooks.STATE, {}).get("state", {})
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    said = "".join(output.text for output in code[0].outputs if output.get("name") == "stdout")
    assert re.match(r"Installing .*under 10 MB.*\d+ MB", said), said
    assert wheel.stat().st_size < 10_000_000
    assert f"/{wheel.name}" in code[0].source  # the release that it names has this file
    after = colab.look(tmp_path / "empty")
    assert after["kept"] == before["kept"]
    added = {package: version for package, version in after["installed"].items() if package in NEW}
    assert after["installed"] == before["installed"] | added
    assert "bookformer" in added
    assert Path(after["bookformer"]).parents[1] == colab.site
    assert "import" in code[1].source
    if whole:
        views = [output.data[notebooks.VIEW] for output in outputs if notebooks.VIEW in output.get("data", {})]
        assert "anywidget" in {state[view["model_id"]]["model_module"] for view in views}


def test_without_torch_the_first_cell_says_how_to_get_it(name, colab, tmp_path):
    colab.lend_torch(False)
    code, client = prepare(name, tmp_path / "empty")
    before = colab.look(tmp_path / "empty")
    assert set(before["kept"]) == {"numpy"}
    with pytest.raises(CellExecutionError) as stopped:
        client.execute()
    assert re.match(r"SystemExit .*pip install torch", f"{stopped.value.ename} {stopped.value.evalue}")
    assert {cell.execution_count for cell in code[1:]} == {None}
    assert colab.look(tmp_path / "empty") == before


def test_where_the_library_is_the_first_cell_does_nothing(name, tmp_path):
    code, _ = prepare(name, tmp_path / "empty")
    environment = os.environ | {"BOOKFORMER_WHEEL": "no-such.whl"}  # an attempt to install would fail
    done = subprocess.run([sys.executable, "-c", code[0].source], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
