"""The training loop: one compiled scan with the probes inside.

Row `step` of a series is measured at the parameters after `step` updates, with the loss of that step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

from dlf.losses import accuracy, make_loss
from dlf.optimizers import make_optimizer
from dlf.schedules import constant
from dlf.types import (
    ApplyFn,
    Batch,
    BatchFn,
    LossFn,
    Params,
    Probe,
    Problem,
    Series,
    TrainState,
    WeightedLoss,
    WeightSchedule,
)

Rows = dict[str, Array]  # what was measured, by name
StepFn = Callable[[TrainState], tuple[TrainState, Rows]]

# What every step of a configuration records.
SERIES = {
    "loss": Series((), "nat", "dynamical loss F"),
    "static_loss": Series((), "nat", "loss with all class weights one"),
    "accuracy": Series((), "1", "training accuracy"),
    "class_weights": Series(("class",), "1", "class weights Gamma"),
}

# By this mark XLA keeps a loop that it knows to turn once. Else it takes such a loop apart and compiles the
# body anew, with nothing moved out of it (the one-hot labels are): other kernels, which round otherwise
# (seen on CPU with jax 0.12 in float32).
_WHOLE = "skip-simplify-while-loops_trip-count-one"


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step, of a model without a state of its own.

    >>> init_state({"w": jnp.zeros(2)}, make_optimizer("sgd", 1.0)).step.item()
    0
    """
    return TrainState(jnp.zeros((), jnp.int32), params, (), optimizer.init(params))


def make_step(
    loss_fn: LossFn,
    batch_fn: BatchFn,
    optimizer: optax.GradientTransformation,
    metrics_fn: Callable[[TrainState], Rows] = lambda state: {},
) -> StepFn:
    """Return one training step: state -> (next state, what was measured at the old one).

        theta <- theta + update(grad F(theta, t)),   t <- t + 1

    The series hold `loss`, the F of this step, and what `metrics_fn(state)` adds.

    >>> F = lambda w, batch, step: w**2
    >>> step_fn = make_step(F, lambda step: None, make_optimizer("sgd", 0.25))
    >>> state = init_state(jnp.asarray(1.0), make_optimizer("sgd", 0.25))
    >>> after, series = step_fn(state)
    >>> float(after.params), float(series["loss"])
    (0.5, 1.0)
    """

    def step_fn(state: TrainState):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch_fn(state.step), state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        series = {"loss": loss, **metrics_fn(state)}
        return TrainState(state.step + 1, params, state.model_state, opt_state), series

    return step_fn


def make_metrics(
    apply_fn: ApplyFn, weighted_loss: WeightedLoss, schedule: WeightSchedule, batch_fn: BatchFn
) -> Callable[[TrainState], Rows]:
    """Return state -> static loss, accuracy and class weights, the series beside the loss.

    Its forward pass is the one of the training step: inside one program the compiler keeps one.
    """

    def metrics_fn(state: TrainState) -> Rows:
        batch = batch_fn(state.step)
        logits = apply_fn(state.params, batch.inputs)
        static_loss = make_loss(apply_fn, weighted_loss, constant(logits.shape[1]))
        return {
            "static_loss": static_loss(state.params, batch, state.step),
            "accuracy": accuracy(logits, batch.labels),
            "class_weights": schedule(state.step),
        }

    return metrics_fn


def make_problem(
    apply_fn: ApplyFn,
    weighted_loss: WeightedLoss,
    schedule: WeightSchedule,
    batch_fn: BatchFn,
    optimizer: Mapping[str, Any],
    test: Batch,
    key: Array,
) -> Problem:
    """Put together what the probes of a run may look at; `optimizer` as `make_optimizer` takes it.

    Raises ValueError or TypeError as `make_optimizer` does.
    """
    loss_fn = make_loss(apply_fn, weighted_loss, schedule)
    step_fn = make_step(loss_fn, batch_fn, make_optimizer(**optimizer))
    return Problem(
        apply_fn, weighted_loss, schedule, loss_fn, batch_fn, optimizer,
        lambda state: step_fn(state)[0], test, key,
    )  # fmt: skip


def make_loop(step_fn: StepFn, probes: Mapping[str, Probe] = {}):
    """Return a compiled loop: (state, carries, num_steps) -> (state, carries, series).

    `carries` maps each probe's name to its memory (see `init_carries`). The series are stacked
    over the `num_steps` rows; a probe's rows between its measurements hold NaN. A probe runs in
    a branch of its own, even if it is taken at every step, so that no choice of probes changes
    the code of the training step: on CPU its series are the same to the bit with and without. Nor does
    `num_steps`, from one on: in chunks of any lengths the series are those of one call, to the bit on CPU.
    Raises ValueError, when it is first called, if two of step and probes measure series of one name.

    >>> step_fn = make_step(lambda w, b, t: w**2, lambda t: None, make_optimizer("sgd", 0.25))
    >>> state = init_state(jnp.asarray(1.0), make_optimizer("sgd", 0.25))
    >>> state, _, series = make_loop(step_fn)(state, {}, 3)
    >>> series["loss"].tolist(), state.step.item()
    ([1.0, 0.25, 0.0625], 3)
    """

    def measure(probe: Probe, carry, state: TrainState):
        _, shapes = jax.eval_shape(probe.measure, carry, state)
        skipped = carry, {k: jnp.full(s.shape, jnp.nan, s.dtype) for k, s in shapes.items()}
        # never a constant for the compiler, also where it is true at every step
        due = (state.step % probe.every == 0) & (state.step >= 0)
        return jax.lax.cond(due, lambda: probe.measure(carry, state), lambda: skipped)

    @set_xla_metadata(**{_WHOLE: None})  # for this loop only, not for those in its body
    def body(loop, _):
        state, carries = loop
        measured = {name: measure(probe, carries[name], state) for name, probe in probes.items()}
        carries = {name: carry for name, (carry, _) in measured.items()}
        state, series = step_fn(state)
        for _, rows in measured.values():
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


def step_series(step_fn: StepFn, state: TrainState) -> dict[str, Series]:
    """Return the series that every step records, with the shape and dtype of a row.

    What a user's step measures beside `SERIES` is described by its name alone.
    """
    rows = jax.eval_shape(step_fn, state)[1]
    known = {name: of for name, of in SERIES.items() if name in rows}
    own = {name: Series(tuple(f"{name}_{i}" for i in range(of.ndim)), "", name) for name, of in rows.items()}
    return _completed(known | {name: of for name, of in own.items() if name not in known}, "step", 1, rows)


def probe_series(name: str, probe: Probe, state: TrainState) -> dict[str, Series]:
    """Return the series of a probe in a loop that knows it by this name."""
    rows = jax.eval_shape(probe.measure, probe.init(state), state)[1]
    return _completed(probe.series, f"{name}_step", probe.every, rows)


def _completed(series, step, every, rows):
    return {
        name: of._replace(step=step, every=every, shape=rows[name].shape, dtype=rows[name].dtype)
        for name, of in series.items()
    }


def init_carries(probes: Mapping[str, Probe], state: TrainState) -> dict[str, Any]:
    """Return each probe's memory before the first step."""
    return {name: probe.init(state) for name, probe in probes.items()}
