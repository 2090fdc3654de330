"""The functions that a configuration names: of the catalogues, or a user's own by "module:function".

An own function stands in a file, "folder/mine.py:function", as seen from the current folder, or in a module
that can be imported. It takes and returns what those of the catalogue do (see the names there).
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from analysis import probes
from dlf import optimizers
from dlf.types import Optimizer, Probe, Problem
from experiments.command_line import ConfigError
from experiments.settings import check_kinds


def find(catalogue: Any, kind: str, name: str) -> Callable[..., Any]:
    """Return a function of a catalogue, or one's own. Raises ConfigError where there is none."""
    if ":" in name:
        return own(name)
    if name not in catalogue.__all__:
        known = ", ".join(catalogue.__all__)
        raise ConfigError(f'unknown {kind} {name!r}: one of {known}, or your own as "file.py:function"')
    return getattr(catalogue, name)


def call(catalogue: Any, kind: str, section: Mapping[str, Any], *args: Any, **settings: Any) -> Any:
    """Call the function that a section names, with its other entries as keyword arguments.

    `settings` are those that follow from the data set. Raises ConfigError for whatever the function raises.
    """
    for key in settings.keys() & section.keys():
        raise ConfigError(f"{kind}.{key} follows from the data set: leave it out")
    given = {**settings, **resolved(section)}
    builder = find(catalogue, kind, section["name"])
    del given["name"]
    with blaming(f"{kind} {section['name']}"):
        check_kinds(kind, builder, given)
        return builder(*args, **given)


def bound(catalogue: Any, kind: str, section: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that a section names, its other entries bound."""
    given = resolved(section)
    function = find(catalogue, kind, section["name"])
    del given["name"]
    with blaming(f"{kind} {section['name']}"):
        check_kinds(kind, function, given)
        inspect.signature(function).bind_partial(**given)
    return partial(function, **given) if given else function


def optimizer(section: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer of a section, with the schedule and the transformations that it names."""
    return optimizers.make_optimizer(**resolved(section))


def probe(name: str, problem: Problem, given: Mapping[str, Any]) -> Probe:
    """Return a probe, which a section without a name names by its key."""
    settings = dict(given)
    builder = find(probes, "probe", settings.pop("name", name))
    with blaming(f"probes.{name}"):
        check_kinds(f"probes.{name}", builder, settings)
        return builder(problem, **settings)


def resolved(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with the functions that its values name, such as a mask or an augmentation."""

    def found(value: Any) -> Any:
        if isinstance(value, Mapping | ConfigDict):
            return resolved(value)
        if isinstance(value, list | tuple):
            return tuple(map(found, value))
        return own(value) if isinstance(value, str) and ":" in value else value

    return {key: found(value) for key, value in section.items()}


def own(name: str) -> Callable[..., Any]:
    """Return a user's function by "file.py:function" or "module:function". Raises ConfigError without it."""
    place, _, attribute = name.rpartition(":")
    with blaming(place):
        module = (
            _load(str(Path(place).resolve())) if place.endswith(".py") else importlib.import_module(place)
        )
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{place} has no function {attribute!r}")
    return function


@lru_cache(maxsize=32)
def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"own_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    module.source = Path(path).read_text()  # what runs, also if the file is changed meanwhile
    spec.loader.exec_module(module)
    return module


def own_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the source of every file of which a configuration names a function, by the place it names."""

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for of in value.values():
                yield from names(of)
        elif isinstance(value, list | tuple):
            for of in value:
                yield from names(of)
        elif isinstance(value, str) and ":" in value:
            yield value

    places = sorted({name.rpartition(":")[0] for name in names(config)})
    found = {}
    for place in places:
        with contextlib.suppress(ConfigError, ImportError, OSError, TypeError, ValueError):
            if place.endswith(".py"):
                found[place] = _load(str(Path(place).resolve())).source
            else:
                found[place] = Path(importlib.util.find_spec(place).origin).read_text()
    return found


def untupled(text: str) -> dict[str, Any]:
    """Read a section from JSON, which knows no tuples, as a configuration has it, without lists."""
    return json.loads(text, object_hook=tuples)


def tuples(section: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


@contextlib.contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Raise ConfigError that names a setting for whatever is raised inside."""
    try:
        yield
    except ConfigError:
        raise
    except MemoryError as error:
        raise ConfigError(f"{setting}: does not fit into memory: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{setting}: there is no such file") from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ConfigError(
            f"{setting}: rate, amplitude, period, data and key are arguments of the compiled program: take "
            "jax.numpy for what depends on them, not float(), int(), if or NumPy"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a function of a catalogue, or a user's, raises
        words = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{setting}: {words or type(error).__name__}") from error
