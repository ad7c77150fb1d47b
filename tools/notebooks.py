"""Keep each chapter's text (book/chapters/*.md) and notebook (notebooks/*.ipynb) one thing, executed and sound.

python tools/notebooks.py sync      the one that was changed rewrites the other; nothing runs
python tools/notebooks.py execute   sync, then run the chapters whose code changed since they last ran (--all: all)
python tools/notebooks.py execute 04   the same for the chapters whose names begin so
python tools/notebooks.py check     say what is wrong with the chapters and the pages; change nothing
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
METADATA = {  # of every notebook; nothing in it differs from machine to machine
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
KEPT = ("tags", "mystnb")  # of a cell's metadata
LIBRARY = (".py", ".js", ".css", ".mplstyle", ".sha256")  # the files that outputs depend on
MAX_BYTES = 1_000_000  # of a chapter with its outputs
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""


def chapters(root: Path = ROOT) -> list[str]:
    """The names of all chapters, such as `04-attention`, in order."""
    texts = {path.stem for path in (root / "book" / "chapters").glob("*.md")}
    return sorted(texts | {path.stem for path in (root / "notebooks").glob("*.ipynb")})


def text_path(name: str, root: Path = ROOT) -> Path:
    """Where a chapter's text lies."""
    return root / "book" / "chapters" / f"{name}.md"


def notebook_path(name: str, root: Path = ROOT) -> Path:
    """Where a chapter's notebook lies."""
    return root / "notebooks" / f"{name}.ipynb"


def digest(*parts: bytes) -> str:
    """One short hash of several parts."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


# --- text and notebook ---------------------------------------------------------------------------------------------


def as_text(notebook: nbformat.NotebookNode) -> str:
    """A notebook's cells as a MyST notebook, without outputs."""
    bare = nbformat.v4.new_notebook(metadata=METADATA)
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in KEPT if key in cell.metadata}
        bare.cells.append(nbformat.NotebookNode(cell_type=cell.cell_type, source=cell.source, metadata=kept))
        if cell.cell_type == "code":
            bare.cells[-1] |= {"outputs": [], "execution_count": None}
    text = jupytext.writes(bare, fmt="md:myst")
    return HEADER + text.split("---\n", 2)[2]


