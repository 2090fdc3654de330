"""Create a sweep, or go on with it, and wait for its workers."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlf.store import cells, exclusive, files
from dlf.store.cells import MEANINGS, NOT_RUN, STORE, Store
from experiments.build import check_precision
from experiments.command_line import ConfigError, interrupts, progress
from experiments.records import differences, provenance, resumed
from experiments.sweep import launch
from experiments.sweep.axes import Sweep
from experiments.sweep.blocks import plan
from experiments.sweep.launch import Settings


def run(sweep: Sweep, workdir: str | Path, settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008
    """Run all cells of a sweep that are not there yet, and return the content of its meta.json.

    An interrupt (SIGINT, SIGTERM) ends the sweep after the blocks under way; a second one ends this
    process at once, and workers after their blocks. Slurm jobs go on. The next call does what is left.

    Raises ConfigError or StoreError with one line that says what to do; nothing is overwritten.
    """
    workdir = Path(workdir)
    check_precision(sweep.config)
    with exclusive(workdir):
        meta = _open(sweep, workdir, settings)
        store = Store(workdir)
        for block, file in store.damaged():
            print(f"{file} is damaged: its block is run again", file=sys.stderr)
            store.forget(block)
        if (store.status() != NOT_RUN).all():
            return _record(meta, workdir, store)
        if (store.status() != NOT_RUN).any():
            meta = resumed(meta)
        started, seconds = time.monotonic(), meta["seconds"]
        files.write_json(workdir / "meta.json", meta | {"status": "running"})
        with interrupts() as interrupted, _progress(store) as report:
            failed = launch.run_workers(sweep, workdir, settings, interrupted, report)
        meta["seconds"] = seconds + time.monotonic() - started
        return _record(meta, workdir, store, failed)


def _open(sweep: Sweep, workdir: Path, settings: Settings) -> dict[str, Any]:
    """Check that the work folder takes this sweep, create the store if need be, return its meta."""
    content = {path.name for path in workdir.iterdir()}
    if {"meta.json", STORE} <= content:
        check_same(sweep, workdir)
        meta = files.read_json(workdir / "meta.json")
        if not {"seconds", "commit", "versions", "devices", "block_bytes"} <= set(meta):
            raise files.StoreError(f"{workdir / 'meta.json'} is damaged: move {workdir} away and run again")
        if meta["block_bytes"] > settings.memory:
            raise ConfigError(
                f"a block of {workdir}, as cut when it was created, takes {meta['block_bytes'] / 2**20:.3g} "
                f"MiB: --memory={settings.memory / 2**20:.3g} is too small"
            )
        return meta
    if STORE in content:  # a start that was killed before meta.json has no results yet
        status = Store(workdir).status()
        if (status != NOT_RUN).any():
            raise files.StoreError(f"{workdir / 'meta.json'} is missing: move {workdir} away and run again")
    elif content - {"config.json", "config.partial", "meta.partial", "cells.partial", "cells.old"}:
        raise ConfigError(f"{workdir} holds files, but no sweep: name another folder")
    return create(sweep, workdir, settings.memory)


def check_same(sweep: Sweep, workdir: Path) -> None:
    """Raise ConfigError if the work folder holds another sweep."""
    changes = differences(files.read_json(workdir / "config.json"), sweep.as_json())
    if changes:
        raise ConfigError(f"{workdir} holds a sweep with another config: {'; '.join(changes)}")


def create(sweep: Sweep, workdir: Path, memory: int) -> dict[str, Any]:
    """Write config.json, the empty store and meta.json of a sweep, and return the last one's content."""
    asked, planned = sweep.as_json(), plan(sweep, memory)
    meta = {"status": "running", "seconds": 0.0, **provenance(), "x64": sweep.config.float64}
    meta["block_bytes"] = planned.block_bytes
    attributes = {"config": json.dumps(asked["config"]), "sweep": sweep.name, "commit": meta["commit"]}
    axes = {axis.name: axis.labels for axis in sweep.axes}
    files.write_json(workdir / "config.json", asked)
    cells.create(workdir, axes, planned.cells_per_block, planned.series, planned.coordinates, attributes)
    files.write_json(workdir / "meta.json", meta)
    return meta


def _record(meta: dict[str, Any], workdir: Path, store: Store, failed: list[str] = ()) -> dict[str, Any]:
    """Write how far the sweep has come."""
    status = store.status()
    counts = {meaning: int(np.sum(status == number)) for number, meaning in enumerate(MEANINGS)}
    meta |= {
        "status": "interrupted" if counts["not run"] else "done",
        "cells": counts,
        "failed": list(failed),
    }
    try:
        files.write_json(workdir / "meta.json", meta)
    except OSError as error:
        raise files.StoreError(f"cannot write to {workdir}: {error.strerror}") from error
    return meta


@contextlib.contextmanager
def _progress(store: Store) -> Iterator[Callable[..., None]]:
    """Yield what shows progress: by so many cells, or as the store has it now."""
    status, started = store.status(), time.monotonic()
    left = {number: block for number, block in enumerate(store.blocks()) if (status[block] == NOT_RUN).any()}
    sizes = {number: status[block].size for number, block in left.items()}
    to_run = sum(sizes.values())
    first, done = status.size - to_run, 0
    with progress("sweep", "cells", first, status.size) as show:

        def report(num_cells: int | None = None) -> None:
            nonlocal done
            if num_cells is None:  # only blocks that were not there the last time are read
                for number in [n for n, block in left.items() if (store.status(block) != NOT_RUN).all()]:
                    done += sizes[number]
                    del left[number]
            else:
                done += num_cells
            show(first + done, f"{done / (time.monotonic() - started):.2g}/s" if done else "")

        yield report
