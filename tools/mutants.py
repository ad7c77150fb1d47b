"""Break the code one line at a time, and see that a test fails each time.

    python tools/mutants.py            every mutant of tests/mutants.toml
    python tools/mutants.py attention  those whose file or claim holds this word

Each mutant is a copy of the repository with one line changed, on which the tests that the mutant names are run.
A mutant that survives is a claim that no test keeps. Not part of `make test`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FETCHED = "book/assets/vendor"  # not tracked, and needed by the browser tests


def run(tests: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run some tests on a copy, its own library first on the path."""
    code = "import sys, pytest; sys.path.insert(0, 'lib'); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def main(word: str) -> None:
    """Try every mutant whose file or claim holds a word."""
    mutants = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
    mutants = [mutant for mutant in mutants if word in mutant["file"] + mutant["claim"]]
    survived = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        listed = ["git", "ls-files", "-co", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / FETCHED, folder / FETCHED)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        for tests in sorted({test for mutant in mutants for test in mutant["tests"]}):
            if run([tests], folder).returncode:
                sys.exit(f"{tests} fails without any mutant: mend that first")
        for mutant in mutants:
            path = folder / mutant["file"]
            text = path.read_text(encoding="utf-8")
            if text.count(mutant["old"]) != 1:
                sys.exit(f"{mutant['file']} holds {mutant['old']!r} {text.count(mutant['old'])} times, not once")
            path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
            died = run(mutant["tests"], folder).returncode == 1
            path.write_text(text, encoding="utf-8")
            survived += not died
            print(f"{'killed  ' if died else 'SURVIVED'}  {mutant['file']}: {mutant['claim']}", flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants killed")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
