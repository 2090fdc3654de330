"""Turn a configuration into functions and a first state."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from analysis import probes
from dlf import data, losses, models, schedules
from dlf import train as training
from dlf.types import Probe, Problem, TrainState
from experiments.command_line import ConfigError

# What a config holds, see experiments/configs/fig4.py: numbers, and sections that name a function.
NUMBERS = ("seed", "float64", "num_steps", "steps_per_chunk", "stop_after")
SECTIONS = ("dataset", "model", "loss", "schedule", "optimizer")
_MOST_STEPS = 2**31 - 1  # a step is an int32


class Experiment(NamedTuple):
    """A configuration turned into functions and a first state."""

    state: TrainState
    step_fn: training.StepFn
    probes: dict[str, Probe]
    problem: Problem
    groups: dict[str, tuple]  # the layout of the store, as `results.create` takes it


def build(config: ConfigDict) -> Experiment:
    """Turn a configuration into functions and a first state.

    Raises ConfigError for a value that cannot be run.
    """
    _check_keys(config)
    for key, least in (("num_steps", 1), ("steps_per_chunk", 1), ("stop_after", 0)):
        if not least <= config[key] <= _MOST_STEPS:
            raise ConfigError(f"{key} must be at least {least} and at most {_MOST_STEPS}, got {config[key]}")
    if config.float64 != jax.config.jax_enable_x64:
        raise ConfigError(
            f"float64={config.float64}, but JAX runs with jax_enable_x64={jax.config.jax_enable_x64}: "
            f'call jax.config.update("jax_enable_x64", {config.float64}) first'
        )
    dataset = _call(data, "dataset", config.dataset)
    model = _call(models, "model", config.model, num_classes=dataset.num_classes)
    schedule = _call(schedules, "schedule", config.schedule, num_classes=dataset.num_classes)
    schedule = schedules.stop_after(schedule, config.stop_after)
    weighted_loss = _find(losses, "loss", config.loss.name)
    with _blaming("optimizer"):
        optimizer = training.make_optimizer(**config.optimizer)
    with _blaming("seed"):
        key = jax.random.key(config.seed)  # draws the parameters, as the authors' PRNGKey(0) did

    batch_fn = data.full_batch(dataset.train)
    loss_fn = losses.make_loss(model.apply, weighted_loss, schedule)
    metrics_fn = training.make_metrics(model.apply, weighted_loss, schedule, batch_fn)
    problem = Problem(model.apply, loss_fn, batch_fn, key=jax.random.fold_in(key, 1))
    with _blaming(f"model {config.model.name}"):  # a network of images, say, on points in the plane
        params = model.init(key, dataset.train.inputs)
    state = training.init_state(params, optimizer)
    step_fn = training.make_step(loss_fn, batch_fn, optimizer, metrics_fn)
    chosen, groups = {}, {"step": (1, training.VARIABLES, jax.eval_shape(step_fn, state)[1])}
    for name, settings in config.probes.items():
        builder = _find(probes, "probe", name)
        with _blaming(f"probes.{name}"):
            probe = builder(problem, **settings)
            _, shapes = jax.eval_shape(probe.measure, probe.init(state), state)
        chosen[name] = probe
        groups[f"{name}_step"] = (probe.every, probe.variables, shapes)
    return Experiment(state, step_fn, chosen, problem, groups)


def _check_keys(config: ConfigDict) -> None:
    known = {*NUMBERS, *SECTIONS, "probes"}
    for problem, keys in (("lacks", known - set(config)), ("has unknown", set(config) - known)):
        if keys:
            raise ConfigError(
                f"the config {problem} {', '.join(sorted(keys))}: see experiments/configs/fig4.py"
            )
    for key in NUMBERS:
        kind = bool if key == "float64" else int
        if type(config[key]) is not kind:
            raise ConfigError(f"config.{key} must be of type {kind.__name__}, got {config[key]!r}")
    if not isinstance(config.probes, Mapping | ConfigDict):
        raise ConfigError(f"config.probes must be dict(name=dict(...), ...), got {config.probes}")
    for section in SECTIONS:
        if not (isinstance(config[section], Mapping | ConfigDict) and "name" in config[section]):
            raise ConfigError(f"config.{section} must be dict(name=..., ...), got {config[section]}")
    if set(config.loss) != {"name"}:
        raise ConfigError(f"config.loss takes a name only, got {config.loss.to_dict()}")


def _find(catalogue: Any, kind: str, name: str) -> Callable[..., Any]:
    if name not in catalogue.__all__:
        raise ConfigError(f"unknown {kind} {name!r}: one of {', '.join(catalogue.__all__)}")
    return getattr(catalogue, name)


def _call(catalogue: Any, kind: str, section: Mapping[str, Any], **settings: Any) -> Any:
    builder = _find(catalogue, kind, section["name"])
    given = {key: value for key, value in section.items() if key != "name"}
    with _blaming(f"{kind} {section['name']}"):
        return builder(**{**settings, **given})


@contextlib.contextmanager
def _blaming(setting: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{setting}: {error}") from error
