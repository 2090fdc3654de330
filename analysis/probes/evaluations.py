"""Probes of a network on whole data sets, in parts of any size, and of the batches that a step sees."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from analysis.linear_maps import precise
from analysis.parts import BatchSize, accumulate, check_batch_size
from analysis.probes.measures import check_parts, check_settings
from dlf.labels import largest, wide
from dlf.losses import rightness_of
from dlf.models import apply_fn
from dlf.recording import missing
from dlf.train import make_objective
from dlf.types import Batch, ModelState, Probe, Problem, Series, TrainState

__all__ = ["batch_sharpness", "evaluation", "validation"]

_STAYS = 1e-3  # of the largest: how much a statistic may move in a pass after the last


def validation(problem: Problem, every: int) -> Probe:
    """Measure the accuracy on the set "validation" as one batch: `validation_accuracy`.

    Raises ValueError for a problem without this set, or with a loss that does not say what is right.
    """
    check_settings(every=every)
    batch, right_fn = _test_set(problem, "validation"), rightness_of(problem.weighted_loss)
    if right_fn is None:
        raise ValueError("this loss does not say what is right: take the probe evaluation")

    def measure(carry, state: TrainState):
        logits = apply_fn(problem.model, state.model_state)(state.params, batch.inputs)
        return carry, {"validation_accuracy": jnp.mean(right_fn(logits, batch.labels))}

    series = {"validation_accuracy": Series((), "1", "validation accuracy")}
    return Probe(every, lambda state: (), measure, series)


def evaluation(
    problem: Problem, every: int, batch_size: int | None = None, recomputed: bool = False
) -> Probe:
    """Measure the static loss and the accuracies on every test set, in evaluation mode.

        <set>_loss, <set>_accuracy, <set>_class_accuracy [class]        sums over all parts, divided once

    With a `batch_size` a test set is taken in parts of that size. With `recomputed` the statistics of batch
    norm are those of the whole training set at these parameters (see `recomputed_state`), not the running
    ones. A loss that does not say what is right has no accuracies; a class without examples has NaN.

    Raises ValueError for a problem without test sets.
    """
    check_settings(every=every)
    if not problem.tests:
        raise ValueError("there is no test set: give make_problem tests={'validation': ...}")
    check_parts(problem, None if batch_size is None else min(batch_size, len(problem.train.inputs)))
    right_fn, series, sizes = rightness_of(problem.weighted_loss), {}, {}
    for name, batch in problem.tests.items():
        sizes[name] = None if batch_size is None else min(batch_size, len(batch.inputs))
        check_batch_size(sizes[name], len(batch.inputs))
        series[f"{name}_loss"] = Series((), "nat", f"{name} loss with all class weights one")
        if right_fn is not None:
            series[f"{name}_accuracy"] = Series((), "1", f"{name} accuracy")
            if _has_classes(batch):
                series[f"{name}_class_accuracy"] = Series(("class",), "1", f"{name} accuracy of each class")

    def measure(carry, state: TrainState):
        model_state = recomputed_state(problem, state) if recomputed else state.model_state
        network, ones = apply_fn(problem.model, model_state), jnp.ones_like(problem.schedule(state.step))
        rows = {}
        for name, batch in problem.tests.items():
            num, sums = len(batch.inputs), partial(_sums, network, problem, right_fn, ones, state.params)
            shapes = jax.eval_shape(sums, batch, None, num)
            like = {of: jnp.zeros(x.shape, x.dtype) for of, x in shapes.items()}
            total = accumulate(sums, like, batch, BatchSize(sizes[name]))
            rows |= {f"{name}_{of}": total[of] / num for of in ("loss", "accuracy") if of in total}
            if "class_members" in total:
                right, members = total["class_right"], total["class_members"]
                found = jnp.where(members > 0, right / jnp.maximum(members, 1), missing((), right.dtype))
                rows[f"{name}_class_accuracy"] = found
        return carry, rows

    return Probe(every, lambda state: (), measure, series)


def _has_classes(batch: Batch) -> bool:
    return batch.labels.ndim == 1 and jnp.isdtype(batch.labels.dtype, "integral")


def _sums(network, problem, right_fn, ones, params, part, mask, num_examples):
    """Return the sums over a part of losses, and of right answers and members by class."""
    logits = wide(network(params, part.inputs))
    kept = jnp.ones(len(part.inputs), bool) if mask is None else mask
    losses = wide(problem.weighted_loss(logits, part.labels, ones.astype(logits.dtype)))
    found = {"loss": jnp.sum(jnp.where(kept, losses, 0))}
    if right_fn is not None:
        right = right_fn(logits, part.labels)
        found["accuracy"] = jnp.sum(jnp.where(kept, right, 0))
        if _has_classes(part):
            # a short type cannot count many classes
            members = jax.nn.one_hot(part.labels.astype(int), len(ones), dtype=right.dtype)
            members = members * kept.astype(right.dtype)[:, None]
            found |= {"class_right": right @ members, "class_members": members.sum(0)}
    return found


def _test_set(problem: Problem, name: str) -> Batch:
    if name not in problem.tests:
        raise ValueError(f"there is no test set {name!r}: give make_problem tests={{{name!r}: ...}}")
    return problem.tests[name]


def recomputed_state(problem: Problem, state: TrainState) -> ModelState:
    """Return the model state to which repeated training passes over the training set would tend.

        s <- m s + (1 - m) b,    s* = b        for every number in the state: the statistics of the set

    A pass from zeros, and its derivative with respect to them, m, give both coefficients of this running
    mean, whatever the layer; NaN for what is none: a further pass must change nothing. The set is one batch,
    since statistics of parts are not those of the whole. What is no floating number stays; dropout is on, as
    in training.
    """
    key, leaves = jax.random.fold_in(problem.key, state.step), jax.tree.leaves(state.model_state)
    moving = [jnp.isdtype(leaf.dtype, "real floating") for leaf in leaves]

    def joined(values):
        values = iter(values)
        found = [next(values) if moves else x for x, moves in zip(leaves, moving, strict=True)]
        return jax.tree.structure(state.model_state).unflatten(found)

    def after(values):
        moved = problem.model.train(state.params, joined(values), problem.train.inputs, key)[1]
        return [x for x, moves in zip(jax.tree.leaves(moved), moving, strict=True) if moves]

    zeros = [jnp.zeros_like(x) for x, moves in zip(leaves, moving, strict=True) if moves]
    reached, kept = jax.jvp(after, (zeros,), ([*map(jnp.ones_like, zeros)],))
    found = [x / (1 - m) for x, m in zip(reached, kept, strict=True)]
    # what is no running mean does not stay there
    return joined(
        jnp.where(jnp.abs(x - y) <= _STAYS * largest(jnp.abs(x)), x, jnp.nan)
        for x, y in zip(found, after(found), strict=True)
    )


def batch_sharpness(problem: Problem, every: int, num_batches: int) -> Probe:
    """Measure the curvature along the gradient of batches, which sits at the threshold under minibatches.

        E_B [ g_B . H_B g_B / |g_B|^2 ]        g_B, H_B: gradient and Hessian of F on one batch

    The mean over the batches of this step and the following, at its parameters and class weights, in
    training mode; `batch_sharpness_error` is its standard error, NaN of a single batch.

    Source: Andreyev and Beneventano 2024 (arXiv 2412.20553); the formula is ours.
    """
    check_settings(every=every, num_batches=num_batches)
    objective = make_objective(problem)

    @precise
    def measure(carry, state: TrainState):
        def along(number):
            batch = problem.batch_fn(state.step + number)
            at = state.model_state, batch, state.step, number
            gradient = jax.grad(lambda p: objective(p, *at)[0])
            slope, image = jax.jvp(gradient, (state.params,), (gradient(state.params),))
            return _dot(slope, image) / _dot(slope, slope)

        found = jax.lax.map(along, jnp.arange(num_batches, dtype=state.step.dtype))
        error = jnp.std(found, ddof=1) / num_batches**0.5 if num_batches > 1 else missing((), found.dtype)
        return carry, {"batch_sharpness": jnp.mean(found), "batch_sharpness_error": error}

    series = {
        "batch_sharpness": Series((), "nat", "curvature along the gradient of a batch, mean over batches"),
        "batch_sharpness_error": Series((), "nat", "standard error of the batch sharpness"),
    }
    return Probe(every, lambda state: (), measure, series)


def _dot(a, b) -> Array:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
