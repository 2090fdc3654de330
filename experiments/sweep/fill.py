"""Fill a sweep: create it or go on with it, in this process, in others of this machine, or on a cluster."""

import argparse
import contextlib
import json
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dlf.store import cells, exclusive, files
from dlf.store.cells import MEANINGS, NOT_RUN, STORE, Store
from experiments import records, threads
from experiments.build import check_precision
from experiments.command_line import ConfigError, interrupts, note, progress
from experiments.sweep.axes import Sweep
from experiments.sweep.blocks import LOCKS, Plan, plan, too_small, work

_JOBS = "jobs"  # the folder of submitit's files and logs
_STOP = "stop"  # the file that asks local workers to end
_CAN_PIN = hasattr(os, "sched_setaffinity")  # Linux


class Settings(NamedTuple):
    """How a sweep is run; nothing of this changes what it finds."""

    memory: int = 2**30  # bytes, for the arrays of one block
    launcher: str = "here"
    num_jobs: int = 1
    parameters: Mapping[str, str] = {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `settings` reads."""
    parser.add_argument("--launcher", choices=("here", "local", "slurm"), default="here")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--memory", type=float, default=1024.0, metavar="MiB")
    parser.add_argument("--slurm", action="append", default=[], metavar="PARAMETER=VALUE")


def settings(options: argparse.Namespace) -> Settings:
    """Return how a sweep is to be run. Raises ConfigError for options that do not go together."""
    if options.launcher == "slurm" and options.jobs is None:
        raise ConfigError("--launcher=slurm needs --jobs=N")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {options.jobs}")
    if not 0 < options.memory < 2**40:
        raise ConfigError(f"--memory must be positive and finite, got {options.memory:g}")
    for pair in options.slurm:
        if "=" not in pair:
            raise ConfigError(f"--slurm={pair}: give a parameter and its value, such as partition=NAME")
    if options.slurm and options.launcher != "slurm":
        raise ConfigError("--slurm goes with --launcher=slurm")
    parameters = dict(pair.split("=", 1) for pair in options.slurm)
    num_jobs = options.jobs or os.cpu_count() or 1
    return Settings(round(options.memory * 2**20), options.launcher, num_jobs, parameters)


def run(sweep: Sweep, workdir: str | Path, settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008
    """Run all cells of a sweep that are not there yet, and return the content of its meta.json.

    An interrupt (SIGINT, SIGTERM) ends the sweep after the blocks under way; a second one ends this
    process at once, and workers after their blocks. Slurm jobs go on. The next call does what is left.
    Raises ConfigError or StoreError with one line that says what to do; nothing is overwritten.
    """
    workdir = Path(workdir)
    check_precision(sweep.config)
    # what cannot be launched or planned gets no folder
    if settings.launcher != "here":
        with tempfile.TemporaryDirectory() as folder:
            _executor(folder, settings)
    planned = None if workdir.exists() else plan(sweep, settings.memory)
    with exclusive(workdir) as check_same:
        meta = existing(sweep, workdir, settings.memory)
        if not meta:
            meta = create(sweep, workdir, planned or plan(sweep, settings.memory), check_same)
        if settings.launcher == "local" and _CAN_PIN:
            meta["threads"] = threads.used(1)  # of a worker
        for name in (_JOBS, _STOP, LOCKS):
            files.refuse_links(workdir, workdir / name)
        store, failed = Store(workdir), []
        if settings.launcher != "slurm" and os.access(workdir, os.W_OK):
            left = (path for path in (workdir / _JOBS).glob("*") if not path.name.startswith("slurm-"))
            _clear(workdir, left)  # of launches that were killed; jobs of Slurm may still run
        for block, file in store.damaged():
            note(f"{file} is damaged: its block is run again")
            store.forget(block)
        has_run = store.status() != NOT_RUN
        if has_run.all() and meta["status"] == "done":
            return meta  # also in a folder that cannot be written
        if not has_run.all():
            if has_run.any():
                meta = records.resumed(meta, sweep.as_json())
            store.write_meta(meta | {"status": "running"})
            started, done = time.monotonic(), int(has_run.sum())
            with interrupts() as stop, progress("sweep", "cells", done, has_run.size) as show:
                if settings.launcher == "here":
                    for num_cells in work(sweep, workdir, stop):
                        show(done := done + num_cells)
                else:
                    jobs = submit(sweep, workdir, settings)
                    failed = _wait(jobs, store, workdir, settings.launcher == "local", stop, show)
                    failed = [] if stop() else failed  # an interrupt of all, workers too, is none of theirs
            meta["seconds"] += time.monotonic() - started
        status, damaged = Store(workdir).status(), next(store.damaged(), None)
        if damaged:
            raise files.StoreError(f"{damaged[1]} was damaged meanwhile: run the sweep again")
        counts = {meaning: int(np.sum(status == number)) for number, meaning in enumerate(MEANINGS)}
        meta |= {"status": "interrupted" if counts["not run"] else "done", "cells": counts, "failed": failed}
        store.write_meta(meta)
        return meta


def existing(sweep: Sweep, workdir: Path, memory: int) -> dict[str, Any] | None:
    """Check that the work folder takes this sweep, and return the meta of the one in it, None without."""
    has_results = (workdir / STORE).exists() and (Store(workdir).status() != NOT_RUN).any()
    meta = records.opened(workdir, "sweep", sweep.as_json(), has_results)
    if meta and meta["block_bytes"] > memory:
        raise too_small(f"a block of {workdir}, as cut when it was created,", meta["block_bytes"], memory)
    return meta


def create(
    sweep: Sweep, workdir: Path, planned: Plan, check_same: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Write config.json, the empty store and meta.json of a sweep, and return the last one's content.

    `check_same` raises where the folder is no longer the one that was asked for.
    """
    asked, axes = sweep.as_json(), {a.name: a.labels for a in sweep.axes}
    meta = {"status": "running", "seconds": 0.0, **records.provenance(asked), "x64": sweep.config.float64}
    meta["block_bytes"] = planned.block_bytes
    attributes = {"config": json.dumps(asked["config"]), "sweep": sweep.name, "commit": meta["commit"]}
    attributes["network_mode"] = records.MODE
    check_same()
    files.write_json(workdir / "config.json", asked)
    cells.create(workdir, axes, planned.cells_per_block, planned.series, planned.coordinates, attributes)
    Store(workdir).write_meta(meta)
    return meta


class Worker(NamedTuple):
    """One job, which runs blocks until none is left; submitit queues it again if it is preempted."""

    sweep: Sweep
    workdir: Path
    number: int
    settings: Settings
    coordinator: int  # the process that submits

    def __call__(self) -> int:
        """Run blocks and return the number of cells."""
        is_local = self.settings.launcher == "local"
        if is_local and _CAN_PIN:
            # before JAX starts its threads; a small network gains nothing from a second one
            cpus = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cpus[self.number % len(cpus)]})
        jax.config.update("jax_enable_x64", self.sweep.config.float64)
        threads.choose([self.sweep])
        first = self.number / self.settings.num_jobs

        def stop() -> bool:
            return (self.workdir / _STOP).exists() or (is_local and not _is_alive(self.coordinator))

        return sum(work(self.sweep, self.workdir, stop, patient=is_local, first=first))

    def checkpoint(self) -> Any:
        """Return what submitit is to run once more: what has been finished is in the store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's by now
    return True


def _executor(folder: str | Path, settings: Settings) -> Any:
    """Return what submits jobs, whose files are in a folder.

    Raises ConfigError where submitit is missing or refuses the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        message = f"--launcher={settings.launcher} needs submitit: pip install submitit (extra `cluster`)"
        raise ConfigError(message) from error
    try:
        parameters = {key: int(x) if x.isdigit() else x for key, x in settings.parameters.items()}
        executor = submitit.AutoExecutor(folder=folder, cluster=settings.launcher)
        days = 7 if settings.launcher == "local" else 1
        executor.update_parameters(name="dlf", timeout_min=days * 24 * 60, cpus_per_task=1)
        executor.update_parameters(**parameters)
    except Exception as error:  # whatever it raises for a parameter
        raise ConfigError(f"--launcher={settings.launcher}: {error}") from error
    return executor


