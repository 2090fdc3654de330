"""Turn a configuration into functions and a first state.

Traced, whatever function takes them, are the numbers called schedule.amplitude, schedule.period (a count),
optimizer.learning_rate or, of a schedule of one's own, its `peak`, and stop_after (a count): the arguments of
a program, in a single run, too, so that a run has the same bits alone as among others (a constant would be
folded into other code).
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from analysis.infinite_width import linearized
from analysis.parts import check_network
from dlf import data, losses, models, recording, schedules
from dlf import train as training
from dlf.convolutions import warn_of_convolutions
from dlf.ensembles import Run
from dlf.labels import is_wide
from dlf.rates import check_rate
from dlf.types import Batch, Model, ModelState, Params, Problem, Series, TrainState
from experiments.catalogues import blaming, bound, call, optimizer, probe, tuples, untupled
from experiments.command_line import ConfigError
from experiments.datasets import dataset_of
from experiments.settings import COUNTS, FLOATS, MOST_STEPS, SEEDS, check_size, checked, is_argument


class Replica(NamedTuple):
    """The arrays that tell one run from others of the same program; inside a program they are traced."""

    settings: dict[str, Array]  # those of FLOATS and COUNTS that the configuration has as numbers
    train: Batch
    tests: dict[str, Batch]
    params: Params
    model_state: ModelState
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

    Warns of a network with `lax.conv` on a CPU, and of parameters in float32 in a run in float64. Raises
    ConfigError for a value that cannot be run.
    """
    config = checked(config)
    check_size("the data and the parameters (dataset, model)", replica_bytes(config))
    replica, static = draw(config), program(config)
    run, problem = _assemble(static, replica)
    with blaming(f"model {config.model.name}"):
        apply_fn = training.frozen(problem, run.state)
        if ":" in config.model.name:  # probes, which are traced, cannot try it
            check_network(apply_fn, replica.params, replica.train.inputs)
    if config.float64 and any(is_wide(x.dtype) and x.itemsize < 8 for x in jax.tree.leaves(replica.params)):
        words = "parameters are float32 although float64=True: give its layers param_dtype=float"
        warnings.warn(f"model {config.model.name}: {words}", stacklevel=2)
    warn_of_convolutions(apply_fn, replica.params, replica.train.inputs[:1])
    with blaming("optimizer.learning_rate"):
        check_rate(problem.optimizer, config.num_steps)
    series = _series(static, replica)
    check_size(*_largest(config, series))
    return Experiment(replica, run, problem, series, lambda arrays: _assemble(static, arrays)[0], static)


def _series(static: str, replica: Replica) -> dict[str, Series]:
    """Return all that a run records, from a trace of its program, where a replica is an argument."""
    series = {}

    def described(arrays: Replica) -> None:
        run, _ = _assemble(static, arrays)
        with blaming("the training step"):
            series.update(recording.step_series(run.step_fn, run.state))
        for name, of in run.probes.items():
            with blaming(f"probes.{name}"):
                found = recording.probe_series(name, of, run.state)
                if twice := series.keys() & found.keys():
                    raise ValueError(f"another one measures {', '.join(sorted(twice))}, too")
                series.update(found)
                recording.check_names(series)

    jax.eval_shape(described, replica)
    return series


