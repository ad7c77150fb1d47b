"""Write book/ledger.md: what each chapter holds, counted in its notebook, and how long it takes.

    python tools/ledger.py          count, and measure the chapters whose code is not the code that was measured
    python tools/ledger.py --all    measure all of them

Measuring is strict nbval: the chapters run in two processes, on one thread each, and a chapter that fails stops it.
Times are kept in book/ledger.json, with a hash of the code that took them.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import nbformat

import notebooks

TIMES = notebooks.ROOT / "book" / "ledger.json"
PAGE = notebooks.ROOT / "book" / "ledger.md"
LAST = "test_a_chapter_holds_what_it_holds_when_run_again_and_takes_no_longer_than_it_may"
PROCESSES = 2
HEAD = "chapter seconds cells checks claims widgets exercises ignored".split()
TEXT = """# The chapters in numbers

Counted in the notebooks by a tool, `make ledger`, which runs the chapters whose code has changed. A test compares this
page with them.

- **Seconds** are those of one processor core, in a run of strict nbval: every cell is executed, and its output
  compared with the stored one.
- **Cells** are those with code.
- **Checks** are the sentences that `check(...)` printed: claims that stopped the page if they were false.
- **Claims** of the articles are the rows of [the list](articles.md) that the chapter's boxes take up, or 1 for a box
  about something that the list does not hold.
- **Ignored** are cells whose printed numbers depend on training, which differs in the last digits from processor to
  processor. nbval runs them and does not compare what they print; the next cell checks what was measured. At most a
  third of a chapter's cells may be such.

"""


def counts(notebook: nbformat.NotebookNode) -> list[int]:
    """Of one executed chapter: code cells, checks, claims, widgets, exercises, cells whose output is ignored."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    outputs = [output for cell in code for output in cell.outputs]
    boxes = re.findall(r"\*\*What the articles say(?: \(rows? ([^)]*)\))?\.?\*\*", prose)
    return [
        len(code),
        sum(output.text.count("Checked: ") for output in outputs if output.get("name") == "stdout"),
        sum(len(re.findall(r"\d+", rows)) or 1 for rows in boxes),
        sum(notebooks.VIEW in output.get("data", {}) for output in outputs),
        len(re.findall(r"^\*\*\d+\.\*\*", prose.partition("\n## Exercises")[2], flags=re.MULTILINE)),
        sum("nbval-ignore-output" in cell.metadata.get("tags", []) for cell in code),
    ]


def code_of(name: str) -> str:
    """The hash of the code that made a chapter's outputs."""
    return notebooks.read(notebooks.notebook_path(name)).metadata["bookformer"]["code"]


def measure(names: list[str]) -> dict[str, float]:
    """Run chapters with strict nbval, and return the processor seconds of each.

    Raises:
        subprocess.CalledProcessError: a chapter's outputs are not those stored, or it takes longer than it may.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        wanted = [f"notebooks/{name}.ipynb" for name in names] + [f"tests/test_chapters.py::{LAST}[{n}]" for n in names]
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(PROCESSES), f"--junitxml={report}", *wanted]
        subprocess.run(command, cwd=notebooks.ROOT, check=True)
        cases = [case for case in ElementTree.parse(report).iter("testcase") if case.get("name").startswith(LAST)]
    return {
        case.get("name").removeprefix(LAST)[1:-1]: round(float(value.get("value")), 1)
        for case in cases
        for value in case.iter("property")
        if value.get("name") == "cpu_seconds"
    }


def page(record: dict) -> str:
    """The page, from the notebooks and the times."""
    rows, sums = [], [0.0] + [0] * 6
    for name in notebooks.chapters():
        notebook = notebooks.read(notebooks.notebook_path(name))
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        row = [record["chapters"][name]["seconds"], *counts(notebook)]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        rows.append([name[:2], f"[{title}](../notebooks/{name}.ipynb)", f"{row[0]:.0f}", *map(str, row[1:])])
    rows.append(["", "**together**", f"{sums[0]:.0f}", *map(str, sums[1:])])
    lines = [["", *HEAD], ["---", "---", *["---:"] * 7], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    whole = record["whole"]
    end = (
        f"A run of all {whole['chapters']} in {PROCESSES} processes, on {PROCESSES} cores, took "
        f"{whole['minutes']:.1f} minutes ({record['machine']})."
    )
    return f"{TEXT}{table}\n\n{end}\n"


def main() -> None:
    """Measure what is to be measured, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="measure every chapter")
    everything = parser.parse_args().all
    record = json.loads(TIMES.read_text()) if TIMES.exists() else {"chapters": {}}
    names = notebooks.chapters()
    old = [n for n in names if everything or record["chapters"].get(n, {}).get("code") != code_of(n)]
    if old:
        start = time.monotonic()
        seconds = measure(old)
        if old == names:
            record["whole"] = {"chapters": len(names), "minutes": round((time.monotonic() - start) / 60, 1)}
            record["machine"] = f"{platform.machine()}, {platform.system()}"
        record["chapters"] |= {name: {"seconds": seconds[name], "code": code_of(name)} for name in old}
        record["chapters"] = {name: record["chapters"][name] for name in names}
        TIMES.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page(record))
    print(f"{PAGE.relative_to(notebooks.ROOT)}: {len(names)} chapters, {len(old)} measured")


if __name__ == "__main__":
    main()