def from_text(text: str) -> nbformat.NotebookNode:
    """The notebook that a chapter's text describes, without outputs."""
    notebook = jupytext.reads(text, fmt="md:myst")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all, its cells named after what is in them, without what editors add."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell.id = f"{name}-{seen[name]}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
        if {"hide-cell", "hide-input"} & set(cell.metadata.get("tags", [])):
            cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    own = {key: notebook.metadata[key] for key in ("widgets", "bookformer") if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(METADATA | {"bookformer": {}} | own)
    notebook.metadata.bookformer["agreed"] = digest(as_text(notebook).encode())
    content = nbformat.writes(notebook) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(content, encoding="utf-8")
    os.replace(fresh, path)


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook of any format 4."""
    return nbformat.read(path, as_version=4)


def sync(name: str, root: Path = ROOT) -> nbformat.NotebookNode:
    """Make text and notebook agree: the one that was changed since they last did wins. Outputs stay, even old ones.

    Raises:
        ValueError: both were changed, and differ; nothing is written.
    """
    text, path = text_path(name, root), notebook_path(name, root)
    if not path.exists():
        notebook = from_text(text.read_text(encoding="utf-8"))
        write(notebook, path)
        return notebook
    notebook = read(path)
    theirs = as_text(notebook)
    ours = as_text(from_text(text.read_text(encoding="utf-8"))) if text.exists() else theirs
    agreed = notebook.metadata.get("bookformer", {}).get("agreed")
    if ours != theirs and digest(ours.encode()) != agreed:
        if digest(theirs.encode()) != agreed:
            raise ValueError(f"{text.name} and {path.name} were both changed: undo one of them, and run this again")
        notebook = combine_inputs_with_outputs(from_text(ours), notebook, fmt="md:myst")
        theirs = ours
    if not text.exists() or text.read_text(encoding="utf-8") != theirs:
        text.write_text(theirs, encoding="utf-8")
    write(notebook, path)
    os.utime(text)  # JupyterLab's pairing wants the text to be the newer one
    return notebook


# --- what a chapter was run with -----------------------------------------------------------------------------------


def hashes(notebook: nbformat.NotebookNode, root: Path = ROOT) -> dict[str, str]:
    """What a chapter's outputs depend on: its code, the library and the pinned versions."""
    code = [cell.source.encode() for cell in notebook.cells if cell.cell_type == "code"]
    library = sorted(path for path in (root / "lib").rglob("*") if path.suffix in LIBRARY)
    pins = [root / "requirements.txt", root / "requirements-book.txt", root / "requirements-data.txt"]
    return {
        "code": digest(*code),
        "library": digest(*(path.read_bytes() for path in library)),
        "requirements": digest(*(path.read_bytes() for path in pins if path.exists())),
    }


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute in a fresh kernel, then take out all that would differ the next time."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute()
    widgets = {"widgets": notebook.metadata["widgets"]} if "widgets" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict(METADATA | widgets)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
            if alt and "image/png" in output.get("data", {}):  # for JupyterLab and nbconvert, which don't read mystnb
                output.setdefault("metadata", {})["image/png"] = {"alt": alt}
    return name_models(notebook)


def name_models(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Give the widgets' models numbers in the order in which they were made, for their random names."""
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    text = json.dumps(notebook)
    for i, name in enumerate(state):
        text = text.replace(name, f"{i:032x}")
    return nbformat.from_dict(json.loads(text))


def execute(name: str, root: Path = ROOT, *, everything: bool = False) -> bool:
    """Sync a chapter, and run it if its code is not the code that it last ran. Return whether it ran."""
    notebook = sync(name, root)
    now = hashes(notebook, root)
    if not everything and notebook.metadata.get("bookformer", {}).get("code") == now["code"]:
        return False
    notebook = run(notebook, root / "notebooks")
    notebook.metadata["bookformer"] = now
    write(notebook, notebook_path(name, root))
    os.utime(text_path(name, root))
    return True


# --- check ---------------------------------------------------------------------------------------------------------

UNSTABLE = {
    "an address": re.compile(r"\b0x[0-9a-f]{6,}\b"),
    "a path": re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|Users|content)/|[A-Z]:\\\\"),
    "a clock": re.compile(r"\b\d{1,2}:\d{2}:\d{2}\b|\b20\d\d-\d\d-\d\d\b|\b\d+(?:\.\d+)? ?(?:ms|µs|seconds|secs)\b"),
    "a progress bar": re.compile(r"\d+%\|| it/s"),
    "a warning": re.compile(r"Warning:"),
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
DIRECTIVE = re.compile(r"^ {0,3}(?:`{3,}|:{3,})\{|\{[a-z:]+\}`", re.MULTILINE)


def texts(output: nbformat.NotebookNode) -> Iterator[str]:
    """All that a reader or nbval sees of an output as text."""
    if output.output_type == "stream":
        yield output.text
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield content


def problems_of_outputs(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What is wrong with the stored outputs of a chapter."""
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    count = 0
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        count += 1
        if cell.execution_count != count:
            yield f"cell {i}: its execution count is {cell.execution_count}, not {count}: run `make notebooks`"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {i}: the output is an error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"cell {i}: writes to stderr: {output.text.strip()[:80]}"
            for text in texts(output):
                for what, pattern in UNSTABLE.items():
                    if found := pattern.search(text):
                        yield f"cell {i}: the output holds {what}: {found.group()!r}"
            data = output.get("data", {})
            if VIEW in data and data[VIEW]["model_id"] not in state:
                yield f"cell {i}: the widget's state is not stored: run `make notebooks`"
            if "image/png" in data and not output.get("metadata", {}).get("image/png", {}).get("alt"):
                yield f"cell {i}: the picture has no alt text (mystnb: image: alt:)"


def next_check(notebook: nbformat.NotebookNode, start: int) -> set[str]:
    """The names in the arguments of the first `check(...)` after a cell."""
    for cell in notebook.cells[start + 1 :]:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
                    return {inner.id for part in (*node.args, *node.keywords) for inner in ast.walk(part)
                            if isinstance(inner, ast.Name)}  # fmt: skip
    return set()


def problems_of_tags(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Whether what nbval is told to ignore is covered by a check that it does not ignore."""
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    ignored = [i for i in code if "nbval-ignore-output" in notebook.cells[i].metadata.get("tags", [])]
    if 3 * len(ignored) > len(code):
        yield f"{len(ignored)} of {len(code)} code cells are tagged nbval-ignore-output: at most a third may be"
    for i in code:
        source = notebook.cells[i].source
        if "nbval-skip" in notebook.cells[i].metadata.get("tags", []) or "NBVAL_" in source:
            yield f"cell {i}: is kept from nbval"
        if i not in ignored:
            continue
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
                 and isinstance(node.ctx, ast.Store)}  # fmt: skip
        if not names & next_check(notebook, i):
            yield f"cell {i}: tagged nbval-ignore-output, and the next check uses none of {sorted(names)}"


def problems_of_prose(name: str, text: str, root: Path) -> Iterator[str]:
    """Broken links, and anything that JupyterLab, Colab and GitHub would show as raw text."""
    body = text.removeprefix(HEADER)
    if "chapters" in name:
        found = DIRECTIVE.search(re.sub(r"^```\{code-cell\}.*?^```", "", body, flags=re.MULTILINE | re.DOTALL))
        if found:
            yield f"{found.group()!r} is MyST: a chapter is plain Markdown"
    prose = re.sub(r"^```.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)
    base = root / ("notebooks" if "chapters" in name else "book")  # a chapter's links are those of its notebook
    for target in LINK.findall(prose):
        if "://" in target or target.startswith(("mailto:", "#")):
            continue
        path = base / target.split("#")[0]
        if not path.exists():
            yield f"broken link: {target}"


def problems(name: str, root: Path = ROOT) -> Iterator[str]:
    """All that is wrong with one chapter."""
    text, path = text_path(name, root), notebook_path(name, root)
    for one in (text, path):
        if not one.exists():
            yield f"{one.relative_to(root)} is missing: run `make notebooks`"
            return
    notebook = read(path)
    if as_text(notebook) != as_text(from_text(text.read_text(encoding="utf-8"))):
        yield "text and notebook differ: run `make notebooks`"
    if notebook.metadata.get("bookformer", {}).get("code") != hashes(notebook, root)["code"]:
        yield "the code is not the code that made the outputs: run `make notebooks`"
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size / 1e6:.1f} MB with its outputs; a chapter stays under {MAX_BYTES / 1e6:.0f} MB"
    yield from problems_of_outputs(notebook)
    yield from problems_of_tags(notebook)
    yield from problems_of_prose(f"book/chapters/{name}", text.read_text(encoding="utf-8"), root)


def check(root: Path = ROOT) -> int:
    """Print every problem of every chapter and page; return how many there are. An old library is only a warning."""
    found = [f"{name}: {problem}" for name in chapters(root) for problem in problems(name, root)]
    for page in sorted((root / "book").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found += [f"book/{page.name}: {problem}" for problem in problems_of_prose(page.stem, text, root)]
    for name in chapters(root):
        if notebook_path(name, root).exists():
            notebook = read(notebook_path(name, root))
            now, then = hashes(notebook, root), notebook.metadata.get("bookformer", {})
            for part in ("library", "requirements"):
                if then.get(part) != now[part]:
                    print(f"{name}: warning: ran with an older {part}: `make notebooks ALL=1` runs it again")
    print("\n".join(found) or f"{len(chapters(root))} chapter(s) and their pages: sound.")
    return len(found)


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["sync", "execute", "check"])
    parser.add_argument("beginnings", nargs="*", default=[""], help="of the chapters' names to sync or execute")
    parser.add_argument("--all", action="store_true", help="execute even those whose code has not changed")
    arguments = parser.parse_args()
    if arguments.command == "check":
        sys.exit(1 if check() else 0)
    try:
        for name in chapters():
            if not name.startswith(tuple(arguments.beginnings)):
                continue
            if arguments.command == "sync":
                sync(name)
            else:
                ran = execute(name, everything=arguments.all)
                print(f"{name}: {'executed' if ran else 'its code has not changed'}", flush=True)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
