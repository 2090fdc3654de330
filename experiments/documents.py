"""Write the tables of the README files from the data that come with dlf.

    python -m experiments.documents

Each stands between `<!-- table: NAME -->` and `<!-- end -->`; a test compares them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import ConfigError, run
from experiments.figure import NAMES

ROOT = Path(__file__).parent.parent
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "analysis/README.md", "experiments/README.md"))
_FIGURES = ROOT / "experiments" / "configs"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a document with its tables as the shipped data have them."""
    return _BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", text)


def table(name: str) -> str:
    """Return a table by its name: what a figure found, or one line of all figures.

    Raises ConfigError where the data do not come with dlf.
    """
    if name == "figures":
        found = [_read(_FIGURES / f"{figure}.json") for figure in NAMES]
        rows = [("figure: `experiments.figure ...`", "minutes", "number", "expected", "found")]
        for of in found:
            quantity, at, expected, _, value, *_ = of["expected"][-1]
            minutes = f"{of['seconds'] / 60:.1f}" if of["seconds"] else "not known"
            rows.append((f"`{of['name']}`", minutes, f"{quantity} {at}", expected, value))
        return _markdown(rows)
    of = _read(_FIGURES / f"{name}.json")
    return "\n".join(_markdown(rows) for rows in (*of["tables"].values(), of["expected"]))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"{path.name} does not come with dlf: run its command and copy its JSON to {path}")
    return json.loads(path.read_text())


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    lines.insert(1, "---" + "|---" * (len(rows[0]) - 1))
    return "".join(f"| {line} |\n" for line in lines)


def _main() -> int:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    return 0


if __name__ == "__main__":
    run(_main)
