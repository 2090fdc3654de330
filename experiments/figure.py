"""Make figures: run what is missing, reduce it, draw it, compare its numbers.

    python -m experiments.figure NAME [NAME ...] [--scale=smoke|small|paper] [--shipped] [--workdir=DIR] \\
        [--launcher=here|local|slurm] [--jobs=N] [--memory=MiB] [--slurm=PARAMETER=VALUE ...] \\
        [--dry-run] [--config.key=value ...]

A figure is a file in experiments/configs, or one of yours: what to run (`get_config`, `RUNS`, `sweep*`), to
`measure` and to `reduce`, the functions of analysis.figures that draw it, and the numbers to expect, at scale
"small" if there are scales. What was interrupted goes on; what is finished is only drawn. --shipped draws the
reduced data that come with dlf; --dry-run says what would be run, and how long. The folder is
results/NAME[/SCALE], or DIR, or of several figures DIR/NAME[/SCALE]. Overrides are for figures of one run,
and for what others allow (`OVERRIDES`). The exit status is 1 if a number is off.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import figures, neural_tangents_import
from analysis.figures.style import save
from dlf.store.files import StoreError, digest, read_json, refuse_links, write_json
from experiments import build, command_line, config_files, records, second_pass, threads, train
from experiments.command_line import ConfigError, Told, note
from experiments.config_files import CONFIGS, NAMES, configuration, declare, find
from experiments.sweep import estimates, fill
from experiments.sweep.axes import Sweep, make_sweep
from experiments.sweep.fill import Settings, add_options, settings

DEFAULT = "small"  # the scale whose numbers are compared


class Plan(NamedTuple):
    """A figure to make: its config module, its configuration, the scale if it has any, its folder."""

    name: str
    module: ModuleType
    config: ConfigDict
    scale: str | None
    folder: Path
    overrides: list[str]


def plan(name: str, options: argparse.Namespace, overrides: list[str]) -> Plan:
    """Return what is to be made. Raises ConfigError for what the figure or the machine does not have."""
    module, name = find(name), Path(name).stem
    if options.shipped and options.scale:
        raise ConfigError("--shipped draws what comes with dlf, of one scale: leave --scale out")
    if options.shipped and options.dry_run:
        raise ConfigError("--shipped runs nothing: leave --dry-run out")
    more = [*getattr(module, "RUNS", {}).values(), *config_files.sweeps_of(module).values()]
    scaled = any(config_files.takes_scale(function) for function in (module.get_config, *more))
    known = ["key"] if not hasattr(module, "RUNS") and not more else getattr(module, "OVERRIDES", ())
    if options.scale and not scaled:
        raise ConfigError(f"{name} has no scales: leave --scale out")
    scale = (options.scale or DEFAULT) if scaled and not options.shipped else None
    folder = options.workdir or Path("results")
    if len(options.names) > 1 or not options.workdir:
        folder = folder / name / ("shipped" if options.shipped else scale or "")
    if options.shipped:
        if not (CONFIGS / f"{name}.nc").exists() or Path(module.__file__).parent != CONFIGS:
            shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.nc")))
            raise ConfigError(f"no data of {name} come with dlf, only of {shipped}")
    elif hasattr(module, "NEURAL_TANGENTS"):
        try:
            neural_tangents_import.load()
        except ImportError as error:
            raise ConfigError(error) from error
    begins = ("--config.",) if "key" in known else tuple(f"--config.{key}=" for key in known)
    if wrong := [word for word in overrides if not word.startswith(begins)]:
        takes = " and ".join(f"--config.{key}=value" for key in known) or "no settings"
        raise ConfigError(f"unrecognized arguments: {' '.join(wrong)}: {name} takes {takes}")
    figure = Plan(name, module, ConfigDict(), scale, folder, overrides)
    return figure._replace(config=_configured(figure, name, module.get_config))


def _configured(figure: Plan, what: str, get_config: Callable[..., ConfigDict]) -> ConfigDict:
    """Return a configuration of a figure, with the overrides of what it holds, or of its only run all."""
    config = configuration(what, get_config, figure.scale)
    words = [word for word in figure.overrides if config_files.holds(config, word, figure.module)]
    argv = [sys.argv[0], *words]
    return command_line.parse(argv, __doc__, figure.folder, config).config if words else config


def make(figure: Plan, shipped: bool, how: Settings) -> bool:
    """Make a figure in its folder, and return whether its numbers are as expected."""
    name, module, folder = figure.name, figure.module, figure.folder
    functions = config_files.functions_of(module)
    files = functions if len(functions) > 1 else (name,)
    if shipped:
        folder.mkdir(parents=True, exist_ok=True)
        found = xr.load_dataset(CONFIGS / f"{name}.nc", engine="scipy")
    else:
        results = complete(figure, how)
        seconds = sum(float(of.attrs.get("seconds", 0)) for of in results.values())
        found = records.stored(
            _data(module.reduce, results).assign_attrs(seconds=seconds), folder / f"{name}.nc"
        )
    for function, file in zip(functions, files, strict=True):
        for suffix in ("png", "pdf"):
            refuse_links(folder, folder / f"{file}.{suffix}")
        save(getattr(figures, function)(found), folder, file)
    if hasattr(module, "CSV"):
        file, dim = module.CSV
        table = found[[variable for variable in found if found[variable].dims == (dim,)]].to_dataframe()
        table.columns = [column.removeprefix(f"{dim}_") for column in table.columns]
        refuse_links(folder, folder / f"{file}.csv")
        table.to_csv(folder / f"{file}.csv", index=False, na_rep="nan")
    tables = config_files.tables(module.in_words, found) if hasattr(module, "in_words") else {}
    compared = figure.scale in (None, DEFAULT)
    rows, ok = compare(found, module.EXPECTED, compared)
    told = tables | {f"{name}: numbers to expect" + ("" if compared else f" at scale {DEFAULT}"): rows}
    for title, table in told.items():
        tell(title, table)
    now, of = records.provenance(), found.attrs
    record = {"name": name, "scale": figure.scale, "seconds": float(of.get("seconds", 0))}
    record |= {"commit": of.get("commit") or now["commit"], "versions": now["versions"]}
    if shipped:  # the data are those of another day
        record = json.loads((CONFIGS / f"{name}.json").read_text())
    write_json(folder / f"{name}.json", record | {"tables": tables, "expected": rows})
    print(f"{folder}: {', '.join(files)} .png and .pdf, {name}.json{'' if shipped else f', {name}.nc'}")
    return ok


def asked(figure: Plan) -> dict[str, ConfigDict | Sweep]:
    """Return the runs and the sweeps of a figure by name."""
    module, runs = figure.module, getattr(figure.module, "RUNS", {})
    of = {name: _configured(figure, name, get_config) for name, get_config in runs.items()}
    for name, sweep in config_files.sweeps_of(module).items():
        config = _configured(figure, name, config_files.config_of(module, name))
        of[name] = make_sweep(config, name, declare(sweep, figure.scale))
    return of if hasattr(module, "RUNS") else of or {"run": figure.config}


def complete(figure: Plan, how: Settings) -> dict[str, xr.Dataset]:
    """Run what is missing of a figure's runs, sweeps and measurements, and open them by name.

    Without `RUNS` and `sweep` that is one run, in the folder itself. What is interrupted ends the program
    with one line, which says how to go on.
    """
    module, config, folder = figure.module, figure.config, figure.folder
    if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
        raise ConfigError(f"cannot use {folder}: {file} is no folder")
    results, is_one, parts = {}, not hasattr(module, "RUNS"), asked(figure)
    own = [f"{figure.name}.json", *(f"{name}/meta.json" for name in parts), "meta.json", "measured.nc"]
    if (folder / f"{figure.name}.nc").exists() and not any((folder / name).exists() for name in own):
        raise ConfigError(f"{folder}/{figure.name}.nc is of no figure of this kind: name another folder")
    for name, of in parts.items():
        if len(parts) > 1 and not (folder / name).exists():  # none runs before all have data and a network
            of = of.config if isinstance(of, Sweep) else of
            command_line.use_precision(of)
            build.replica_bytes(of)
    for name, of in parts.items():
        workdir = folder / name
        if isinstance(of, Sweep):
            command_line.use_precision(of.config)
            note(f"sweep {name!r}: {workdir}")
            command_line.report(fill.run(of, workdir, how), workdir)
        else:
            workdir = folder if is_one else workdir  # where `train` looks before it builds, and makes it
            command_line.use_precision(of)
            if "tracker" in of.probes and not (workdir / "meta.json").exists():
                note(f"{name}: the tracker takes {second_pass.estimate_cost(of)}")
            meta = train.train(of, workdir, resume=True)
            if meta["status"] != "done":
                command_line.report(meta, workdir)
        results[name] = records.load(workdir)
    command_line.use_precision(config)
    if hasattr(module, "measure"):
        results["measured"] = _measured(figure, results)
    return results


def _measured(figure: Plan, results: dict[str, xr.Dataset]) -> xr.Dataset:
    """Return what was measured of the same configuration and runs, or measure it."""
    module, config, folder = figure.module, figure.config, figure.folder
    of = hashlib.sha256(config.to_json().encode())
    for found in results.values():
        of.update(found["loss"].values.tobytes() if "loss" in found else b"")
    path, known = folder / "measured.nc", folder / "measured.json"
    with contextlib.suppress(OSError, StoreError):  # missing, or damaged
        if read_json(known) == {"of": of.hexdigest(), "content": digest(path.read_bytes())}:
            return xr.load_dataset(path, engine="scipy")
    folder.mkdir(parents=True, exist_ok=True)
    note(f"measuring: {folder / 'measured.nc'}")
    started = time.monotonic()
    measured = _data(module.measure, config, results, folder)
    measured = records.stored(measured.assign_attrs(seconds=time.monotonic() - started), path)
    write_json(known, {"of": of.hexdigest(), "content": digest(path.read_bytes())})
    return measured


def _data(function: Callable, *arguments: Any) -> xr.Dataset:
    found = function(*arguments)
    if not isinstance(found, xr.Dataset):
        what = getattr(function, "__name__", function)
        raise TypeError(f"{what} must return an xarray.Dataset, got {type(found).__name__}")
    return found


def compare(found: xr.Dataset, expected: tuple, compared: bool = True) -> tuple[list[tuple[str, ...]], bool]:
    """Return a table of the numbers to expect against those found, and whether all are accepted.

    `expected` holds (variable, where, expected, least, most, source); `where` is a step of the variable, or
    labels of its dimensions. A number that is not there counts as NaN, which is never accepted.
    """
    table, ok = [("quantity", "at", "expected", "accepted", "found", "", "source")], True
    for variable, where, number, least, most, source in expected:
        of = found.get(variable, xr.DataArray())
        step = next((dim for dim in of.dims if str(dim).endswith("step")), "step")  # a sparse one has its own
        labels = where if isinstance(where, dict) else {step: where}
        try:
            value = float(of.sel(labels))
            shown = f"{value:.4g}"
        except (LookupError, TypeError, ValueError):
            value, shown = np.nan, "no such place" if variable in found else "no such variable"
        accepted = least <= value <= most
        ok &= accepted or not compared
        verdict = "" if not compared else "ok" if accepted else "OFF"
        at = ", ".join(f"{dim} {label}" for dim, label in labels.items())
        limits = f"{least:.3g} .. {most:.3g}"
        table.append((variable, at, f"{number:.4g}", limits, shown, verdict, source))
    return table, ok


def tell(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print a table, of which the first row is the header."""
    table = Table(*map(escape, rows[0]), title=escape(title), box=SIMPLE_HEAD, padding=0)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console().print(table)


