"""Where the workers of a sweep run: in this process, in others of this machine, or on a cluster."""

import argparse
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dlf.store.files import StoreError
from experiments.command_line import ConfigError
from experiments.sweep.axes import Sweep
from experiments.sweep.work import work

LAUNCHERS = ("here", "local", "slurm")
_JOBS = "jobs"  # the folder of submitit's files and logs
_STOP = "stop"  # the file that asks local workers to end
_A_DAY, _A_WEEK = 24 * 60, 7 * 24 * 60  # in minutes


class Settings(NamedTuple):
    """How a sweep is run; nothing of this changes what it finds."""

    memory: int = 2**30  # bytes, for the arrays of one block
    launcher: str = "here"
    num_jobs: int = 1
    parameters: Mapping[str, str] = {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `settings` reads."""
    parser.add_argument("--launcher", choices=LAUNCHERS, default="here")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--memory", type=float, default=1024.0, metavar="MiB")
    parser.add_argument("--slurm", action="append", default=[], metavar="PARAMETER=VALUE")


def settings(options: argparse.Namespace) -> Settings:
    """Return how a sweep is to be run. Raises ConfigError for options that do not go together."""
    if options.launcher == "slurm" and options.jobs is None:
        raise ConfigError("--launcher=slurm needs --jobs=N")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {options.jobs}")
    if not options.memory > 0:
        raise ConfigError(f"--memory must be positive, got {options.memory:g}")
    wrong = next((pair for pair in options.slurm if "=" not in pair), None)
    if wrong:
        raise ConfigError(f"--slurm={wrong}: give a parameter and its value, such as partition=NAME")
    parameters = dict(pair.split("=", 1) for pair in options.slurm)
    num_jobs = options.jobs or os.cpu_count() or 1
    return Settings(round(options.memory * 2**20), options.launcher, num_jobs, parameters)


class Worker:
    """One job: a process that runs blocks of a sweep until none is left.

    After a preemption or a time limit submitit puts the same worker in the queue again; what it has
    finished is in the store.
    """

    def __init__(self, sweep: Sweep, workdir: Path, number: int, settings: Settings):
        self.sweep, self.workdir, self.number, self.settings = sweep, workdir.resolve(), number, settings

    def __call__(self) -> int:
        """Run blocks and return the number of cells."""
        is_local = self.settings.launcher == "local"
        if is_local and hasattr(os, "sched_setaffinity"):  # Linux
            # before JAX starts its threads; a small network gains nothing from a second one
            cpus = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cpus[self.number % len(cpus)]})
        jax.config.update("jax_enable_x64", self.sweep.config.float64)
        stop = (self.workdir / _STOP).exists
        where = self.number, self.settings.num_jobs
        return sum(work(self.sweep, self.workdir, *where, stop=stop, patient=is_local))

    def checkpoint(self) -> Any:
        """Return what submitit is to run once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_workers(
    sweep: Sweep, workdir: Path, settings: Settings, stop: Callable[[], bool], report: Callable[..., None]
) -> list[str]:
    """Run all missing cells, in this process or in workers; return the logs of those that failed.

    `report` hears of the cells of each block that this process has run, else that it is time to look.
    """
    if settings.launcher == "here":
        for num_cells in work(sweep, workdir, stop=stop):
            report(num_cells)
        return []
    failed = wait(submit(sweep, workdir, settings), workdir, settings, report, stop)
    if not failed:
        shutil.rmtree(workdir / _JOBS, ignore_errors=True)
        (workdir / _STOP).unlink(missing_ok=True)
    return failed


def submit(sweep: Sweep, workdir: Path, settings: Settings) -> list[Any]:
    """Submit the workers, each one a job.

    Raises ConfigError if submitit is missing or does not take the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        message = f"--launcher={settings.launcher} needs submitit: pip install submitit (extra `cluster`)"
        raise ConfigError(message) from error
    (workdir / _STOP).unlink(missing_ok=True)
    minutes = _A_WEEK if settings.launcher == "local" else _A_DAY
    try:
        executor = submitit.AutoExecutor(folder=workdir / _JOBS, cluster=settings.launcher)
        executor.update_parameters(name="dlf", timeout_min=minutes, cpus_per_task=1)
        executor.update_parameters(**{key: _number(value) for key, value in settings.parameters.items()})
        with _deaf(), executor.batch():
            return [
                executor.submit(Worker(sweep, workdir, number, settings))
                for number in range(settings.num_jobs)
            ]
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--launcher={settings.launcher}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot start jobs in {workdir}: {error}") from error


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that are started not hear the interrupt that a terminal sends to all: see `wait`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:  # an interrupt that came meanwhile is heard now
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait(
    submitted: list[Any],
    workdir: Path,
    settings: Settings,
    report: Callable[[], None],
    stop: Callable[[], bool],
) -> list[str]:
    """Wait for all jobs and return the logs of those that failed.

    Asked to `stop`, or left by an exception, local workers end after the block under way; those of Slurm
    are left alone.
    """
    is_local, next_look = settings.launcher == "local", 0.0
    try:
        while not all(job.done() for job in submitted) and (is_local or not stop()):
            if stop():
                (workdir / _STOP).touch()
            if time.monotonic() > next_look:
                started = time.monotonic()
                report()
                now = time.monotonic()
                next_look = now + max(0.5, 20 * (now - started))  # the cores are for the workers
            time.sleep(0.1)
    except BaseException:
        if is_local:
            (workdir / _STOP).touch()
        raise
    report()
    return [str(job.paths.stderr) for job in submitted if job.done() and job.exception() is not None]


def _number(value: str) -> int | str:
    return int(value) if value.isdigit() else value