def _largest(config: ConfigDict, series: Mapping[str, Series]) -> tuple[str, int]:
    """Return in words what a run has to hold at once, and its bytes: labels of its steps, rows of a chunk."""
    labels = sum(8 * -(-config.num_steps // every) for every in {of.every for of in series.values()})
    row = sum(math.prod(of.shape) * np.dtype(of.dtype).itemsize for of in series.values())
    num_rows = min(config.steps_per_chunk, config.num_steps)
    return f"num_steps={config.num_steps}, {num_rows} of them at once,", 2 * labels + 2 * row * num_rows


def make_loop(experiment: Experiment, probe_names: Iterable[str] | None = None) -> Callable:
    """Return the compiled loop (replica, state, carries, num_steps) -> (state, carries, series).

    It has all probes of the configuration, or those named. Runs of one program share it in a process.
    """
    return _loop(experiment.program, tuple(experiment.run.probes if probe_names is None else probe_names))


def ready_loop(experiment: Experiment, probe_names: Iterable[str] = ()) -> tuple[Callable, tuple]:
    """Return the compiled loop with some of the probes, and its arguments up to the number of steps."""
    probes = {name: experiment.run.probes[name] for name in probe_names}
    carries = training.init_carries(probes, experiment.state)
    return make_loop(experiment, probes), (experiment.replica, experiment.state, carries)


@lru_cache(maxsize=8)
def _loop(static: str, probe_names: tuple[str, ...]) -> Callable:
    @partial(jax.jit, static_argnums=3)
    def loop(replica: Replica, state: TrainState, carries: Any, num_steps: int):
        run, _ = _assemble(static, replica)
        probes = {name: run.probes[name] for name in probe_names}
        return training.make_loop(run.step_fn, probes)(state, carries, num_steps)

    return loop


def draw(config: ConfigDict) -> Replica:
    """Draw data and parameters of a configuration. Raises ConfigError for a value that cannot be run."""
    settings = _checked(config)
    dataset = dataset_of(config.dataset.to_json(), config.float64)
    if ":" in config.schedule.name:  # of one's own: every cell of a sweep has its numbers
        moving = call(schedules, "schedule", config.schedule, num_classes=dataset.num_classes)
        with blaming(f"schedule {config.schedule.name}"):
            schedules.check_schedule(moving, dataset.num_classes, config.num_steps)
    drawn = _params(config.seed, config.model.to_json(), config.dataset.to_json(), config.float64)
    key = jax.random.key(config.seed)  # draws the parameters, as the authors' PRNGKey(0) did
    return Replica(settings, dataset.train, dataset.test, *drawn, jax.random.fold_in(key, 1))


def check_precision(config: ConfigDict) -> None:
    """Raise ConfigError if JAX does not run in the precision of the configuration."""
    if config.float64 != jax.config.jax_enable_x64:
        raise ConfigError(
            f"float64={config.float64}, but JAX runs with jax_enable_x64={jax.config.jax_enable_x64}: "
            f'call jax.config.update("jax_enable_x64", {config.float64}) first'
        )


def replica_bytes(config: ConfigDict) -> int:
    """Return the bytes of what `draw` returns, which is not drawn. Raises ConfigError as that does."""
    _checked(config)
    dataset = dataset_of(config.dataset.to_json(), config.float64)
    with blaming(f"model {config.model.name}"):
        init = _model(config.model, dataset.num_classes).init
        drawn = jax.eval_shape(init, jax.random.key(0), dataset.train.inputs)
    leaves = jax.tree.leaves((drawn, dataset.train, dataset.test))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def program(config: ConfigDict) -> str:
    """Return what runs of one compiled program have in common, as a JSON string."""
    static = json.loads(config.to_json())
    for name in (*FLOATS, *COUNTS, *SEEDS, "num_steps", "steps_per_chunk", "checkpoints_kept"):
        section, key = _place(static, name)
        if name not in FLOATS or is_argument(name, section.get(key)):
            section.pop(key, None)
    num_classes = dataset_of(config.dataset.to_json(), config.float64).num_classes
    return json.dumps(static | {"num_classes": num_classes}, sort_keys=True)


def _place(config: Any, name: str) -> tuple[Any, str]:
    """Return the mapping that holds a setting, an empty one if there is none, and its key there."""
    *path, key = name.split(".")
    for part in path:
        inner = config.get(part)
        config = inner if isinstance(inner, Mapping | ConfigDict) else {}
    return config, key


# The cells of a sweep share first parameters; the last argument is JAX's precision.
@lru_cache(maxsize=16)
def _params(seed: int, model: str, dataset: str, float64: bool) -> tuple[Params, ModelState]:
    inputs, num_classes = dataset_of(dataset, float64).train.inputs, dataset_of(dataset, float64).num_classes
    section = untupled(model)
    with blaming(f"model {section['name']}"):  # a network of images, say, on points in the plane
        params, model_state = _model(section, num_classes).init(jax.random.key(seed), inputs)
        return params, model_state


def _model(section: Mapping[str, Any], num_classes: int) -> Model:
    network = {key: value for key, value in section.items() if key != "linearized"}
    if type(is_linear := section.get("linearized", False)) is not bool:
        raise ConfigError(f"model.linearized must be True or False, got {is_linear!r}")
    if is_linear and section.get("dropout"):
        raise ConfigError("model.dropout: a tangent network drops nothing: leave it out")
    found = call(models, "model", network, num_classes=num_classes)
    if not isinstance(found, Model):
        raise ConfigError(f"model {section['name']}: must return a Model, got {type(found).__name__}")
    return found


def _assemble(static: str, replica: Replica) -> tuple[Run, Problem]:
    """Turn a program, with the arrays of a replica, into functions and a first state."""
    config = json.loads(static, object_hook=tuples)
    for name, value in replica.settings.items():
        section, key = _place(config, name)
        section[key] = value
    num_classes = config["num_classes"]
    model = _model(config["model"], num_classes)
    if config["model"].get("linearized", False):
        with blaming("model.linearized"):
            model = linearized(model, replica.params, replica.model_state)
    moving = call(schedules, "schedule", config["schedule"], num_classes=num_classes)
    settings = dict(tests=replica.tests, key=replica.key)
    if "batches" in config:
        key = jax.random.fold_in(replica.key, MOST_STEPS - 1)  # no step of a run has this number
        batch_fn = call(data.batches, "batches", config["batches"], replica.train, key=key)
        if not callable(batch_fn):
            raise ConfigError(f"batches: must return a function step -> Batch, got {type(batch_fn).__name__}")
        settings["batch_fn"] = batch_fn
    with blaming("loss, schedule, model or optimizer"):
        problem = training.make_problem(
            model,
            bound(losses, "loss", config["loss"]),
            schedules.stop_after(moving, config["stop_after"]),
            optimizer(config["optimizer"]),
            replica.train,
            **settings,
        )
    chosen = {name: probe(name, problem, given) for name, given in config["probes"].items()}
    step_fn = training.problem_step(problem)
    with blaming("optimizer.rule"):
        training.check_reads(step_fn, chosen)
    with blaming("optimizer"):
        state = training.init_state(replica.params, problem.optimizer, replica.model_state)
    return Run(state, step_fn, chosen), problem


def _checked(config: ConfigDict) -> dict[str, Array]:
    check_precision(config)
    settings = _traced(config)
    call(schedules, "schedule", config.schedule, num_classes=2)
    bound(losses, "loss", config.loss)
    with blaming("optimizer"):
        optimizer(untupled(config.optimizer.to_json()))
    if not 0 <= config.seed < 2**32:  # of more the generator takes the last 32 bits
        raise ConfigError(f"seed must be at least 0 and below 2**32, got {config.seed}")
    return settings


def _traced(config: ConfigDict) -> dict[str, Array]:
    settings = {}
    for name in (*FLOATS, *COUNTS):
        section, key = _place(config, name)
        if key not in section:
            continue
        value, is_count = section[key], name in COUNTS
        if not is_argument(name, value):
            continue
        is_number = isinstance(value, Integral if is_count else Real) and type(value) is not bool
        if not is_number or (is_count and value > MOST_STEPS):
            must = f"a whole number of at most {MOST_STEPS}" if is_count else "a number"
            advice = "it is an argument of the compiled program: give a setting of another kind another name"
            raise ConfigError(f"{name} must be {must}, got {value!r}; {advice}")
        with np.errstate(over="ignore"):
            cast = np.asarray(value, jnp.int32(0).dtype if is_count else jnp.ones(()).dtype)
        if not np.isfinite(cast) or (
            value and abs(cast) < np.finfo(jnp.ones(()).dtype).tiny and not is_count
        ):
            advice = "" if config.float64 else ": set float64=True"
            raise ConfigError(f"{name}={value} does not fit {jnp.ones(()).dtype}{advice}")
        settings[name] = jnp.asarray(cast)
    return settings
