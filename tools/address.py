"""Write the book's web address, from _config.yml or a new one, wherever it must stand.

python tools/address.py                                     as it stands in _config.yml
python tools/address.py https://github.com/owner/name       a new one, into _config.yml too
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ["README.md", "CITATION.cff", "CONTRIBUTING.md", "book/*.md", "book/chapters/*.md", "notebooks/*.ipynb"]
LINE = re.compile(r"^(repository:\n  url: )(\S+)$", re.MULTILINE)


def write(new: str | None, root: Path = ROOT) -> int:
    """Replace the present address by a new one; return the number of files that changed.

    Raises:
        ValueError: the new address is not that of a GitHub repository, which Colab's links need.
    """
    config = root / "_config.yml"
    old = LINE.search(config.read_text())[2]
    new = (new or old).rstrip("/")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        raise ValueError(f"{new!r} is not the address of a GitHub repository: https://github.com/owner/name")
    changed = 0
    for path in [config, *(path for pattern in PLACES for path in sorted(root.glob(pattern)))]:
        text = path.read_text(encoding="utf-8")
        fresh = text.replace(old, new).replace(
            old.replace("https://github.com", "https://colab.research.google.com/github"),
            new.replace("https://github.com", "https://colab.research.google.com/github"),
        )
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    try:
        print(f"{write(sys.argv[1] if len(sys.argv) > 1 else None)} files changed")
    except ValueError as error:
        sys.exit(str(error))
