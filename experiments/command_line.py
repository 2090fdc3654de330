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
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dlf.store.files import StoreError
from experiments.streams import Stream

_DOUBLE = 0.5  # seconds in which a second interrupt means what the first one meant


class ConfigError(Exception):
    """A configuration cannot be run; the message says what to change."""


class Told(SystemExit):
    """The program ends, and has said why."""


def in_one_line(message: object) -> str:
    """Return words as they are, whatever they quote: nothing that steers a terminal or fills it."""
    words = "".join(c if c.isprintable() else "?" for c in " ".join(str(message).split()))
    return words if len(words) < 700 else f"{words[:700]}..."


def note(message: object) -> None:
    """Say in one line on standard error what a person should know while the program goes on."""
    with contextlib.suppress(AttributeError, OSError):  # it may be closed, or full
        sys.stderr.write(f"{in_one_line(message)}\n")


def fail(message: object, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    note(f"error: {message}")
    raise Told(status)


class Parser(argparse.ArgumentParser):
    """A parser that ends the program with one line for a mistake, and has paths as `at_home`."""

    def error(self, message: str) -> NoReturn:
        fail(message)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        return super().parse_known_args([*map(at_home, sys.argv[1:] if args is None else args)], namespace)


def at_home(word: str) -> str:
    """Return an option with the home folder in place of a tilde, which shells leave behind an equals sign.

    >>> at_home("--workdir=x~") == "--workdir=x~" and "~" not in at_home("--workdir=~/x")
    True
    """
    option, equals, value = word.partition("=")
    is_path = option.lstrip("-") in ("config", "workdir") and value.startswith("~")
    return f"{option}={os.path.expanduser(value)}" if equals and is_path else word


def parse(
    argv: list[str], usage: str, default_workdir: Path | None = None, config: ConfigDict | None = None
) -> flags.FlagValues:
    """Return config, workdir and resume as the command line has them; for --help print `usage` and end.

    It names the file of the configuration, unless there is one, `config`, of which it changes settings.
    Raises ConfigError for an unknown or mistyped flag, with the nearest key that exists.
    """
    argv = [at_home(word) for word in argv]
    if {"-h", "--help"} & set(argv):
        print(usage.strip())
        sys.exit(0)
    if sum(word.partition("=")[0].lstrip("-") == "config" for word in argv) > 1:
        raise ConfigError("--config is given twice: of two files one would be left out")
    values = flags.FlagValues()
    workdir = default_workdir and str(default_workdir)
    flags.DEFINE_string("workdir", workdir, "folder of the run", flag_values=values)
    flags.DEFINE_bool("resume", False, "go on with the run in the folder", flag_values=values)
    try:
        if config is None:
            config_flags.DEFINE_config_file("config", flag_values=values)
        else:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
        config = values.config
        if hasattr(type(config), "__getitem__"):
            list(config)  # a config file that cannot be loaded says so only now
    except flags.Error as error:
        # the names of the classes say nothing to a person
        words = re.sub(r"^(\w*Error: )*(flag )?|ValueError\('malformed node.*", "", last_line(error))
        words = re.sub(r"\('(.*)', '.*'\)$", r"\1", words).removesuffix(": ")
        if words.startswith("get_config()"):
            words = f"--config: {words}: it takes none, or one by position, which is --config=FILE:argument"
        raise ConfigError(words) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the config file, a program of the user's, raises
        places = {at.name for at in traceback.extract_tb(error.__traceback__)}
        if isinstance(error, AttributeError | LookupError) and not places & {"get_config", "<module>"}:
            if "'get_config'" in last_line(error):
                raise ConfigError("--config: the file has no function get_config") from error
            raise ConfigError(explain_unknown_key(error)) from error
        raise ConfigError(f"--config: {last_line(error)}") from error
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}: settings are given as --config.key=value")
    if config is None and not values["config"].present:
        raise ConfigError("--config is missing: name a file such as experiments/configs/fig4.py")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config: get_config must return a ConfigDict, got {type(config).__name__}")
    if not values.workdir:
        raise ConfigError("--workdir is missing: name the folder for the results")
    return values


