"""Write the version of everything installed in this environment into constraints.txt.

Run in an environment that holds requirements.txt and passes the tests. Tags of a local build, such as +cpu, and
packages that belong to one kind of machine are left out, so that the file serves every machine and Python.
"""

from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("bookformer", "pip", "setuptools", "wheel", "triton")
HEADER = "# The whole tested tree of versions: `make lock` writes it. Every install of ours uses it.\n"


def main() -> None:
    """Write constraints.txt."""
    data = {line.split("==")[0] for line in (ROOT / "requirements-data.txt").read_text().splitlines() if "==" in line}
    found = {dist.name.lower().replace("_", "-"): dist.version.split("+")[0] for dist in distributions()}
    kept = {n: v for n, v in found.items() if n not in LEFT_OUT and n not in data and not n.startswith("nvidia-")}
    lines = [f"{name}=={version}\n" for name, version in sorted(kept.items())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines))
    print(f"constraints.txt: {len(lines)} versions")


if __name__ == "__main__":
    main()
