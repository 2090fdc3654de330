"""What a configuration may hold, and how large a run may be: said before anything is made."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import UnionType
from typing import Any, get_args

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dlf import memory
from experiments.command_line import ConfigError

# See experiments/configs/fig4.py: counts with the least of each, a seed, the precision, probes, and sections
# that name a function.
LEAST = {"num_steps": 1, "steps_per_chunk": 1, "checkpoints_kept": 1, "stop_after": 0}
# What may differ between runs of one program: numbers that are traced, and seeds of what they draw.
FLOATS = "schedule.amplitude", "optimizer.learning_rate", "optimizer.learning_rate.peak"
COUNTS = "schedule.period", "stop_after"
SEEDS = ("seed", "dataset.seed")
SECTIONS = ("dataset", "model", "loss", "schedule", "optimizer")
MOST_STEPS = 2**31 - 1  # a step is an int32
_MOST_VALUES = 1_000  # of a tuple
_OF_THE_PAST = ("momentum", "b1", "b2", "b3", "decay", "rho")  # weights in optax, which would sum without end
_FLOATS = ("bfloat16", "float16", "float32", "float64")
_KINDS = dict.fromkeys(LEAST, int) | {"seed": int, "float64": bool}


class Config(ConfigDict):
    """A ConfigDict that takes numbers of NumPy and JAX for Python's, and no boolean for a number."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, dict | ConfigDict) and not isinstance(value, Config):
            section = Config()
            for name, of in value.items():
                section[name] = of
            value = section
        value, kind = _number(value), type(self.get(key))
        try:
            if type(value) is bool and kind in (int, float):
                raise TypeError
            if key == "learning_rate" and (is_schedule(value) or is_schedule(self.get(key))):  # or a number
                with self.ignore_type():
                    return super().__setitem__(key, value)
            super().__setitem__(key, value)
        except TypeError as error:
            must = "dict(...)" if issubclass(kind, ConfigDict) else _WORDS.get(kind, f"a {kind.__name__}")
            raise TypeError(f"{key} must be {must}, got {_shown(value)}") from error


def is_schedule(learning_rate: Any) -> bool:
    """Return whether a learning rate is a schedule: a section, or the name of one's own function.

    >>> is_schedule(0.1), is_schedule("mine.py:rate"), is_schedule({"name": "linear_schedule"})
    (False, True, True)
    """
    is_own = isinstance(learning_rate, str) and ":" in learning_rate
    return is_own or isinstance(learning_rate, Mapping | ConfigDict)


def is_argument(name: str, value: Any) -> bool:
    """Return whether a program takes this value of a setting as an argument: a number, no schedule."""
    is_one = name in (*FLOATS, *COUNTS, *SEEDS)
    return is_one and not (name == "optimizer.learning_rate" and is_schedule(value))


def _shown(value: Any) -> str:
    try:
        words = " ".join(repr(value).split())
    except Exception:  # whatever the class of a user's value raises
        words = f"a {type(value).__name__}"
    return words if len(words) < 60 else f"{words[:60]}..."


def _number(value: Any) -> Any:
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
    # a random key of JAX is no number
    return np.asarray(value).item() if is_array and isinstance(value.dtype, np.dtype) else value


def checked(config: ConfigDict) -> Config:
    """Return a configuration of plain values: numbers of NumPy and JAX become Python's, lists tuples.

    Raises ConfigError that names the key of a value that is no number, word, boolean or tuple of these, of a
    key that is unknown or missing, and of a count out of its range.
    """
    needed = {*_KINDS, *SECTIONS, "probes"}
    for problem, keys in (
        ("lacks", needed - set(config)),
        ("has unknown", set(config) - needed - {"batches"}),
    ):
        if keys:
            raise ConfigError(
                f"the config {problem} {', '.join(sorted(keys))}: see experiments/configs/fig4.py"
            )
    for key, kind in _KINDS.items():
        if type(_number(config[key])) is not kind:
            raise ConfigError(f"config.{key} must be {_WORDS[kind]}, got {_shown(config[key])}")
    sections = *SECTIONS, *({"batches"} & set(config))
    for section in (*sections, "probes"):
        if not isinstance(config[section], Mapping | ConfigDict):
            raise ConfigError(f"config.{section} must be dict(...), got {_shown(config[section])}")
    try:
        content = _plain(config, "config")
    except RecursionError as error:
        raise ConfigError("the config holds itself, or is too deep") from error
    for key, least, most in [("seed", 0, 2**32 - 1), *((key, of, MOST_STEPS) for key, of in LEAST.items())]:
        if not least <= content[key] <= most:
            raise ConfigError(f"{key} must be at least {least} and at most {most}, got {content[key]}")
    for section in sections:
        if not isinstance(content[section].get("name"), str):
            raise ConfigError(f"config.{section} must be dict(name=..., ...), got {content[section]!r}")
    for name, of in content["probes"].items():
        if not isinstance(of, dict):
            raise ConfigError(f"config.probes.{name} must be dict(...), got {of!r}")
        every = of.get("every", 1)
        if type(every) is not int or not 1 <= every <= MOST_STEPS:
            raise ConfigError(
                f"probes.{name}.every must be at least 1 and at most {MOST_STEPS}, got {every!r}"
            )
    check_optimizer(content["optimizer"])
    plain = Config()
    plain.sections = content  # sections, too, become ones of this class
    return plain.sections


