"""One step of gradient descent, of whatever loss and optimizer, and what it refuses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dlf.optimizers import rate_of
from dlf.recording import Rows, StepFn
from dlf.rules import ruled
from dlf.types import BatchFn, Optimizer, Params, Seen, TrainState, WeightSchedule


def descend(
    objective: Callable,
    batch_fn: BatchFn,
    optimizer: Optimizer | optax.GradientTransformation,
    metrics_fn: Callable[..., Rows],
    schedule: WeightSchedule | None = None,
) -> StepFn:
    """Return the step that goes down an objective, see `dlf.train.make_objective`.

    Its series are `loss`, `learning_rate` where the optimizer tells it, and those of
    `metrics_fn(state, batch, logits, rates)`. A step of a rule that `reads` takes what probes measured beside
    the state.
    """
    rule = getattr(optimizer, "rule", None)
    has_rate = getattr(optimizer, "rate", None) is not None

    def step_fn(state: TrainState, measured: Rows = {}):
        batch, given = batch_fn(state.step), state.opt_state if rule is None else state.opt_state.inner
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (loss, (model_state, logits)), grads = value_and_grad(
            state.params, state.model_state, batch, state.step
        )
        try:
            updates, opt_state = optimizer.update(grads, given, state.params)
        except (TypeError, AttributeError) as error:  # of lookahead, and those that ask for the loss
            raise ValueError(
                "the optimizer must do with gradients, its state and a pytree of parameters (no lookahead, "
                f"plateau, line search): its update fails with {str(error).partition(chr(10))[0]!r}"
            ) from error
        pairs = {
            "train must return a model_state": (model_state, state.model_state),
            "the optimizer must return a state": (opt_state, given),
        }
        for words, (found, before) in pairs.items():
            if _kinds(found) != _kinds(before):
                raise ValueError(f"{words} of the structure, shapes and dtypes it is given")
        if any(map(jnp.iscomplexobj, jax.tree.leaves(updates))):
            raise ValueError("the optimizer returns complex updates: parameters are real")
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, state.params):
            raise ValueError(
                "the optimizer must return updates of the structure and shapes of the parameters"
            )
        if rule is not None:
            at = state.step, optimizer.rate(state.step), loss, grads, updates, state.params

            def loss_fn(params: Params):
                return objective(params, state.model_state, batch, state.step)[0]

            updates, opt_state = ruled(
                rule, state.opt_state, Seen(*at, loss_fn, schedule, measured), opt_state
            )
        params = optax.apply_updates(state.params, updates)
        rates = {}
        if has_rate:
            of_rule = opt_state if rule is not None else state.opt_state
            rates["learning_rate"] = rate_of(optimizer, of_rule, state.step)
        series = {"loss": loss, **metrics_fn(state, batch, logits, rates), **rates}
        return TrainState(state.step + 1, params, model_state, opt_state), series

    step_fn.reads = {} if rule is None else rule.reads
    return step_fn


def _kinds(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), getattr(x, "dtype", type(x))), tree)
