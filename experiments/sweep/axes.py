"""What a sweep varies, as a configuration file declares it.

    def sweep(scale):
        yield axis("amplitude", (1.0, 10.0, 70.0), "schedule.amplitude")
        yield axis("seed", range(20), "seed", "dataset.seed")
        yield record("final", "accuracy", "validation_accuracy")

A sweep yields axes, whose grid is run, or overrides such as {"schedule.amplitude": 3.0}, one a cell.
"""

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dlf.ensembles import RECORDS
from dlf.store.cells import RESERVED
from experiments import build
from experiments.command_line import ConfigError, explain_unknown_key

SCALES = ("smoke", "small", "paper")


class Axis(NamedTuple):
    """One dimension of a sweep: its labels, and the settings that each stands for."""

    name: str
    labels: tuple[Any, ...]
    overrides: tuple[dict[str, Any], ...]

    @property
    def keys(self) -> set[str]:
        """The settings that the axis varies."""
        return {key for override in self.overrides for key in override}

    @property
    def is_static(self) -> bool:
        """Whether the axis changes more than the numbers that one program takes as arguments."""
        return not self.keys <= {*build.FLOATS, *build.COUNTS, *build.SEEDS}


class Record(NamedTuple):
    """What to keep of a run: see `dlf.ensembles.make_ensemble`. No variables means all of them."""

    kind: str
    variables: tuple[str, ...]


def axis(name: str, values: Iterable[Any], *keys: str | Callable[[Any], Mapping[str, Any]]) -> Axis:
    """Vary the settings `keys` together over `values`, or the settings that a function of the value gives.

    >>> axis("seed", range(2), "seed", "dataset.seed").overrides[1]
    {'seed': 1, 'dataset.seed': 1}
    >>> axis("width", (10, 30), lambda width: {"model.hidden_widths": (width,)}).overrides[1]
    {'model.hidden_widths': (30,)}
    """
    # NumPy's numbers are not what a configuration holds
    labels = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    overrides = [
        {k: v for key in keys for k, v in (key(label) if callable(key) else {key: label}).items()}
        for label in labels
    ]
    return Axis(name, labels, tuple(overrides))


def record(kind: str, *variables: str) -> Record:
    """Keep `variables`: their "final" values or the whole "series"."""
    return Record(kind, variables)


class Sweep(NamedTuple):
    """A configuration, the axes that it is varied over, and what to keep of each run."""

    config: ConfigDict
    name: str
    axes: tuple[Axis, ...]
    record: Record

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of cells along every axis."""
        return tuple(len(axis.labels) for axis in self.axes)

    def cell(self, index: Iterable[int]) -> ConfigDict:
        """Return the configuration of one cell. Raises ConfigError where a value does not fit its key."""
        config = self.config.copy_and_resolve_references()
        for axis, number in zip(self.axes, index, strict=True):
            for key, value in axis.overrides[number].items():
                try:
                    config.update_from_flattened_dict({key: value})
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"{key}={value!r}: {error}") from error
        return config

    def as_json(self) -> dict[str, Any]:
        """Return what config.json holds: a sweep with another content does not mix with this one."""
        axes = {axis.name: {"labels": axis.labels, "overrides": axis.overrides} for axis in self.axes}
        content = {"config": json.loads(self.config.to_json()), "sweep": self.name, "axes": axes}
        return json.loads(json.dumps(content | {"record": self.record._asdict()}))


def load_config_file(path: Path) -> ModuleType:
    """Return a configuration file as a module. Raises ConfigError if that cannot be."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ConfigError(f"{path} is no file of Python code")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def named_sweeps(module: ModuleType) -> dict[str, Callable[..., Iterable]]:
    """Return the sweeps of a file: `sweep` as "main", `sweep_x` as "x". Raises ConfigError without any."""
    found = {
        name.removeprefix("sweep").removeprefix("_") or "main": value
        for name, value in vars(module).items()
        if callable(value) and (name == "sweep" or name.startswith("sweep_"))
    }
    if found:
        return found
    raise ConfigError(f"{module.__file__} declares no sweep: see experiments/configs/phase_losses.py")


def declare(sweep: Callable[..., Iterable], scale: str) -> list:
    """Return what a function of the scale or of nothing yields. Raises ConfigError with what it raises."""
    try:
        return list(sweep(scale) if inspect.signature(sweep).parameters else sweep())
    except Exception as error:  # whatever the user's function raises
        message = f"{sweep.__name__} with scale {scale!r}: {type(error).__name__}: {error}"
        raise ConfigError(message) from error


def make_sweep(config: ConfigDict, name: str, declared: Iterable[Axis | Record | Mapping]) -> Sweep:
    """Put together what a configuration file declares.

    Raises ConfigError for an axis that is empty, repeats a value, or sets what the configuration lacks.
    """
    declared = list(declared)
    axes = [item for item in declared if isinstance(item, Axis)]
    kept = [Record("final", ()), *(item for item in declared if isinstance(item, Record))][-1]
    cells = tuple(dict(item) for item in declared if not isinstance(item, Axis | Record))
    if cells:
        axes.append(Axis("cell", tuple(range(len(cells))), cells))
    if kept.kind not in RECORDS:
        raise ConfigError(f"record {kept.kind!r}: one of {', '.join(RECORDS)}")
    if not axes:
        raise ConfigError(f"sweep {name!r} has no axis: yield axis(...) or overrides")
    sweep, owners = Sweep(config.copy_and_resolve_references(), name, tuple(axes), kept), {}
    for number, a in enumerate(axes):
        _check(a, taken={*RESERVED, *(other.name for other in axes[:number])})
        for key in a.keys:
            if key in owners:
                raise ConfigError(f"the axes {owners[key].name} and {a.name} both set {key}")
            owners[key] = a
            try:
                reduce(getattr, key.split("."), config)
            except (AttributeError, KeyError) as error:
                raise ConfigError(f"axis {a.name!r}: {explain_unknown_key(error)}") from error
    if "float64" in owners:
        precisions = {of.get("float64", config.float64) for of in owners["float64"].overrides}
        if not precisions <= {True, False}:
            raise ConfigError(f"float64 is True or False, got {', '.join(map(repr, precisions))}")
        if len(precisions) > 1:
            raise ConfigError("all cells of a sweep have one precision: declare a second sweep for float64")
        (sweep.config.float64,) = precisions
    return sweep


def _check(axis: Axis, taken: set[str]) -> None:
    """Raise ConfigError for an axis that sets nothing, or that one labelled dimension cannot hold."""
    labels = axis.labels
    kinds = {float if type(label) in (int, float) else type(label) for label in labels}
    twice = next((label for label in labels if labels.count(label) > 1), None)
    mixed = len(kinds) > 1 or not kinds <= {bool, float, str}
    problems = {
        ": give it a name of letters, digits and underscores": not axis.name.isidentifier(),
        ": another one, or a variable of every sweep, has this name": axis.name in taken,
        " has no values": not labels,
        ": label it with numbers, words or booleans, and turn a label into other settings by a function, "
        "such as lambda width: {'model.hidden_widths': (width,)}": mixed,
        " has a number that does not fit 64 bits": any(
            abs(x) >= 2**63 for x in axis.labels if type(x) is int
        ),
        f" has the value {twice} twice": twice is not None,
        " sets nothing: name the keys of the config that it varies": not axis.keys,
    }
    for words in (words for words, is_so in problems.items() if is_so):
        raise ConfigError(f"axis {axis.name!r}{words}")