def _plain(value: Any, key: str) -> Any:
    """Return a value of a configuration as JSON could hold it, lists as tuples."""
    if isinstance(value, Mapping | ConfigDict):
        try:
            wrong = [name for name in value if not isinstance(name, str)]
        except TypeError as error:  # a ConfigDict sorts them
            raise ConfigError(f"{key}: all keys must be words") from error
        if wrong:
            raise ConfigError(f"{key}: a key must be a word, got {wrong[0]!r}")
        return {name: _plain(of, f"{key}.{name}") for name, of in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > _MOST_VALUES:
            raise ConfigError(f"{key} has {len(value):,} values: at most {_MOST_VALUES:,} are taken")
        return tuple(_plain(of, f"{key}[{number}]") for number, of in enumerate(value))
    value = _number(value)
    if type(value) not in (bool, int, float, str) or (type(value) is float and not math.isfinite(value)):
        words = "a finite number, a word, a boolean or a tuple of these"
        raise ConfigError(f"{key} must be {words}, got {_shown(value)}")
    return value


def check_optimizer(section: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that optax does not take as a number, switch or dtype."""
    builder = getattr(optax, section["name"], None)
    known = inspect.signature(builder).parameters if inspect.isfunction(builder) else {}
    for key, value in section.items():
        if key not in known or key == "learning_rate" or (isinstance(value, str) and ":" in value):
            continue  # the optimizer itself says so; a rate may be a schedule, a mask one's own function
        kinds = {known[key].annotation, *get_args(known[key].annotation)}
        if float in kinds or int in kinds:
            must, fits = "a number", isinstance(value, Real) and type(value) is not bool
            if key in _OF_THE_PAST:
                must, fits = "at least 0 and below 1", fits and 0 <= value < 1
        elif key.endswith("dtype"):
            must, fits = f"one of {', '.join(_FLOATS)}", value in _FLOATS
        else:
            must, fits = "True or False", type(value) is bool
        if not fits:
            raise ConfigError(f"optimizer.{key} must be {must}, got {value!r}")


def check_size(what: str, needed: float) -> None:
    """Raise ConfigError if something takes more bytes than the machine has memory."""
    try:
        memory.require(what, needed)
    except ValueError as error:
        raise ConfigError(str(error)) from error


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a word",
    Sequence[int]: "whole numbers, such as (100,)",
    Sequence[float]: "numbers, such as (0.5,)",
}


def check_kinds(what: str, builder: Callable, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that is not of the kind which a function of a catalogue declares."""
    for name, parameter in inspect.signature(builder).parameters.items():
        kinds = get_args(parameter.annotation) if isinstance(parameter.annotation, UnionType) else ()
        kind = next((of for of in kinds or (parameter.annotation,) if of in _WORDS), None)
        if parameter.default is parameter.empty and kind and name not in given:
            raise ConfigError(f"{what}.{name} is missing: it is {_WORDS[kind]}")
        if kind and name in given and not _is(given[name], kind):
            raise ConfigError(f"{what}.{name} must be {_WORDS[kind]}, got {given[name]!r}")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, jax.Array):  # traced: checked before
        return True
    if kind in (Sequence[int], Sequence[float]):
        return isinstance(value, list | tuple) and all(_is(of, *get_args(kind)) for of in value)
    return type(value) is kind or (kind is float and type(value) is int)
