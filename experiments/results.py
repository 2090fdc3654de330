"""What a figure is reduced from: its runs, sweeps and measurements, made where they are missing."""

import hashlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import xarray as xr
from ml_collections import ConfigDict

from experiments import command_line, cost, records, train
from experiments.sweep import fill, report
from experiments.sweep.axes import declare, make_sweep, named_sweeps
from experiments.sweep.launch import Settings


def complete(
    module: ModuleType, config: ConfigDict, scale: str | None, folder: Path, how: Settings
) -> dict[str, xr.Dataset]:
    """Run what is missing of a figure's runs, sweeps and measurements, and open them by name.

    Without `RUNS` and `sweep` that is one run, in the folder itself. What is interrupted ends the program
    with one line, which says how to go on.
    """
    results, runs = {}, {}
    for name, get_config in getattr(module, "RUNS", {}).items():
        runs[name] = get_config(*([scale] if scale else [])), folder / name
    if not hasattr(module, "RUNS") and not hasattr(module, "sweep"):
        runs["run"] = config, folder  # where `train` looks before it builds, and makes it
    else:
        folder.mkdir(parents=True, exist_ok=True)
    for name, (of_run, workdir) in runs.items():
        command_line.use_precision(of_run)
        if "tracker" in of_run.probes and not (workdir / "meta.json").exists():
            print(f"{name}: the tracker takes {cost.estimate(of_run)}", file=sys.stderr)
        meta = train.train(of_run, workdir, resume=True)
        if meta["status"] != "done":
            train.report(meta, workdir, go_on="the same command")
        results[name] = records.load(workdir)
    for name, declared in named_sweeps(module).items() if hasattr(module, "sweep") else ():
        sweep = make_sweep(config, name, declare(declared, scale))
        command_line.use_precision(sweep.config)
        print(f"sweep {name!r}: {folder / name}", file=sys.stderr)
        report.outcome(fill.run(sweep, folder / name, how), folder / name)
        results[name] = records.load(folder / name)
    command_line.use_precision(config)
    if hasattr(module, "measure"):
        results["measured"] = _measured(module, config, results, folder)
    return results


def _measured(
    module: ModuleType, config: ConfigDict, results: dict[str, xr.Dataset], folder: Path
) -> xr.Dataset:
    """Return what was measured of the same configuration and runs, or measure it."""
    of = hashlib.sha256(config.to_json().encode())
    for found in results.values():
        of.update(found["loss"].values.tobytes() if "loss" in found else b"")
    try:
        measured = xr.load_dataset(folder / "measured.nc", engine="scipy")
        if measured.attrs["of"] == of.hexdigest():
            return measured
    except (OSError, TypeError, ValueError, LookupError):  # missing, or damaged
        pass
    print(f"measuring: {folder / 'measured.nc'}", file=sys.stderr)
    started = time.monotonic()
    measured = module.measure(config, results, folder).assign_attrs(of=of.hexdigest())
    return stored(measured.assign_attrs(seconds=time.monotonic() - started), folder / "measured.nc")


def stored(found: xr.Dataset, path: Path) -> xr.Dataset:
    """Write labelled data in one move, and return what was written."""
    found.to_netcdf(path.with_suffix(".partial"), engine="scipy")
    os.replace(path.with_suffix(".partial"), path)
    return xr.load_dataset(path, engine="scipy")[list(found.data_vars)]
