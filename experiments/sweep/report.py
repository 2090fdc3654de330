"""What the command line says of a sweep: before it is run, and after."""

import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from dlf.store.cells import NOT_RUN, STORE, Store
from dlf.train import init_carries
from experiments import build
from experiments.command_line import fail
from experiments.sweep.axes import Sweep
from experiments.sweep.blocks import plan
from experiments.sweep.fill import check_same
from experiments.sweep.launch import Settings

_TIMED_STEPS = 500


def dry_run(sweep: Sweep, workdir: Path, settings: Settings) -> None:
    """Print cells, blocks, estimated time and memory of a sweep; each program is timed for some steps."""
    planned = plan(sweep, settings.memory)
    num_cells = prod(sweep.shape)
    cells_per_block = prod(planned.cells_per_block)
    num_blocks = prod(-(-n // k) for n, k in zip(sweep.shape, planned.cells_per_block, strict=True))
    missing = num_cells
    if (workdir / STORE).exists():
        check_same(sweep, workdir)
        store = Store(workdir)
        missing = int(np.sum(store.status() == NOT_RUN))
        num_blocks, cells_per_block = len(store.blocks()), store.cells_per_block
    per_cell = np.mean([_seconds(config) for config in planned.programs])
    num_jobs = 1 if settings.launcher == "here" else settings.num_jobs
    stored = num_cells * sum(prod(x.shape) * np.dtype(x.dtype).itemsize for x in planned.series.values())
    rows = {
        "cells": " x ".join(f"{axis.name} {len(axis.labels)}" for axis in sweep.axes) + f" = {num_cells:,}",
        "still to run": f"{missing:,}",
        "blocks": f"{num_blocks:,} of up to {cells_per_block} cells",
        "programs to compile": f"{len(planned.programs)}",
        "time of a cell": f"{per_cell:.3g} s, as timed over {_TIMED_STEPS} steps, without its last probes",
        "time in all": f"{missing * per_cell / 3600:.3g} core-hours, {num_jobs} at a time: "
        f"{missing * per_cell / 60 / num_jobs:.3g} min",
        "memory of a block": f"{planned.block_bytes / 2**20:.3g} of {settings.memory / 2**20:.3g} MiB",
        "results": f"{stored / 2**20:.3g} MiB uncompressed",
    }
    table = Table("", f"sweep {sweep.name!r}, {'float64' if sweep.config.float64 else 'float32'}")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _seconds(config) -> float:
    """Return the seconds that a cell takes, from some steps after the first."""
    experiment = build.build(config)
    loop, carries = build.make_loop(experiment), init_carries(experiment.run.probes, experiment.state)
    num_steps = min(_TIMED_STEPS, config.num_steps)
    state, carries, _ = jax.block_until_ready(loop(experiment.replica, experiment.state, carries, num_steps))
    started = time.perf_counter()
    jax.block_until_ready(loop(experiment.replica, state, carries, num_steps))
    return (time.perf_counter() - started) / num_steps * config.num_steps


def outcome(meta: dict[str, Any], workdir: Path) -> int:
    """Say in one line how a sweep ended, and how to go on, and return its exit status."""
    counts = ", ".join(f"{number} {meaning}" for meaning, number in meta["cells"].items() if number)
    if meta["status"] == "done":
        print(f"done in {meta['seconds']:.0f} s, {counts}: {workdir}", file=sys.stderr)
        return 0
    if meta["failed"]:
        num = len(meta["failed"])
        fail(f"{num} of the jobs failed, see {meta['failed'][0]}; {counts}: the same command goes on", 1)
    fail(f"interrupted, {counts}: the same command goes on", 130)
