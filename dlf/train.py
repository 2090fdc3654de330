"""The training loop: one compiled scan with the probes inside.

Row `step` of a series is measured at the parameters after `step` updates, with the loss of that step.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

from dlf import memory, models
from dlf.data.batches import full_batch
from dlf.labels import check_batch
from dlf.losses import check_loss, make_loss, rightness_of
from dlf.optimizers import as_optimizer, threshold_of
from dlf.rates import check_rate
from dlf.recording import Rows, StepFn, missing
from dlf.schedules import check_schedule, constant
from dlf.steps import descend
from dlf.types import (
    ApplyFn,
    Batch,
    BatchFn,
    LossFn,
    Model,
    ModelState,
    Optimizer,
    Params,
    Probe,
    Problem,
    TrainState,
    WeightedLoss,
    WeightSchedule,
)

_FEW = 8  # examples on which the loss is tried
_LOOKED = 2**22  # outputs for which labels are looked at at once
_TRAINING = 2**31 - 1  # no step has this number, so no probe draws from the key of it

# By this mark XLA keeps a loop that it knows to turn once. Else it takes such a loop apart and compiles the
# body anew, with nothing moved out of it (the one-hot labels are): other kernels, which round otherwise
# (seen on CPU with jax 0.12 in float32).
_WHOLE = "skip-simplify-while-loops_trip-count-one"


def init_state(
    params: Params, optimizer: Optimizer | optax.GradientTransformation, model_state: ModelState = ()
) -> TrainState:
    """Return the state before the first step; `model_state` is what `Model.init` gave beside the parameters.

    >>> init_state({"w": jnp.zeros(2)}, as_optimizer(optax.sgd(1.0))).step.item()
    0
    """
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params))


def frozen(problem: Problem, state: TrainState) -> ApplyFn:
    """Return (params, inputs) -> logits in evaluation mode, with the model state of a training state.

    This is what all instruments see: statistics of batches are the running ones, nothing is dropped.
    """
    return models.apply_fn(problem.model, state.model_state)


def loss_of(problem: Problem, state: TrainState) -> LossFn:
    """Return F(params, batch, step) of the network in evaluation mode, see `frozen`."""
    return make_loss(frozen(problem, state), problem.weighted_loss, problem.schedule)


def _logits_loss(problem: Problem) -> LossFn:
    return make_loss(lambda logits, inputs: logits, problem.weighted_loss, problem.schedule)


def make_objective(problem: Problem) -> Callable:
    """Return what a step descends: (params, model_state, batch, step) -> (F, (model_state, logits)).

    The network is in training mode: its state moves, and what it draws comes from the problem's key and the
    step, or with a fifth argument, so many steps later. Without statistics and dropout F is that of
    `loss_of`.
    """
    logits_loss, key = _logits_loss(problem), jax.random.fold_in(problem.key, _TRAINING)

    def objective(params: Params, model_state: ModelState, batch: Batch, step, later=0):
        drawn, weights = jax.random.fold_in(key, step + later), {}
        if getattr(problem.model.train, "takes_weights", False):
            weights = {"weights": problem.schedule(step)[batch.labels]}
        logits, model_state = problem.model.train(params, model_state, batch.inputs, drawn, **weights)
        return logits_loss(logits, batch, step), (model_state, logits)

    return objective


def make_step(
    loss_fn: LossFn, batch_fn: BatchFn, optimizer: Optimizer | optax.GradientTransformation
) -> StepFn:
    """Return one step of any scalar loss: state -> (next state, {"loss": F at the old one, ...}).

        theta <- theta + update(grad F(theta, t)),   t <- t + 1

    Raises ValueError, when it is traced, for a state with a model state, which a loss cannot move.

    >>> F = lambda w, batch, step: w**2
    >>> step_fn = make_step(F, lambda step: None, optax.sgd(0.25))
    >>> after, series = step_fn(init_state(jnp.asarray(1.0), optax.sgd(0.25)))
    >>> float(after.params), float(series["loss"])
    (0.5, 1.0)
    """

    def objective(params, model_state, batch, step):
        if jax.tree.leaves(model_state):
            raise ValueError(
                "model_state holds statistics, which this loss would never move: train a Problem of a Model "
                "(make_problem, problem_step)"
            )
        return loss_fn(params, batch, step), (model_state, None)

    return descend(objective, batch_fn, optimizer, lambda *_: {})


def problem_step(problem: Problem, metrics_fn: Callable[[TrainState], Rows] = lambda state: {}) -> StepFn:
    """Return one training step of a problem, its network in training mode: state -> (next state, series).

    The series are `loss`, the F of this step, static loss, accuracy (of a loss that says what is right),
    class weights, learning rate (where the optimizer tells it) and threshold (where there is a formula), and
    what `metrics_fn(state)` adds.
    """

    right_fn, threshold = rightness_of(problem.weighted_loss), threshold_of(problem.optimizer.settings)

    def metrics(state: TrainState, batch: Batch, logits, rates: Rows) -> Rows:
        # compiled apart from the loss, whose rounding must not depend on what else is recorded
        logits = jax.lax.optimization_barrier(logits)
        weights = problem.schedule(state.step)
        static = problem._replace(schedule=constant(len(weights)))
        rows = {"static_loss": _logits_loss(static)(logits, batch, state.step), "class_weights": weights}
        if right_fn is not None:
            rows["accuracy"] = jnp.mean(right_fn(logits, batch.labels))
        if threshold is not None:
            rows["threshold"] = threshold(rates["learning_rate"], state.step)
        return rows | metrics_fn(state)

    objective = make_objective(problem)
    return descend(objective, problem.batch_fn, problem.optimizer, metrics, problem.schedule)


def make_problem(
    model: Model,
    weighted_loss: WeightedLoss,
    schedule: WeightSchedule,
    optimizer: Mapping[str, Any] | Optimizer | optax.GradientTransformation,
    train: Batch,
    *,
    batch_fn: BatchFn | None = None,
    tests: Mapping[str, Batch] = {},
    key: Array | None = None,
) -> Problem:
    """Put together one training run as functions and data.

    `optimizer` is one of `make_optimizer`, what that takes as a mapping, or any transformation of optax.
    Without a `batch_fn` each step sees all of `train`; without a `key` what is drawn comes from key 0.

    Outside of a program, labels, loss and schedule are tried (`check_loss`, `check_schedule`).

    Raises ValueError or TypeError as these and `make_optimizer` do, and for a test set that is no Batch of
    examples, with a name of letters, digits and underscores.
    """
    kinds = ("model", model, Model), ("train", train, Batch), ("tests", tests, Mapping)
    for name, of, kind in kinds:
        if not isinstance(of, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(of).__name__}")
    for name, of in tests.items():
        if not (isinstance(name, str) and name.isidentifier() and isinstance(of, Batch)):
            raise ValueError(f"tests must be Batches with examples under names such as 'far', got {name!r}")
    for name, of in {"train": train, **tests}.items():
        check_batch(of, name)
        if of.inputs.shape[1:] != train.inputs.shape[1:]:
            one, other = ([*values.shape[1:]] for values in (of.inputs, train.inputs))
            raise ValueError(f"{name}: inputs must have the shape of those of train, {other}, got {one}")
    optimizer = as_optimizer(optimizer)
    batch_fn = full_batch(train) if batch_fn is None else batch_fn
    key = jax.random.key(0) if key is None else key
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((train, key))):
        num_classes = check_schedule(schedule)
        few = jax.tree.map(lambda x: x[:: -(-len(x) // _FEW)], train)
        variables = jax.eval_shape(model.init, key, few.inputs)
        like = jax.eval_shape(lambda *args: model.apply(*args), *variables, few.inputs)
        check_loss(weighted_loss, jax.random.normal(key, like.shape, like.dtype), few.labels, num_classes)
        outputs = math.prod(like.shape[1:])
        needed = 4.0 * len(train.inputs) * outputs * like.dtype.itemsize  # with their gradients
        memory.require("the logits of all examples (dataset, model)", needed)
        if (right_fn := rightness_of(weighted_loss)) is not None:  # which looks at labels, here at all
            size = max(1, _LOOKED // outputs)
            for name, of in {"train": train, **tests}.items():
                if of.labels is None:
                    raise ValueError(f"{name} has no labels, which tell what is right under this loss")
                for first in range(0, len(of.labels), size):
                    labels = of.labels[first : first + size]
                    right_fn(jnp.zeros((len(labels), *like.shape[1:]), like.dtype), labels)
        check_rate(optimizer, 1)  # how long a run is a configuration knows, which is checked as a whole
    return Problem(model, weighted_loss, schedule, batch_fn, train, dict(tests), optimizer, key)


def make_loop(step_fn: StepFn, probes: Mapping[str, Probe] = {}):
    """Return a compiled loop: (state, carries, num_steps) -> (state, carries, series).

    `carries` maps each probe's name to its memory (see `init_carries`). The series are stacked
    over the `num_steps` rows; a probe's rows between its measurements hold NaN. A probe runs in
    a branch of its own, even if it is taken at every step, so that no choice of probes changes
    the code of the training step: on CPU its series are the same to the bit with and without. Nor does
    `num_steps`, from one on: in chunks of any lengths the series are those of one call, to the bit on CPU.
    Raises ValueError if the rule of the learning rate lacks a probe (`check_reads`), and, when it is first
    called, if two of step and probes measure series of one name.

    >>> step_fn = make_step(lambda w, b, t: w**2, lambda t: None, optax.sgd(0.25))
    >>> state = init_state(jnp.asarray(1.0), optax.sgd(0.25))
    >>> state, _, series = make_loop(step_fn)(state, {}, 3)
    >>> series["loss"].tolist(), state.step.item()
    ([1.0, 0.25, 0.0625], 3)
    """

    reads = check_reads(step_fn, probes)

    def measure(probe: Probe, carry, state: TrainState):
        _, shapes = jax.eval_shape(probe.measure, carry, state)
        skipped = carry, {k: missing(s.shape, s.dtype) for k, s in shapes.items()}
        # never a constant for the compiler, also where it is true at every step
        due = (state.step % probe.every == 0) & (state.step >= 0)
        return jax.lax.cond(due, lambda: probe.measure(carry, state), lambda: skipped)

    @set_xla_metadata(**{_WHOLE: None})  # for this loop only, not for those in its body
    def body(loop, _):
        state, carries = loop
        measured = {name: measure(probe, carries[name], state) for name, probe in probes.items()}
        carries = {name: carry for name, (carry, _) in measured.items()}
        probed = [rows for _, rows in measured.values()]
        state, series = (
            step_fn(state, {k: v for rows in probed for k, v in rows.items()}) if reads else step_fn(state)
        )
        for rows in probed:
            if twice := series.keys() & rows.keys():
                raise ValueError(f"two series of one name: {', '.join(sorted(twice))}")
            series = series | rows
        return (state, carries), series

    @partial(jax.jit, static_argnums=2)
    def loop(state: TrainState, carries, num_steps: int):
        with set_xla_metadata(**({_WHOLE: "true"} if num_steps == 1 else {})):
            (state, carries), series = jax.lax.scan(body, (state, carries), length=num_steps)
        return state, carries, series

    return loop


def check_reads(step_fn: StepFn, probes: Mapping[str, Probe]) -> Mapping[str, int]:
    """Return what series of probes a step reads; raise ValueError if none measures them, or too seldom."""
    reads = getattr(step_fn, "reads", {})
    for name, longest in reads.items():
        every = next((probe.every for probe in probes.values() if name in probe.series), None)
        if every is None:
            raise ValueError(f"the rule of the learning rate reads {name}: add a probe that measures it")
        if longest % every:
            looks = f"the rule of the learning rate looks at {name} every {longest} steps"
            raise ValueError(f"{looks}, but it is measured every {every}: let the probe's every divide that")
    return reads


def init_carries(probes: Mapping[str, Probe], state: TrainState) -> dict[str, Any]:
    """Return each probe's memory before the first step."""
    return {name: probe.init(state) for name, probe in probes.items()}
