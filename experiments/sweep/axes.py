"""What a sweep varies, as a configuration file declares it.

    def sweep(scale):
        yield axis("amplitude", (1.0, 10.0, 70.0), "schedule.amplitude")
        yield axis("seed", range(20), "seed", "dataset.seed")
        yield record("final", "accuracy", "validation_accuracy")

A sweep yields axes, whose grid is run, or overrides such as {"schedule.amplitude": 3.0}, one a cell.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dlf.ensembles import RECORDS
from dlf.store.cells import RESERVED
from experiments.command_line import ConfigError, explain_unknown_key
from experiments.settings import checked, is_argument

MOST_LABELS = 10**6


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
        return not all(is_argument(*of) for override in self.overrides for of in override.items())


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
    first = islice(values, MOST_LABELS + 1)
    labels = tuple(value.item() if isinstance(value, np.generic) else value for value in first)
    if len(labels) > MOST_LABELS:
        raise ConfigError(f"axis {name!r} has more than {MOST_LABELS:,} values")
    overrides = []
    for label in labels:
        try:
            of = [key(label) if callable(key) else {key: label} for key in keys]
            overrides.append({key: value for settings in of for key, value in settings.items()})
        except Exception as error:  # whatever the user's function raises or returns
            raise ConfigError(f"axis {name!r}, value {label!r}: {type(error).__name__}: {error}") from error
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
        return checked(config)

    def as_json(self) -> dict[str, Any]:
        """Return what config.json holds: a sweep with another content does not mix with this one."""
        axes = {axis.name: {"labels": axis.labels, "overrides": axis.overrides} for axis in self.axes}
        content = {"config": json.loads(self.config.to_json()), "sweep": self.name, "axes": axes}
        return json.loads(json.dumps(content | {"record": self.record._asdict()}))


def make_sweep(config: ConfigDict, name: str, declared: Iterable[Axis | Record | Mapping]) -> Sweep:
    """Put together what a configuration file declares.

    Raises ConfigError for an axis that is empty, repeats a value, or sets what the configuration lacks.
    """
    declared = list(declared)
    for item in declared:
        if not isinstance(item, Axis | Record | Mapping):
            raise ConfigError(
                f"sweep {name!r} yields {item!r}: yield axis(...), record(...) or a dict of overrides"
            )
    axes = [item for item in declared if isinstance(item, Axis)]
    kept = [Record("final", ()), *(item for item in declared if isinstance(item, Record))][-1]
    cells = tuple(dict(item) for item in declared if not isinstance(item, Axis | Record))
    if cells:
        axes.append(Axis("cell", tuple(range(len(cells))), cells))
    if kept.kind not in RECORDS or not all(isinstance(name, str) for name in kept.variables):
        raise ConfigError(
            f"record{(kept.kind, *kept.variables)}: one of {', '.join(RECORDS)}, and names of variables"
        )
    if not axes:
        raise ConfigError(f"sweep {name!r} has no axis: yield axis(...) or overrides")
    sweep, owners = Sweep(checked(config), name, tuple(axes), kept), {}
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
    mixed = len(kinds) > 1 or not kinds <= {bool, float, str}
    seen: set[Any] = set()
    twice = next((of for of in labels if of in seen or seen.add(of)), None) if not mixed else None
    problems = {
        ": give it a name of letters, digits and underscores": not (
            isinstance(axis.name, str) and axis.name.isidentifier()
        ),
        ": another one, or a variable of every sweep, has this name": str(axis.name) in taken,
        " has no values": not labels,
        ": label it with numbers, words or booleans, and turn a label into other settings by a function, "
        "such as lambda width: {'model.hidden_widths': (width,)}": mixed,
        " has a number that does not fit 64 bits": any(
            abs(x) >= 2**63 for x in axis.labels if type(x) is int
        ),
        f" has the value {twice} twice": twice is not None,
        " has a value that is not finite": any(type(x) is float and not math.isfinite(x) for x in labels),
        " sets nothing: name the keys of the config that it varies": not axis.keys,
    }
    for words in (words for words, is_so in problems.items() if is_so):
        raise ConfigError(f"axis {axis.name!r}{words}")
