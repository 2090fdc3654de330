"""What sweeps and runs would take, before anything is run."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from dlf import store as runs
from dlf.store.cells import NOT_RUN, Store
from experiments import command_line
from experiments.build import build
from experiments.command_line import ConfigError
from experiments.second_pass import loop_seconds
from experiments.sweep import fill
from experiments.sweep.axes import Sweep
from experiments.sweep.blocks import plan

_TIMED_STEPS = 500


def dry_run(sweep: Sweep, workdir: Path, settings: fill.Settings) -> float:
    """Print cells, blocks, estimated time and memory of a sweep, and return the minutes.

    Each program is timed for some steps.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir} is no folder: name another one")
    meta = fill.existing(sweep, workdir, settings.memory) if workdir.exists() else None
    planned = plan(sweep, settings.memory)
    num_cells = missing = prod(sweep.shape)
    cells_per_block = prod(planned.cells_per_block)
    num_blocks = prod(-(-n // k) for n, k in zip(sweep.shape, planned.cells_per_block, strict=True))
    if meta:
        store = Store(workdir)
        missing = int(np.sum(store.status() == NOT_RUN))
        num_blocks, cells_per_block = len(store.blocks()), store.cells_per_block
    taken = [_seconds_per_step(config) * config.num_steps for config in planned.programs]
    per_cell, num_jobs = np.mean(taken), 1 if settings.launcher == "here" else settings.num_jobs
    hours, minutes = missing * per_cell / 3600, missing * per_cell / 60 / num_jobs
    of_block, most = (meta["block_bytes"] if meta else planned.block_bytes) / 2**20, settings.memory / 2**20
    stored = num_cells * sum(prod(x.shape) * np.dtype(x.dtype).itemsize for x in planned.series.values())
    axes = " x ".join(f"{axis.name} {len(axis.labels)}" for axis in sweep.axes)
    timed = f"as timed over {_TIMED_STEPS} steps, without its last probes"
    table = Table("", f"sweep {sweep.name!r}, {'float64' if sweep.config.float64 else 'float32'}")
    table.add_row("cells", f"{axes} = {num_cells:,}")
    table.add_row("still to run", f"{missing:,}")
    table.add_row("blocks", f"{num_blocks:,} of up to {cells_per_block} cells")
    table.add_row("programs to compile", f"{len(planned.programs)}")
    table.add_row("time of a cell", f"{per_cell:.3g} s, {timed}")
    table.add_row("time in all", f"{hours:.3g} core-hours, {num_jobs} at a time: {minutes:.3g} min")
    table.add_row("memory of a block", f"{of_block:.3g} of {most:.3g} MiB")
    table.add_row("results", f"{stored / 2**20:.3g} MiB uncompressed")
    Console().print(table)
    return minutes


def dry_runs(parts: Mapping[str, ConfigDict | Sweep], folder: Path, settings: fill.Settings) -> None:
    """Print what is left of the runs and sweeps of a figure, by name, and the time of all."""
    minutes = 0.0
    for name, of in parts.items():
        config = of.config if isinstance(of, Sweep) else of
        command_line.use_precision(config)
        if isinstance(of, Sweep):
            minutes += dry_run(of, folder / name, settings)
            continue
        workdir = folder / name if len(parts) > 1 else folder
        done = runs.committed(workdir)[0] if (workdir / "meta.json").exists() else 0
        taken = (config.num_steps - done) * _seconds_per_step(config) / 60
        Console().print(f"run {name!r}: {config.num_steps - done:,} steps, {taken:.3g} min")
        minutes += taken
    print(f"{folder}: about {minutes:.3g} min, and what is computed from the results")


def _seconds_per_step(config: ConfigDict) -> float:
    experiment, num_steps = build(config), min(_TIMED_STEPS, config.num_steps)
    return loop_seconds(experiment, experiment.run.probes, num_steps) / num_steps
