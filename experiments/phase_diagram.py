"""Run the sweeps of the papers' phase diagrams where cells are missing, reduce them, and draw them.

    python -m experiments.phase_diagram [NAME ...] [--scale=smoke|small|paper] [--workdir=results] \\
        [--launcher=here|local|slurm] [--jobs=N] [--memory=MiB] [--slurm=PARAMETER=VALUE ...]
    python -m experiments.phase_diagram [NAME ...] --shipped

A diagram is a file in experiments/configs that declares sweeps and the name of its figure. --shipped draws
the reduced data that come with dlf, of scale "small", and trains nothing.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.table import Table

from analysis import figures
from analysis.findings import diagrams
from dlf import store
from dlf.store import files
from experiments import command_line
from experiments.sweep import fill, report
from experiments.sweep.axes import SCALES, declare, make_sweep, named_sweeps
from experiments.sweep.launch import add_options, settings

CONFIGS = Path(__file__).parent / "configs"
NAMES = ("phase_amplitude_period", "phase_width_rate", "phase_static", "phase_losses")


def complete(name: str, scale: str, folder: Path, how: fill.Settings) -> dict[str, xr.Dataset] | int:
    """Run what is missing of all sweeps of a diagram and load them; an exit status if that was not all."""
    module = importlib.import_module(f"experiments.configs.{name}")
    sweeps = {}
    for sweep_name, declared in named_sweeps(module).items():
        sweep = make_sweep(module.get_config(scale), sweep_name, declare(declared, scale))
        command_line.use_precision(sweep.config)
        print(f"{name}, {scale}: {sweep_name}", file=sys.stderr)
        meta = fill.run(sweep, folder / sweep_name, how)
        status = report.outcome(meta, folder / sweep_name)
        if status:
            return status
        sweeps[sweep_name] = store.load(folder / sweep_name)
    return sweeps


def draw(reduced: xr.Dataset, name: str, folder: Path) -> None:
    """Draw a reduced diagram into a folder, as PNG (300 dpi) and PDF, and print what was found."""
    figure = getattr(figures, importlib.import_module(f"experiments.configs.{name}").FIGURE)(reduced)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=300)
    layout = Table(name, "")
    for quantity, value in diagrams.findings(reduced):
        layout.add_row(quantity, value)
    Console().print(layout)
    print(f"{folder / name}.png and .pdf")


def main() -> None:
    """Run `python -m experiments.phase_diagram`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.phase_diagram", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--workdir", type=Path, default="results")
    parser.add_argument("--shipped", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    unknown = next((name for name in options.names if name not in NAMES), None)
    if unknown:
        parser.error(f"unknown diagram {unknown!r}: one of {', '.join(NAMES)}")
    for name in options.names or NAMES:
        folder = options.workdir / name / ("shipped" if options.shipped else options.scale)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if options.shipped:
                reduced = xr.load_dataset(CONFIGS / f"{name}.nc", engine="scipy")
            else:
                sweeps = complete(name, options.scale, folder, settings(options))
                if isinstance(sweeps, int):
                    return sweeps
                num_classes = (
                    importlib.import_module(f"experiments.configs.{name}").get_config().dataset.num_classes
                )
                reduced = diagrams.reduce(sweeps, num_classes)
                reduced.to_netcdf(folder / "unfinished.nc", engine="scipy")
                os.replace(folder / "unfinished.nc", folder / "reduced.nc")
            draw(reduced, name, folder)
        except OSError as error:
            raise files.StoreError(f"cannot use {folder}: {error}") from error
    return 0


if __name__ == "__main__":
    main()
