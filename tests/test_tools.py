"""The tools behind make: they say what is missing in one line, and leave nothing half done."""

import io
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

import address
import assets
import environment
import notebooks
import seeds


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(
        SystemExit, match=r"needs Python 3.11, 3.12 or 3.13, and this is .* make book PYTHON=python3.11"
    ):
        environment.main("book")


def test_no_browser_is_said_first_with_a_command(monkeypatch):
    monkeypatch.setattr(environment, "find_browser", lambda: None)
    monkeypatch.setattr(environment, "make_venv", lambda: pytest.fail("it began to install"))
    with pytest.raises(SystemExit, match=r"No Chromium, Chrome or Edge was found.* Install it: \w+"):
        environment.main("test")


def test_a_browser_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    assert environment.find_browser() is None
    assert "BROWSER_PATH is '/no/such/browser', which is no program" in environment.no_browser()


def make(root, *words):
    """Run make as a reader would, though the tests themselves may run below `make test`."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=root, capture_output=True, text=True, env=outside)


def test_make_names_a_missing_python(root):
    done = make(root, "book", "PYTHON=nopython")
    assert done.returncode == 2
    assert done.stdout == "nopython does not run. Install Python 3.11, 3.12 or 3.13, or say which: make PYTHON=...\n"


def test_make_lists_every_target(root):
    targets = {
        line.split(":")[0] for line in (root / "Makefile").read_text().splitlines() if ": " in line and "##" in line
    }
    listed = make(root).stdout
    assert {line.split()[1] for line in listed.splitlines()} == targets
    readme = (root / "README.md").read_text()
    assert [target for target in targets if f"make {target}" not in readme] == ["help"]


@pytest.fixture
def empty_venv(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "VENV", tmp_path)
    return tmp_path


def test_what_is_installed_is_not_installed_again(monkeypatch, empty_venv):
    runs = []

    def fake(command, cwd):
        runs.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", fake)
    for _ in range(2):
        environment.install(["-r", "requirements-book.txt", "-c", "constraints.txt"], "a thing")
    assert len(runs) == 1
    assert runs[0][-4:] == ["-r", "requirements-book.txt", "-c", "constraints.txt"]


def test_an_archive_is_fetched_and_not_installed(monkeypatch, empty_venv):
    runs = []
    monkeypatch.setattr(
        environment.subprocess,
        "run",
        lambda command, cwd: runs.append(command) or subprocess.CompletedProcess(command, 0),
    )
    for arguments, _ in environment.LEVELS["all"]:
        environment.install(arguments, "a thing")
    verbs = {command[command.index("-r") + 1]: command[3] for command in runs if "-r" in command}
    assert verbs["requirements-archives.txt"] == "download"
    assert verbs["requirements-data.txt"] == "install"


def test_an_interrupted_install_is_taken_up_again(monkeypatch, empty_venv):
    monkeypatch.setattr(environment.subprocess, "run", lambda command, cwd: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match="Run the same command again: it goes on where it stopped"):
        environment.install(["-r", "requirements-data.txt", "--no-deps"], "a thing")
    assert list(empty_venv.iterdir()) == []  # no note says that it is done


def test_a_broken_environment_is_made_anew(monkeypatch, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setattr(environment, "PYTHON", python)
    environment.make_venv()
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Let `npm pack` give a package of one small file."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/x.js")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"42;"))
    code = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[-1])"
    monkeypatch.setattr(assets, "npm", lambda: [sys.executable, "-c", code, str(tmp_path / "package.tgz")])


def test_an_asset_with_another_hash_is_refused(packed, tmp_path):
    entry = {"package": "x@1", "integrity": "sha512-no", "files": {"x.js": "package/x.js"}}
    with pytest.raises(ValueError, match=r"x@1 has hash sha512-\S+, not the locked sha512-no: not used"):
        assets.fetch(entry, tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_an_asset_with_the_locked_hash_is_unpacked(packed, tmp_path):
    digest = assets.hashlib.sha512((tmp_path / "package.tgz").read_bytes()).digest()
    integrity = "sha512-" + assets.base64.b64encode(digest).decode()
    assets.fetch({"package": "x@1", "integrity": integrity, "files": {"a/x.js": "package/x.js"}}, tmp_path / "vendor")
    assert (tmp_path / "vendor/a/x.js").read_text() == "42;"


def test_the_address_is_written_wherever_it_stands(root, tmp_path):
    for name in ("_config.yml", "CITATION.cff", "README.md"):
        shutil.copy(root / name, tmp_path / name)
    for name in ("book", "notebooks"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns(".*", "vendor"))
    old = address.LINE.search((root / "_config.yml").read_text())[2]
    changed = address.write("https://github.com/owner/name", tmp_path)
    assert changed == 3 + 2 * len(notebooks.chapters())  # configuration, README, citation, each text and notebook
    assert not [
        path for path in tmp_path.rglob("*.[micy]*") if path.is_file() and old in path.read_text(errors="ignore")
    ]
    assert address.write("https://github.com/owner/name", tmp_path) == 0
    with pytest.raises(ValueError, match="'owner/name' is not the address of a GitHub repository"):
        address.write("owner/name", tmp_path)


def runs(*rooms):
    return [[("it is low", room > 0, room), ("it is so", True, None)] for room in rooms]


def test_margins_are_counted_in_standard_deviations():
    lines, bad = seeds.judge(runs(9.0, 10.0, 11.0))
    assert bad == 0
    assert lines == ["  10.0 sd  it is low  (9 10 11)", "   exact  it is so"]


def test_a_near_check_and_a_false_one_are_bad():
    assert seeds.judge(runs(1.0, 2.0, 3.0))[1] == 1
    lines, bad = seeds.judge([*runs(9.0, 10.0), [("it is low", True, 11.0), ("it is so", False, None)]])
    assert bad == 1
    assert lines[0].endswith("FALSE at some seed: it is so")
