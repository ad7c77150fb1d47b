"""The house stays easy to hold in the head."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LIB = ROOT / "lib" / "bookformer"
ORDER = [
    "config",
    "checks",
    "tokenizers",
    "bpe",
    "data",
    "questions",
    "domains",
    "scenes",
    "ngram",
    "recurrent",
    "positions",
    "taps",
    "attention",
    "layers",
    "transformer",
    "heads",
    "twostream",
    "objectives",
    "splits",
    "noises",
    "generate",
    "int8",
    "checkpoints",
    "muon",
    "train",
    "metrics",
    "adapt",
    "experts",
    "vision",
    "preferences",
    "advantages",
    "rlhf",
    "weights",
    "plots",
    "widgets",
]  # the reading order
SOURCES = sorted(LIB.rglob("*.py"))


def module_of(path, lib=LIB):
    return path.relative_to(lib).parts[0].removesuffix(".py")


def imports(path):
    """Modules of this package that a file imports, however it writes the import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "bookformer" if node.level else node.module or ""
            base = f"{base}.{node.module}" if node.level and node.module else base
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bookformer" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]


def test_every_module_is_in_the_reading_order():
    assert {module_of(path) for path in SOURCES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIB)))
def test_imports_point_upwards(path):
    if module_of(path) != "__init__":
        own = ORDER.index(module_of(path))
        assert set(imports(path)) - {module_of(path)} <= set(ORDER[:own])


def test_every_way_of_importing_is_seen(tmp_path):
    for line in (
        "import bookformer.attention",
        "from bookformer import attention",
        "from bookformer.attention import x",
        "from .attention import x",
        "from . import attention",
    ):
        (tmp_path / "m.py").write_text(line)
        assert set(imports(tmp_path / "m.py")) == {"attention"}, line


def test_a_module_fits_on_a_few_screens():
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in LIB.rglob("*.*") if path.suffix in (".py", ".js")
    }
    assert "attention_view.js" in lengths
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_the_tokenizers_need_no_torch():
    code = "import sys, bookformer.bpe, bookformer.config, bookformer.checks; assert 'torch' not in sys.modules"
    assert not subprocess.run([__import__("sys").executable, "-c", code]).returncode


def tracked():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_address_is_everywhere_that_of_the_configuration():
    """Whatever names the book's repository, or a wheel of its library, names it at the one address."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    ours = re.compile(
        r"https://github\.com/[\w.-]+/(?:language-models-you-can-run|[\w.-]+/releases/download/[^/]+/bookformer)"
    )
    found = {}
    for path in tracked():
        if path.suffix in (".md", ".ipynb", ".py", ".yml", ".cff", ".toml") and path != Path(__file__):
            for url in ours.findall(path.read_text(encoding="utf-8")):
                found.setdefault(url, path)
    assert {url: path for url, path in found.items() if not url.startswith(address)} == {}
    assert any(url.startswith(address) for url in found)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_installs_this_library_from_this_address(path):
    from bookformer import __version__

    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    wheel = f"{address}/releases/download/v{__version__}/bookformer-{__version__}-py3-none-any.whl"
    assert wheel in path.read_text(encoding="utf-8")


def test_nothing_unsafe():
    unsafe = re.compile(
        r"(?<!safetensors\.)torch\.load\(|\bimport pickle|trust_remote_code|shell=True|innerHTML|outerHTML|"
        r"(?<!\.)\beval\(|\bexec\("
    )
    for path in tracked():
        if path.suffix in (".py", ".js", ".ipynb") and path != Path(__file__):
            assert not unsafe.search(path.read_text(encoding="utf-8")), path


def test_the_licences_are_there():
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text()


def test_nothing_large_is_kept():
    large = {path for path in tracked() if path.stat().st_size > 2_000_000}
    assert large <= set((LIB / "models").glob("*.safetensors"))  # the book's own checkpoints


def test_every_mutant_still_has_its_line():
    for mutant in tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]:
        assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1, mutant