def main() -> None:
    """Run `python -m experiments.figure`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.figure", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--scale", choices=config_files.SCALES)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--shipped", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    add_options(parser)
    options, overrides = parser.parse_known_args()
    how, ok = settings(options), True
    made = [plan(name, options, overrides) for name in options.names]
    folders = [figure.folder for figure in made]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise ConfigError(f"two figures would share {twice[0]}: make each with a --workdir of its own")
    has_sweeps = not options.shipped and any(config_files.sweeps_of(figure.module) for figure in made)
    if not has_sweeps and (options.launcher != "here" or options.jobs or options.slurm):
        raise ConfigError("no sweep is to be filled: leave --launcher, --jobs and --slurm out")
    if not options.shipped:
        threads.choose(of for figure in made for of in asked(figure).values())
    for figure in made:
        if options.dry_run:
            estimates.dry_runs(asked(figure), figure.folder, how)
            continue
        try:
            ok &= make(figure, options.shipped, how)
        except KeyboardInterrupt:
            command_line.fail(f"interrupted: the same command goes on in {figure.folder}", 130)
        except (ConfigError, StoreError, Told):
            raise
        except BaseException as error:  # whatever a part of the user's config module raises
            at, folder = Path(str(getattr(error, "filename", ""))).resolve(), figure.folder.resolve()
            if isinstance(error, OSError) and (at.is_relative_to(folder) or folder.is_relative_to(at)):
                raise StoreError(f"cannot use {figure.folder}: {error}") from error
            what = f"{figure.name} could not be made: {type(error).__name__}: {error}"
            raise ConfigError(f"{what}; its runs are kept in {figure.folder}") from error
    return 0 if ok else 1


if __name__ == "__main__":
    main()