def last_line(error: BaseException) -> str:
    """Return what an error says at its end, and the line of the config file that raised it."""
    places, chain = [], [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for raised in chain:  # the first error of the file is the last of the chain that comes from it
        if at := [at for at in traceback.extract_tb(raised.__traceback__) if at.name == "get_config"]:
            places, error = at, raised
    where = f"line {places[-1].lineno}, `{places[-1].line}`: " if places else ""
    try:
        words = str(error).strip()
    except Exception:  # whatever the class of a user's error raises
        words = ""
    if "Did you mean" in words:
        return where + explain_unknown_key(error)
    return f"{where}{type(error).__name__}: {''.join(words.splitlines()[-1:])}".rstrip(": ")


def explain_unknown_key(error: Exception) -> str:
    """Return in words what ml_collections says of a key that a configuration does not have."""
    words = re.findall(r"[\w.]+", str(error)) or [""]
    suggestion = re.search(r'Did you mean "(.+)" instead', str(error))
    did_you_mean = f": did you mean {suggestion[1]!r}?" if suggestion else ""
    return f"unknown config key {words[0]!r}{did_you_mean}" if len(words) < 9 else str(error)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a main and turn what a person can cause into one line and an exit status."""
    logging.getLogger().setLevel(logging.ERROR)  # orbax and absl narrate each checkpoint on it
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    heard, before = [-_DOUBLE], sys.unraisablehook
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Stream(stream) for stream in streams)  # None is a closed one

    def interrupt(number, frame):
        while frame is not None and frame.f_code is not dropped.__code__:
            frame = frame.f_back
        if frame is not None:  # it would be dropped once more
            ask_again()
        elif time.monotonic() - heard[-1] > _DOUBLE:
            heard.append(time.monotonic())
            raise KeyboardInterrupt

    def ask_again():
        heard.append(-_DOUBLE)
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    def dropped(ignored):
        # Python drops what is raised in callbacks, of its garbage collector above all, and interrupts with it
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            ask_again()
        elif str(ignored.exc_value) != "Event loop is closed":  # other writes of a checkpoint that failed
            before(ignored)

    sys.unraisablehook = dropped
    said, format_before = set(), warnings.formatwarning

    def once(words, *_):
        again, _ = str(words) in said, said.add(str(words))
        return "" if again else f"{in_one_line(f'warning: {words}')}\n"

    warnings.formatwarning = once
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # shells let their background jobs ignore the first
            signal.signal(number, interrupt)
        sys.exit(_told(main, heard))
    except SystemExit as end:
        leave(end)
        raise
    finally:
        sys.stdout, sys.stderr = streams
        sys.unraisablehook = before
        warnings.formatwarning = format_before
        for number in (signal.SIGINT, signal.SIGTERM):  # a handler would raise in Python's own end
            signal.signal(number, signal.SIG_DFL)


def _told(main: Callable[[], int], heard: list[float]) -> int:
    try:
        return main()
    except KeyboardInterrupt as at_once:
        fail(f"interrupted {at_once}".rstrip(), 130)
    except Exception as error:
        if max(heard) > 0:  # a module in C makes another error of an interrupt while it is imported
            fail("interrupted", 130)
        if isinstance(error, ConfigError | StoreError):
            fail(error)
        if isinstance(error, OSError):
            fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
        if isinstance(error, MemoryError):
            fail(f"not enough memory: {error}".rstrip(": "))
        raise


def leave(end: SystemExit) -> None:
    """End the process now if it failed or cannot speak.

    Threads of JAX, orbax and zarr that still work would crash, speak or wait, and Python would try to
    write what was lost once more.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a pipe that nobody reads may hold the end up
        signal.signal(number, signal.SIG_DFL)
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream]
    for stream in streams:
        stream.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost and not isinstance(lost, BrokenPipeError) and not end.code:  # a reader that had enough is none
        note(f"error: cannot write standard output: {lost.strerror}")
        end.code = 2
    if isinstance(end, Told) or any(stream.lost for stream in streams):
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)


def report(meta: dict[str, Any], workdir: str | Path, go_on: str = "the same command") -> int:
    """Say in one line how a run or a sweep ended, and how to `go_on`, and return its exit status."""
    counts = "".join(f", {number} {of}" for of, number in meta.get("cells", {}).items() if number)
    if meta["status"] == "done":
        note(f"done in {meta['seconds']:.0f} s{counts}: {workdir}")
        return 0
    if meta["status"] == "diverged":
        where = f"at step {meta['diverged_step']}: the rows up to it are in {workdir}"
        advice = "a smaller optimizer.learning_rate or schedule.amplitude may help"
        if meta["diverged_step"] == 0:
            advice = "no update was made yet: look at data, network, first parameters and class weights"
        fail(f"the loss is not finite {where}; {advice}", status=1)
    if logs := meta.get("failed"):
        fail(f"{len(logs)} of the jobs failed, see {logs[0]}{counts}: {go_on} goes on in {workdir}", status=1)
    fail(f"interrupted{counts}: {go_on} goes on in {workdir}", status=130)


def use_precision(config: ConfigDict) -> None:
    """Switch JAX to the precision of the configuration, before its first array."""
    jax.config.update("jax_enable_x64", bool(config.float64))


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop; one that comes later acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may listen
        return
    received = []
    with contextlib.ExitStack() as restore:

        def hear(number, frame):
            received.append(time.monotonic())
            if received[-1] - received[0] > _DOUBLE:
                restore.close()
                raise KeyboardInterrupt("at once: what was committed before stays, to go on from")

        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, hear))
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
