"""Make one figure of the papers: train its run if need be, draw it, compare its numbers.

    python -m experiments.figure fig4 [--workdir=DIR] [--config.key=value ...]

A figure is a file in experiments/configs: its configuration, the name of the function in
analysis.figures that draws it, and the numbers to expect. A run that was interrupted goes on; a
finished one is only drawn. The exit status is 1 if a number is off.
"""

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from analysis import figures
from dlf import store
from dlf.store import files
from experiments import command_line
from experiments.train import report, train

CONFIGS = Path(__file__).parent / "configs"


class Comparison(NamedTuple):
    """One number to expect, with the least and most to accept, against the number found in a run."""

    variable: str
    step: int
    expected: float
    least: float
    most: float
    source: str
    found: float

    @property
    def ok(self) -> bool:
        """Whether the number found is accepted; NaN never is."""
        return self.least <= self.found <= self.most


def compare(run: xr.Dataset, expected: tuple) -> list[Comparison]:
    """Look up each (variable, step, expected, least, most, source) in a run.

    A step that the run does not have counts as NaN, which is never ok.
    """
    return [
        Comparison(*row, found=float(run[row[0]].reindex(step=[row[1]], fill_value=np.nan)[0]))
        for row in expected
    ]


def draw(run: xr.Dataset, name: str, workdir: Path) -> None:
    """Draw figure `name` of a run into the work folder, as PNG (300 dpi) and PDF."""
    figure = getattr(figures, name)(run)
    for suffix in ("png", "pdf"):
        figure.savefig(workdir / f"{name}.{suffix}", dpi=300)


def table(comparisons: list[Comparison]) -> Table:
    """Lay out the numbers to expect against the numbers found."""
    layout = Table("quantity", "step", "expected", "accepted", "found", "", "source")
    for row in comparisons:
        layout.add_row(
            row.variable,
            f"{row.step:,}",
            f"{row.expected:.4g}",
            f"{row.least:.3g} .. {row.most:.3g}",
            f"{row.found:.4g}",
            "ok" if row.ok else "[bold red]OFF[/]",
            row.source.replace("[", r"\["),
        )
    return layout


def names() -> list[str]:
    """Return the figures of this command: configurations with a line that begins `EXPECTED = `."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if "\nEXPECTED = " in path.read_text())


def main() -> None:
    """Run `python -m experiments.figure`."""
    command_line.run(_main)


def _main() -> int:
    choices = names()
    name = next(iter(sys.argv[1:]), "")
    if name in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if name not in choices:
        raise command_line.ConfigError(f"unknown figure {name!r}: one of {', '.join(choices)}")
    module = importlib.import_module(f"experiments.configs.{name}")
    arguments = command_line.parse(
        [sys.argv[0], *sys.argv[2:]], __doc__, CONFIGS / f"{name}.py", Path("results", name)
    )
    command_line.use_precision(arguments.config)
    meta = train(arguments.config, arguments.workdir, resume=True)
    if meta["status"] != "done":
        return report(meta, arguments.workdir, go_on="the same command")
    run = store.load(arguments.workdir)
    try:
        draw(run, module.FIGURE, arguments.workdir)
    except OSError as error:
        raise files.StoreError(f"cannot write the figure to {arguments.workdir}: {error}") from error
    comparisons = compare(run, module.EXPECTED)
    Console().print(table(comparisons))
    print(f"{arguments.workdir / module.FIGURE}.png and .pdf")
    return 0 if all(row.ok for row in comparisons) else 1


if __name__ == "__main__":
    main()
