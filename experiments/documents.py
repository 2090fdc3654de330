"""Write the tables of the README files from the data that come with dlf.

    python -m experiments.documents

Each stands between `<!-- table: NAME -->` and `<!-- end -->`; a test compares them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.__main__ import COMMANDS
from experiments.benchmark.timing import words
from experiments.command_line import ConfigError, run
from experiments.config_files import CONFIGS, NAMES

ROOT = Path(__file__).parent.parent
DOCUMENTS = tuple(
    ROOT / name for name in ("README.md", "analysis/README.md", "dlf/README.md", "experiments/README.md")
)
_FOLDER = ROOT / "experiments"
FIGURES = [name for name in NAMES if (CONFIGS / f"{name}.json").exists()]  # whose numbers come with dlf
SOURCES = {name: CONFIGS / f"{name}.json" for name in FIGURES} | {
    f"benchmark_{name}": _FOLDER / "benchmark" / f"{name}.json" for name in COMMANDS if name != "spread"
}
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a document with its tables as the shipped data have them."""
    return _BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", text)


def table(name: str) -> str:
    """Return a table by its name: of a figure, of a benchmark (all rows, or those with a target), of all
    figures in one line each, or of the solvers."""
    if name == "figures":
        found = [_read(figure) for figure in FIGURES]
        rows = [("figure: `experiments.figure ...`", "minutes", "number", "expected", "found")]
        for of in found:
            quantity, at, expected, _, value, *_ = of["expected"][-1]
            rows.append((f"`{of['name']}`", f"{of['seconds'] / 60:.1f}", f"{quantity} {at}", expected, value))
        return _markdown(rows)
    if name == "solvers":
        return _solvers(_read("benchmark_curvature")["results"])
    kind, _, benchmark = name.partition("_")
    if kind in ("benchmark", "targets"):
        of = _read(f"benchmark_{benchmark}")
        ratios = "ours : best of neural-tangents"
        told = [
            row for row in of["rows"] if row["target"] or kind == "benchmark" or row["quantity"] == ratios
        ]
        return _measured(of, told)
    of = _read(name)
    named = [f"{title}:\n\n{_markdown(rows)}" for title, rows in of["tables"].items()]
    return "\n".join([*named, _markdown(of["expected"])])


def _read(name: str) -> dict[str, Any]:
    return json.loads(SOURCES[name].read_text())


def _measured(of: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    """Lay out rows of a benchmark, below where they were measured."""
    versions = ", ".join(
        f"{name} {of['versions'][name]}" for name in ("jax", "torch") if name in of["versions"]
    )
    where = f"{of['date'][:10]}, commit {of['commit'][:7]}, {of['cpus']} cores, {versions}"
    rows = [("case", "quantity", "median", "least to most", "unit", "target", "")]
    for row in measured:
        median, least, most, target = (words(row[key]) for key in ("median", "min", "max", "target"))
        found = row["case"], row["quantity"], median, least and f"{least} to {most}"
        rows.append((*found, row["unit"], target, row["verdict"]))
    repeats = [str(n) for n in sorted({len(row["values"]) for row in measured} - {1})]
    return f"{where}; medians of {' or '.join(repeats)} repeats:\n\n{_markdown(rows)}"


def _solvers(results: Sequence[dict[str, Any]]) -> str:
    """Lay out milliseconds and products of all solvers (rows) on all cases (columns)."""
    cases = dict.fromkeys((of["network"], of["stage"]) for of in results)
    cells = {(of["solver"], of["network"], of["stage"]): _cell(of) for of in results}
    rows = [("solver: ms (products)", *map(", ".join, cases))]
    for solver in dict.fromkeys(of["solver"] for of in results):
        rows.append((solver, *(cells[solver, *case] for case in cases)))
    return _markdown(rows)


def _cell(of: dict[str, Any]) -> str:
    if of["residual"] is None:
        return of["noticed"]
    cell = f"{words(1e3 * of['seconds'])} ({of['num_matvecs']})"
    return cell if of["residual"] <= of["tol"] else f"{cell}, residual {of['residual']:.1g}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    lines.insert(1, "---" + "|---" * (len(rows[0]) - 1))
    return "".join(f"| {line} |\n" for line in lines)


def _main() -> int:
    missing = [str(path) for path in (*DOCUMENTS, *SOURCES.values()) if not path.exists()]
    if missing:
        raise ConfigError(f"run this in a clone of the repository that has all data: no {', '.join(missing)}")
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    return 0


if __name__ == "__main__":
    run(_main)
