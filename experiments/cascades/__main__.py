"""Find, measure and draw the instabilities of the run of Fig. 4, and what sets their threshold.

    python -m experiments.cascades [--scale=smoke|small|paper] [--workdir=results/cascades] \\
        [--launcher=here|local|slurm] [--jobs=N] [--memory=MiB] [--slurm=PARAMETER=VALUE ...]

Trains what is not there: the run with all probes, the same under the static loss, and a sweep over width
and learning rate. In the work folder: instabilities.csv, four figures, and the runs.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis import figures
from analysis.cascades import Instability, Windows
from dlf import store
from dlf.store import files
from experiments import command_line
from experiments.cascades import cost, measure
from experiments.cascades.second_pass import measure_windows
from experiments.configs import cascades
from experiments.phase_diagram import complete
from experiments.sweep.axes import SCALES
from experiments.sweep.launch import Settings, add_options, settings
from experiments.train import report, train


def train_all(scale: str, folder: Path) -> dict[str, xr.Dataset] | int:
    """Train the run and its static twin where they are not there; an exit status if that was not all."""
    configs, runs = {"run": cascades.get_config(scale), "static": cascades.static(scale)}, {}
    for name, config in configs.items():
        command_line.use_precision(config)
        if not (folder / name / "meta.json").exists():
            print(f"{name}: the tracker takes {cost.estimate(config)}", file=sys.stderr)
        meta = train(config, folder / name, resume=True)
        if meta["status"] != "done":
            return report(meta, folder / name, go_on="the same command")
        runs[name] = store.load(folder / name)
    return runs


def measured_windows(config: ConfigDict, run: xr.Dataset, windows: Windows, folder: Path) -> xr.Dataset:
    """Return the second pass over the onsets of a run, measured where it is not there or of another run."""
    store, spans = folder / "windows.nc", measure.onset_spans(windows, config.num_steps)
    fine = _load(store, run, spans)
    if not spans:
        return measure_windows(config, folder / "run", spans)
    if fine is None:
        num = sum(stop - start for start, stop in spans)
        tracker = cost.estimate(config)._replace(num_measurements=num)
        print(f"second pass, the onsets at every step: {tracker}", file=sys.stderr)
        fine = measure_windows(config, folder / "run", spans).assign_attrs(spans=json.dumps(spans))
        fine.to_netcdf(folder / "unfinished.nc", engine="scipy")
        os.replace(folder / "unfinished.nc", store)
    if not _follows(fine, run):
        print(
            "the second pass does not follow the run to the bit: it was made on another machine or version, "
            "and its sharpness at onsets may be that of another trajectory",
            file=sys.stderr,
        )
    return fine


def _load(store: Path, run: xr.Dataset, spans: list[tuple[int, int]]) -> xr.Dataset | None:
    """Return a second pass that fits the run, None where it is missing, damaged or another one."""
    try:
        fine = xr.load_dataset(store, engine="scipy")
        steps = {*fine["step"].values.tolist()}
        covered = all({*range(start, stop)} <= steps for start, stop in spans)
        measured = bool(np.isfinite(fine["tracked_eigenvalues"].values).all())
        fits = fine.attrs["spans"] == json.dumps(spans) and covered and measured and _follows(fine, run)
    except (OSError, TypeError, ValueError, LookupError):
        return None
    return fine if fits else None


def _follows(fine: xr.Dataset, run: xr.Dataset) -> bool:
    steps = fine["step"].values
    return not len(steps) or bool((fine["loss"].values == run["loss"].sel(step=steps).values).all())


def write_table(rows: list[Instability], path: Path) -> None:
    """Write the instabilities as CSV, one column for each field."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Instability._fields)
        writer.writerows(rows)
    os.replace(partial, path)


def table(rows: list[Instability]) -> Table:
    """Lay out the instabilities for a terminal.

    λ in nat, mean of two steps at the onset; above: first step at which it exceeds the threshold; growth and
    budget in nat; NTK: change of its largest eigenvalue.
    """
    threshold = f", threshold {rows[0].threshold:.4g} nat" if rows else ": none"
    layout = Table(
        "onset", "end", "class", "phase", "λ", "above", "deepest", "growth", "budget", "NTK", "accuracy",
        title=f"instabilities{threshold}", box=SIMPLE_HEAD, padding=(0, 0), collapse_padding=True,
    )  # fmt: skip
    for row in rows:
        layout.add_row(
            f"{row.onset:,}",
            f"{row.end:,}",
            "all" if row.emphasised < 0 else str(row.emphasised),
            f"{row.phase:.2f}",
            f"{row.sharpness:.3g}",
            f"{row.crossing:,}" if row.crossing >= 0 else "never",
            row.deepest,
            f"{row.growth:.1f}",
            f"{row.budget:.1f}",
            f"{-row.ntk_drop:+.0%}",
            f"{row.accuracy_before:.2f} → {row.accuracy_after:.2f}",
        )
    return layout


def main() -> None:
    """Run `python -m experiments.cascades`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.cascades", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--workdir", type=Path, default="results/cascades")
    add_options(parser)
    options = parser.parse_args()
    folder, how = options.workdir / options.scale, settings(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _all(options.scale, folder, how)
    except (OSError, TypeError) as error:  # SciPy's word for a file of another kind
        raise files.StoreError(f"cannot use {folder}: {error}") from error


def _all(scale: str, folder: Path, how: Settings) -> int:
    runs = train_all(scale, folder)
    if isinstance(runs, int):
        return runs
    config, run = cascades.get_config(scale), runs["run"]
    windows = measure.label(run)
    fine = measured_windows(config, run, windows, folder)
    rows = measure.instabilities(config, run, windows, fine)
    write_table(rows, folder / "instabilities.csv")
    found = measure.everything(config, run, windows, rows)
    static = measure.labelled(cascades.static(scale), runs["static"])
    both = xr.concat(
        [static, found[list(static)]], xr.Variable("amplitude", [1.0, config.schedule.amplitude]),
        combine_attrs="override",
    )  # fmt: skip
    sweeps = complete("cascade_rates", scale, folder / "rates", how)
    if isinstance(sweeps, int):
        return sweeps
    rates = measure.rates(sweeps["main"])
    for name, shown in dict(
        cascades=found, bifurcation=found, static_dynamic=both, threshold_rate=rates
    ).items():
        figure = getattr(figures, name)(shown)
        for suffix in ("png", "pdf"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=300)
    console = Console()
    console.print(table(rows), measure.summary(run, windows, found, rates))
    print(f"{folder}: instabilities.csv; cascades, bifurcation, static_dynamic, threshold_rate .png and .pdf")
    return 0


if __name__ == "__main__":
    main()
