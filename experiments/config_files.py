"""Config files as modules: those of the figures and a user's own, and the form that each part must have."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr
from ml_collections import ConfigDict

from analysis import figures
from experiments.command_line import ConfigError, last_line
from experiments.sweep.axes import MOST_LABELS

CONFIGS = Path(__file__).parent / "configs"
SCALES = ("smoke", "small", "paper")
NAMES = tuple(sorted(path.stem for path in CONFIGS.glob("[a-z]*.py")))


def find(name: str) -> ModuleType:
    """Return the config module of a figure. Raises ConfigError for one that is unknown or lacks a part."""
    if name not in NAMES and not name.endswith(".py"):
        raise ConfigError(f"unknown figure {name!r}: one of {', '.join(NAMES)}")
    if Path(name).stem in ("config", "meta", "ledger", "measured"):
        raise ConfigError(f"{name}: its results would lie on those of the run, give the file another name")
    known = name in NAMES
    module = importlib.import_module(f"experiments.configs.{name}") if known else load_config_file(Path(name))
    for part in ("get_config", "reduce", "FIGURE", "EXPECTED"):
        if not hasattr(module, part):
            raise ConfigError(f"{module.__file__} has no {part}: see experiments/configs/fig4.py")
    for part in ("get_config", "reduce", "measure", "in_words", "sweep"):
        if not callable(getattr(module, part, print)):
            raise ConfigError(f"{module.__file__}: {part} must be a function")
    is_named = isinstance(module.FIGURE, str | tuple | list) and len(module.FIGURE)
    if not is_named or not all(name in figures.__all__ for name in functions_of(module)):
        raise ConfigError(f"{module.__file__}: FIGURE {module.FIGURE!r} is not in analysis.figures")
    runs, csv = getattr(module, "RUNS", {}), getattr(module, "CSV", ("", ""))
    if not (
        isinstance(runs, dict) and all(callable(of) and str(name).isidentifier() for name, of in runs.items())
    ):
        raise ConfigError(f"{module.__file__}: RUNS must map names to functions, got {runs!r}")
    overrides = getattr(module, "OVERRIDES", ())
    if not isinstance(overrides, tuple | list) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(f"{module.__file__}: OVERRIDES must be names of settings, got {overrides!r}")
    if twice := runs.keys() & {"measured", *sweeps_of(module)}:
        raise ConfigError(f"{module.__file__}: RUNS has {twice.pop()!r}, which is the name of other results")
    is_csv = isinstance(csv, tuple | list) and [*map(type, csv)] == [str, str]
    if not is_csv or Path(csv[0]).name != csv[0]:
        raise ConfigError(f"{module.__file__}: CSV must be (file, dimension), got {csv!r}")
    for row in module.EXPECTED if isinstance(module.EXPECTED, tuple | list) else [None]:
        if not _is_expected(row):
            form = "(variable, step or {dimension: label}, expected, least, most, source)"
            raise ConfigError(f"{module.__file__}: EXPECTED holds rows {form}, got {row!r}")
    return module


def load_config_file(path: Path) -> ModuleType:
    """Return a configuration file as a module. Raises ConfigError if that cannot be."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ConfigError(f"{path} is no file of Python code")
    module = importlib.util.module_from_spec(spec)
    is_new = sys.modules.setdefault(path.stem, module) is module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's file raises
        raise ConfigError(f"{path}: {last_line(error)}") from error
    finally:
        if is_new:
            sys.modules.pop(path.stem, None)
    return module


def named_sweeps(module: ModuleType) -> dict[str, Callable[..., Iterable]]:
    """Return the sweeps of a file: `sweep` as "main", `sweep_x` as "x". Raises ConfigError without any."""
    found = {}
    for function, value in vars(module).items():
        if callable(value) and (function == "sweep" or function.startswith("sweep_")):
            name = function.removeprefix("sweep").removeprefix("_") or "main"
            if name in found or name == "measured":
                raise ConfigError(f"{module.__file__}: {function} has the name of other results, {name!r}")
            found[name] = value
    if found:
        return found
    raise ConfigError(f"{module.__file__} declares no sweep: see experiments/configs/phase_losses.py")


