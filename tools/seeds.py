"""Run a chapter with several seeds, and print how far each of its checks is from failing.

    python tools/seeds.py 04            five seeds
    python tools/seeds.py 04 --seeds 3

A check given as `above(...)` or `below(...)` has a margin. Where it differs from seed to seed, the check is about
something trained or drawn, and its smallest safe distance is three standard deviations; in brackets are the margins,
seed by seed. Other checks must hold at every seed. The command fails if one is too near or false.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import notebooks

ENOUGH = 3  # standard deviations

# Runs first in the chapter's kernel: every check is written to a file, whether it holds or not.
RECORDER = """
import json
import bookformer.checks

def record(claim, holds, **measured):
    holds = holds.item() if hasattr(holds, "item") else holds
    with open({path!r}, "a") as file:
        print(json.dumps([claim, bool(holds), getattr(holds, "room", None)]), file=file)

bookformer.checks.check = record
"""


def measure(name: str, seed: int) -> list[tuple[str, bool, float | None]]:
    """Run a chapter with one seed: each check's claim, whether it holds, and its margin if it has one."""
    notebook = notebooks.from_text(notebooks.text_path(name).read_text(encoding="utf-8"))
    found = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, n = re.subn(r"^SEED = .*$", f"SEED = {seed}", cell.source, flags=re.MULTILINE)
            found += n
    if found != 1:
        sys.exit(f"{name} must set its seed once, in a line `SEED = 0`; there are {found} such lines")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checks"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(RECORDER.format(path=str(path))))
        NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": str(notebooks.ROOT / "notebooks")}}
        ).execute()
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def judge(runs: list[list[tuple[str, bool, float | None]]]) -> tuple[list[str], int]:
    """A line for each check, the nearest to failing first, and the number of checks that are too near or false."""
    rows, bad = [], 0
    for results in zip(*runs, strict=True):
        claim, rooms = results[0][0], [room for _, _, room in results]
        always = all(holds for _, holds, _ in results)
        spread = statistics.stdev(rooms) if None not in rooms and len(rooms) > 1 else 0.0
        distance = statistics.mean(rooms) / spread if spread else float("inf")
        bad += not always or distance < ENOUGH
        verdict = f"{distance:6.1f} sd" if spread else "   exact" if always else "        "
        margins = f"  ({' '.join(f'{room:.3g}' for room in rooms)})" if spread else ""
        rows.append(
            (distance if always else -1, f"{verdict}  {'' if always else 'FALSE at some seed: '}{claim}{margins}")
        )
    return [line for _, line in sorted(rows, key=lambda row: row[0])], bad


def main() -> None:
    """Measure and judge one chapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", help="its number, such as 04")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    names = [name for name in notebooks.chapters() if name.startswith(arguments.chapter)]
    if len(names) != 1:
        sys.exit(f"{arguments.chapter!r} names {len(names)} chapters; there are {', '.join(notebooks.chapters())}")
    runs = []
    for seed in range(arguments.seeds):
        runs.append(measure(names[0], seed))
        print(f"seed {seed}: {sum(holds for _, holds, _ in runs[-1])} of {len(runs[-1])} checks hold", flush=True)
    lines, bad = judge(runs)
    print("\n".join(lines))
    print(f"{bad} of {len(lines)} checks are false at some seed or nearer than {ENOUGH} standard deviations")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
