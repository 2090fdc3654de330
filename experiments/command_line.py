"""What the mains share: flags on top of a config file, and errors in one line.

This is the only place that changes global settings of JAX and of logging.
"""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dlf.store.files import StoreError


class ConfigError(Exception):
    """A configuration cannot be run; the message says what to change."""


def fail(message: object, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """A parser of options that ends the program with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        """End the program with the message."""
        fail(message)


def parse(argv: list[str], usage: str, default_workdir: Path | None = None) -> flags.FlagValues:
    """Return config, workdir and resume as the command line has them; for --help print `usage` and end.

    Raises ConfigError for an unknown or mistyped flag, with the nearest key that exists.
    """
    if {"-h", "--help"} & set(argv):
        print(usage.strip())
        sys.exit(0)
    values = flags.FlagValues()
    workdir = default_workdir and str(default_workdir)
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", workdir, "folder of the run", flag_values=values)
    flags.DEFINE_bool("resume", False, "go on with the run in the folder", flag_values=values)
    try:
        rest = values(argv)
        config = values.config
        list(config or ())  # a config file that cannot be loaded says so only now
    except flags.Error as error:
        raise ConfigError(error) from error
    except (AttributeError, LookupError) as error:
        raise ConfigError(explain_unknown_key(error)) from error
    except Exception as error:  # whatever the config file, a program of the user's, raises
        last_line = str(error).strip().splitlines()[-1:]
        raise ConfigError(f"--config: {type(error).__name__}: {''.join(last_line)}") from error
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}: settings are given as --config.key=value")
    if config is None:
        raise ConfigError("--config is missing: name a file such as experiments/configs/fig4.py")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config: get_config must return a ConfigDict, got {type(config).__name__}")
    if not values.workdir:
        raise ConfigError("--workdir is missing: name the folder for the results")
    return values


def explain_unknown_key(error: Exception) -> str:
    """Return in words what ml_collections says of a key that a configuration does not have."""
    words = re.findall(r"[\w.]+", str(error))
    suggestion = re.search(r'Did you mean "(.+)" instead', str(error))
    did_you_mean = f": did you mean {suggestion[1]!r}?" if suggestion else ""
    return f"unknown config key {words[0]!r}{did_you_mean}" if len(words) < 9 else str(error)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a main and turn what a person can cause into one line and an exit status."""
    logging.getLogger().setLevel(logging.ERROR)  # orbax and absl narrate each checkpoint on it
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for number in (signal.SIGINT, signal.SIGTERM):  # shells let their background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    before, sys.unraisablehook = sys.unraisablehook, lambda ignored: _ask_again(ignored, before)
    try:
        sys.exit(main())
    except (ConfigError, StoreError) as error:
        fail(error)
    except MemoryError as error:
        fail(f"not enough memory: {error}")
    except KeyboardInterrupt:
        fail("interrupted", 130)
    finally:
        sys.unraisablehook = before


def _ask_again(ignored: Any, otherwise: Callable[[Any], None]) -> None:
    # Python drops what is raised in callbacks, of its garbage collector above all, and interrupts with it
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        return otherwise(ignored)
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()


def report(meta: dict[str, Any], workdir: str | Path, go_on: str = "the same command") -> int:
    """Say in one line how a run or a sweep ended, and how to `go_on`, and return its exit status."""
    counts = "".join(f", {number} {of}" for of, number in meta.get("cells", {}).items() if number)
    if meta["status"] == "done":
        print(f"done in {meta['seconds']:.0f} s{counts}: {workdir}", file=sys.stderr)
        return 0
    if meta["status"] == "diverged":
        where = f"at step {meta['diverged_step']}: the rows up to it are in {workdir}"
        advice = "a smaller optimizer.learning_rate or schedule.amplitude may help"
        fail(f"the loss is not finite {where}; {advice}", status=1)
    if logs := meta.get("failed"):
        fail(f"{len(logs)} of the jobs failed, see {logs[0]}{counts}: {go_on} goes on in {workdir}", status=1)
    fail(f"interrupted{counts}: {go_on} goes on in {workdir}", status=130)


def use_precision(config: ConfigDict) -> None:
    """Switch JAX to the precision of the configuration, before its first array."""
    jax.config.update("jax_enable_x64", bool(config.float64))


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may listen
        return
    received = []
    with contextlib.ExitStack() as restore:

        def note(number, frame):
            received.append(number)
            restore.close()

        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, note))
        yield lambda: bool(received)


@contextlib.contextmanager
def progress(action: str, unit: str, first: int, total: int) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error; yield what moves it: (done, words behind it, by default the rate)."""
    columns = BarColumn(), MofNCompleteColumn(), f"{unit}, left", TimeRemainingColumn(), "{task.description}"
    with Progress(action, *columns, console=Console(stderr=True, force_jupyter=False)) as bar:
        task, started = bar.add_task("", total=total, completed=first), time.monotonic()

        def show(done: int, words: str = "") -> None:
            rate = (done - first) / (time.monotonic() - started)
            bar.update(task, completed=done, description=words or (f"{rate:.2g}/s" if rate else ""))

        yield show