def config_of(module: ModuleType, name: str) -> Callable[..., ConfigDict]:
    """Return what gives the configuration of a sweep: `get_config_x` of "x" if there is one, `get_config`."""
    return getattr(module, f"get_config_{name}", module.get_config)


def takes_scale(function: Callable) -> bool:
    """Return whether a function of a config file takes the scale. Raises ConfigError for what is none."""
    try:
        return "scale" in inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{function!r} must be a function, of the scale or of nothing") from error


def configuration(what: str, get_config: Callable, scale: str | None) -> ConfigDict:
    """Return what `get_config` gives, of the scale or of nothing. Raises ConfigError with what is wrong."""
    config = _told(what, scale, lambda: _called(get_config, scale))
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{what}: get_config must return a ConfigDict, got {type(config).__name__}")
    return config


def holds(config: ConfigDict, word: str, module: ModuleType) -> bool:
    """Return whether an override, such as --config.dataset.path=DIR, is for one of a figure's configurations.

    All are for the only run of a figure; of several runs and sweeps some may lack what it sets.
    """
    names, section = word.partition("=")[0].removeprefix("--config.").split("."), config
    for name in names if hasattr(module, "OVERRIDES") else ():
        if not isinstance(section, ConfigDict) or name not in section:
            return False
        section = section[name]
    return True


def declare(sweep: Callable[..., Iterable], scale: str | None) -> list:
    """Return what a function of the scale or of nothing yields. Raises ConfigError with what it raises."""
    what = getattr(sweep, "__name__", "sweep")
    first = _told(what, scale, lambda: list(islice(_called(sweep, scale), MOST_LABELS + 1)))
    if len(first) > MOST_LABELS:
        raise ConfigError(f"{what} with scale {scale!r} yields more than {MOST_LABELS:,} times")
    return first


def _called(function: Callable, scale: str | None) -> Any:
    return function(scale=scale) if scale and takes_scale(function) else function()


def _told(what: str, scale: str | None, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's function raises
        raise ConfigError(f"{what}{f' with scale {scale!r}' if scale else ''}: {last_line(error)}") from error


def tables(in_words: Callable, found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the tables that `in_words` of a file gives. Raises TypeError for what are none."""
    tables = in_words(found)
    if not isinstance(tables, dict) or not all(map(_is_table, tables.values())):
        raise TypeError(f"in_words must return {{title: [header, row, ...]}}, rows alike, got {tables!r}")
    return tables


def _is_table(rows: Any) -> bool:
    are_rows = isinstance(rows, tuple | list) and all(isinstance(row, tuple | list) for row in rows)
    words = [word for row in rows for word in row] if are_rows else [None]
    return all(isinstance(word, str) for word in words) and len({*map(len, rows)}) == 1


def functions_of(module: ModuleType) -> tuple[str, ...]:
    """Return the names of the functions in analysis.figures that draw a figure."""
    return (module.FIGURE,) if isinstance(module.FIGURE, str) else tuple(module.FIGURE)


def sweeps_of(module: ModuleType) -> dict[str, Callable[..., Iterable]]:
    """Return the sweeps of a figure by name, of which it may have none."""
    declared = any(callable(of) and (name + "_").startswith("sweep_") for name, of in vars(module).items())
    return named_sweeps(module) if declared else {}


def _is_expected(row: Any) -> bool:
    kinds = [str, Integral | dict, Real, Real, Real, str]
    if not (isinstance(row, tuple | list) and len(row) == 6 and all(map(isinstance, row, kinds))):
        return False
    labels = row[1].items() if isinstance(row[1], dict) else ()
    if isinstance(row[1], bool) or not row[3] <= row[2] <= row[4]:
        return False
    return all(isinstance(dim, str) and isinstance(of, str | Real) for dim, of in labels)