def submit(sweep: Sweep, workdir: Path, settings: Settings) -> list[Any]:
    """Submit workers as jobs. Raises ConfigError where the launcher refuses them."""
    (workdir / _STOP).unlink(missing_ok=True)
    numbers = range(min(settings.num_jobs, len(Store(workdir).blocks())))
    workers = [Worker(sweep, workdir.resolve(), number, settings, os.getpid()) for number in numbers]
    # a folder of this launch alone: no job's file of another one is read
    folder = workdir.resolve() / _JOBS / f"{settings.launcher}-{uuid.uuid4().hex[:8]}"
    executor = _executor(folder, settings)
    # processes that are started do not hear the interrupt that a terminal sends to all: see `_wait`
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _silence(), executor.batch():
            return [executor.submit(worker) for worker in workers]
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--launcher={settings.launcher}: {error}") from error
    finally:  # an interrupt that came meanwhile is heard now
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let processes that are started say nothing: submitit's controllers, whose workers have logs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _wait(
    jobs: list[Any],
    store: Store,
    workdir: Path,
    is_local: bool,
    stop: Callable[[], bool],
    show: Callable[[int], None],
) -> list[str]:
    """Wait for all jobs, show the cells that are done, and return the logs of the jobs that failed.

    Asked to `stop`, or left by an exception, local workers end after the block under way; those of Slurm
    are left alone.
    """
    next_look = 0.0
    try:
        while not (all_done := all(job.done() for job in jobs)) and not stop() and store.is_own():
            if (started := time.monotonic()) > next_look:
                show(int(np.sum(store.status() != NOT_RUN)))
                now = time.monotonic()
                next_look = now + max(0.5, 20 * (now - started))  # the cores are for the workers
            time.sleep(0.1)
    finally:
        if is_local and store.is_own():
            (workdir / _STOP).touch()
    while is_local and not (all_done := all(job.done() for job in jobs)):
        time.sleep(0.1)
    show(int(np.sum(store.status() != NOT_RUN)))
    failed = [str(job.paths.stderr) for job in jobs if job.done() and job.exception() is not None]
    if all_done and not failed:
        _clear(workdir, [jobs[0].paths.folder])
    return failed


def _clear(workdir: Path, launches: Iterable[Path]) -> None:
    """Remove the files of some launches, and the request to stop."""
    for launch in launches:
        with contextlib.suppress(OSError):  # a worker that outlived its coordinator may still write there
            files.remove(launch)
    with contextlib.suppress(OSError):  # there is none, or it holds those of others
        (workdir / _JOBS).rmdir()
    (workdir / _STOP).unlink(missing_ok=True)
