"""Turn a configuration into functions and a first state."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from analysis import neural_tangents_import, probes
from dlf import data, losses, models, optimizers, schedules
from dlf import train as training
from dlf.ensembles import Run
from dlf.layers import warn_of_convolutions
from dlf.types import ApplyFn, Batch, Dataset, Model, Params, Problem, Series, TrainState
from experiments.command_line import ConfigError

# What a config holds, see experiments/configs/fig4.py: numbers, and sections that name a function.
NUMBERS = ("seed", "float64", "num_steps", "steps_per_chunk", "checkpoints_kept", "stop_after")
SECTIONS = ("dataset", "model", "loss", "schedule", "optimizer")
_MOST_STEPS = 2**31 - 1  # a step is an int32


# The numbers that may differ between runs of one compiled program, beside the seeds and what they draw:
# the class weights' and the optimizer's. They are arguments of the program, in a single run, too, so that
# a run has the same bits alone as among others (a constant would be folded into other code).
FLOATS = ("schedule.amplitude", "optimizer.learning_rate")
COUNTS = ("schedule.period", "stop_after")
SEEDS = ("seed", "dataset.seed")
# What tells how long a run is, how it is cut and kept: nothing of it is in the compiled loop.
_OF_A_RUN = ("num_steps", "steps_per_chunk", "checkpoints_kept")


class Replica(NamedTuple):
    """The arrays that tell one run from others of the same program; inside a program they are traced."""

    settings: dict[str, Array]  # those of FLOATS and COUNTS that the configuration has
    train: Batch
    test: Batch
    params: Params
    key: Array


class Experiment(NamedTuple):
    """A configuration turned into a program and its arrays."""

    replica: Replica
    run: Run  # outside of a program: for shapes and the first state
    problem: Problem
    series: dict[str, Series]  # all that the run records
    assemble: Callable[[Replica], Run]
    program: str  # as `program` gives it

    @property
    def state(self) -> TrainState:
        """The state before the first step."""
        return self.run.state


def build(config: ConfigDict) -> Experiment:
    """Turn a configuration into a program and its arrays.

    Warns of a network with `lax.conv` on a CPU. Raises ConfigError for a value that cannot be run.
    """
    replica, static = draw(config), program(config)
    run, problem = _assemble(static, replica)
    warn_of_convolutions(problem.apply_fn, replica.params, replica.train.inputs[:1])
    series = training.step_series(run.step_fn, run.state)
    for name, probe in run.probes.items():
        with _blaming(f"probes.{name}"):
            series |= training.probe_series(name, probe, run.state)
    return Experiment(replica, run, problem, series, lambda arrays: _assemble(static, arrays)[0], static)


def make_loop(experiment: Experiment, probe_names: Iterable[str] | None = None) -> Callable:
    """Return the compiled loop (replica, state, carries, num_steps) -> (state, carries, series).

    It has all probes of the configuration, or those named. Runs of one program share it in a process.
    """
    names = experiment.run.probes if probe_names is None else probe_names
    return _loop(experiment.program, tuple(names))


@lru_cache(maxsize=8)
def _loop(static: str, probe_names: tuple[str, ...]) -> Callable:
    @partial(jax.jit, static_argnums=3)
    def loop(replica: Replica, state: TrainState, carries: Any, num_steps: int):
        run, _ = _assemble(static, replica)
        probes = {name: run.probes[name] for name in probe_names}
        return training.make_loop(run.step_fn, probes)(state, carries, num_steps)

    return loop


def check(config: ConfigDict) -> None:
    """Raise ConfigError for a value that cannot be run, as far as can be seen without data or model."""
    _check_keys(config)
    for key, least in (("num_steps", 1), ("steps_per_chunk", 1), ("checkpoints_kept", 1), ("stop_after", 0)):
        if not least <= config[key] <= _MOST_STEPS:
            raise ConfigError(f"{key} must be at least {least} and at most {_MOST_STEPS}, got {config[key]}")
    check_precision(config)
    _call(schedules, "schedule", config.schedule, num_classes=2)
    _find(losses, "loss", config.loss.name)
    _check_linearized(config.model)
    with _blaming("optimizer"):
        optimizers.make_optimizer(**config.optimizer)
    with _blaming("seed"):
        jax.random.key(config.seed)


def draw(config: ConfigDict) -> Replica:
    """Draw the data set and the first parameters of a configuration, and take the numbers out of it.

    Raises ConfigError for a value that cannot be run.
    """
    check(config)
    dataset = _dataset(config.dataset.to_json(), config.float64)
    params = _params(config.seed, config.model.to_json(), config.dataset.to_json(), config.float64)
    floating, integer = jnp.ones(()).dtype, jnp.zeros((), jnp.int32).dtype
    numbers = {key: floating for key in FLOATS} | {key: integer for key in COUNTS}
    settings = {}
    for name, dtype in numbers.items():
        *section, key = name.split(".")
        found = config[section[0]] if section else config
        if key in found:
            settings[name] = jnp.asarray(found[key], dtype)
    key = jax.random.key(config.seed)  # draws the parameters, as the authors' PRNGKey(0) did
    return Replica(settings, dataset.train, dataset.test, params, jax.random.fold_in(key, 1))


def check_precision(config: ConfigDict) -> None:
    """Raise ConfigError if JAX does not run in the precision of the configuration."""
    if config.float64 != jax.config.jax_enable_x64:
        raise ConfigError(
            f"float64={config.float64}, but JAX runs with jax_enable_x64={jax.config.jax_enable_x64}: "
            f'call jax.config.update("jax_enable_x64", {config.float64}) first'
        )


def parameter_bytes(config: ConfigDict) -> int:
    """Return the bytes that the parameters of a configuration take, which are not drawn."""
    dataset = _dataset(config.dataset.to_json(), config.float64)
    init = _model(config.model, dataset.num_classes).init
    shapes = jax.eval_shape(init, jax.random.key(0), dataset.train.inputs)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def program(config: ConfigDict) -> str:
    """Return what runs of one compiled program have in common, as a JSON string."""
    static = {key: value for key, value in json.loads(config.to_json()).items() if key not in _OF_A_RUN}
    for key in (*FLOATS, *COUNTS, *SEEDS):
        section, _, name = key.rpartition(".")
        (static[section] if section else static).pop(name, None)
    num_classes = _dataset(config.dataset.to_json(), config.float64).num_classes
    return json.dumps(static | {"num_classes": num_classes}, sort_keys=True)


# The cells of a sweep share data and first parameters; the last argument is JAX's precision.
@lru_cache(maxsize=16)
def _dataset(section: str, float64: bool) -> Dataset:
    return _call(data, "dataset", json.loads(section))


@lru_cache(maxsize=16)
def _params(seed: int, model: str, dataset: str, float64: bool) -> Params:
    inputs, num_classes = _dataset(dataset, float64).train.inputs, _dataset(dataset, float64).num_classes
    section = json.loads(model)
    with _blaming(f"model {section['name']}"):  # a network of images, say, on points in the plane
        return _model(section, num_classes).init(jax.random.key(seed), inputs)


def _model(section: Mapping[str, Any], num_classes: int) -> Model:
    network = {key: value for key, value in section.items() if key != "linearized"}
    return _call(models, "model", network, num_classes=num_classes)


def _apply_fn(section: Mapping[str, Any], model: Model, params: Params) -> ApplyFn:
    """Return the logits of a network, or with `model.linearized` those of its tangent at `params`."""
    if not section.get("linearized", False):
        return model.apply
    return neural_tangents_import.load().linearize(model.apply, params)


def _tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section as the configuration has it: JSON knows no tuples, a configuration no lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def _assemble(static: str, replica: Replica) -> tuple[Run, Problem]:
    """Turn a program, with the arrays of a replica, into functions and a first state."""
    config, settings = json.loads(static), replica.settings
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    num_classes = config["num_classes"]
    apply_fn = _apply_fn(config["model"], _model(config["model"], num_classes), replica.params)
    moving = _call(schedules, "schedule", config["schedule"], num_classes=num_classes)
    schedule = schedules.stop_after(moving, config["stop_after"])
    weighted_loss = _find(losses, "loss", config["loss"]["name"])
    optimizer = optimizers.make_optimizer(**config["optimizer"])
    batch_fn = data.full_batch(replica.train)
    metrics_fn = training.make_metrics(apply_fn, weighted_loss, schedule, batch_fn)
    problem = training.make_problem(
        apply_fn, weighted_loss, schedule, batch_fn, config["optimizer"], replica.test, replica.key
    )
    step_fn = training.make_step(problem.loss_fn, batch_fn, optimizer, metrics_fn)
    chosen = {}
    for name, probe_settings in config["probes"].items():
        builder = _find(probes, "probe", name)
        with _blaming(f"probes.{name}"):
            chosen[name] = builder(problem, **_tuples(probe_settings))
    return Run(training.init_state(replica.params, optimizer), step_fn, chosen), problem


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


def _check_linearized(section: Mapping[str, Any]) -> None:
    linearized = section.get("linearized", False)
    if type(linearized) is not bool:
        raise ConfigError(f"model.linearized must be True or False, got {linearized!r}")
    if linearized:
        with _blaming("model.linearized"):
            neural_tangents_import.load()


def _find(catalogue: Any, kind: str, name: str) -> Callable[..., Any]:
    if name not in catalogue.__all__:
        raise ConfigError(f"unknown {kind} {name!r}: one of {', '.join(catalogue.__all__)}")
    return getattr(catalogue, name)


def _call(catalogue: Any, kind: str, section: Mapping[str, Any], **settings: Any) -> Any:
    builder = _find(catalogue, kind, section["name"])
    given = {key: value for key, value in _tuples(section).items() if key != "name"}
    with _blaming(f"{kind} {section['name']}"):
        return builder(**{**settings, **given})


@contextlib.contextmanager
def _blaming(setting: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError, ImportError) as error:
        raise ConfigError(f"{setting}: {error}") from error
