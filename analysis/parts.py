"""Sums over the examples of a data set in parts, and what these ask of the data, the loss and the network.

Sums in parts are right for a loss that is a mean over examples, of a network that takes each example by
itself. Both are tried on a few examples when an operator or a kernel is built, at its parameters and near
them, unless something is traced (inside a compiled function): build there what was checked outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, Shaped

from analysis.linear_maps import as_pytree, precise
from dlf.derivatives import curvature_along, equations
from dlf.labels import check_batch
from dlf.types import ApplyFn, Batch, Inputs, Params

# examples that are tried, of a small network many, among them those of the smallest and the largest label
_FEW, _MANY, _NUMBERS = 8, 1_024, 2**20
# Of the parameters' size: at them, and further off, where nothing is equal by chance as at zero weights. What
# is so at one place only is a kink of the network within rounding of an example.
_NEAR = (0.0, 0.1, 0.2)
_ROUNDINGS = 100


@jax.tree_util.register_static
@dataclass(frozen=True)
class BatchSize:
    """How many examples a part has, static in a compiled function; None for all in one part."""

    value: int | None


def check_batch_size(value: int | None, num_examples: int) -> None:
    """Raise ValueError unless there is no batch size or one from 1 to the number of examples."""
    if value is not None and not (type(value) is int and 1 <= value <= num_examples):
        raise ValueError(f"batch_size must be from 1 to {num_examples}, the number of examples, got {value}")


def checked_size(
    loss_fn: Callable, params: Params, batch: Batch, step: PyTree, batch_size: int | None
) -> BatchSize:
    """Return the size of the parts, after a check of the data and, if there are parts, of the loss.

    Raises ValueError for data that are no Batch of arrays, no examples, another number of labels, none where
    the loss needs them, an impossible `batch_size`, or as `check_parts` does.
    """
    if not hasattr(batch, "inputs"):
        raise ValueError(f"the data must be a Batch, such as dataset.train, got {type(batch).__name__}")
    check_batch(batch)
    if batch.labels is None:
        try:
            jax.eval_shape(loss_fn, params, batch, step)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"the batch has no labels, which this loss uses: {_line(error)}") from error
    check_batch_size(batch_size, len(batch.inputs))
    if batch_size is not None:
        check_parts(loss_fn, params, batch, step)
    return BatchSize(batch_size)


def checked_logits(apply_fn: ApplyFn, params: Params, inputs: Inputs) -> Float[Array, "..."]:
    """Return logits [examples, outputs], or [examples] of one output; raise ValueError for other shapes."""
    logits = apply_fn(params, inputs)
    if logits.ndim not in (1, 2) or len(logits) != len(inputs):
        shape = f"{logits.shape} for {len(inputs)} inputs"
        raise ValueError(f"a network must give [examples] or [examples, outputs], got {shape}: reshape them")
    return logits


def accumulate(product: Callable, like: PyTree, batch: Batch, batch_size: BatchSize) -> PyTree:
    """Sum product(part, mask, num_examples) over parts of the batch, in one scan.

    `like` is shaped as a product. The mask is False for the examples that fill up the last part; a single
    part has none.
    """
    num_examples, size = len(batch.inputs), batch_size.value
    if size is None:
        return product(batch, None, num_examples)
    num_parts = -(-num_examples // size)
    padding = num_parts * size - num_examples

    def split(x):
        # Part i is every num_parts-th example, so that an array sharded over its examples stays so.
        # Padding repeats a real example: whatever is masked is then as finite as the data.
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return x.reshape(size, num_parts, *x.shape[1:])

    columns = jax.tree.map(split, batch)
    mask = jnp.arange(size * num_parts).reshape(size, num_parts) < num_examples

    def add(total, index):
        part, part_mask = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False), (columns, mask)
        )
        return jax.tree.map(jnp.add, total, product(part, part_mask, num_examples)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), jnp.arange(num_parts))[0]


def share(loss_fn: Callable, part: Batch, mask: Array | None, num_examples: int, step, axis=None) -> Callable:
    """Return the part's share of the mean loss, as a function of what has that batch axis."""
    if mask is None:
        return lambda p: loss_fn(p, part, step)
    losses = jax.vmap(lambda p, example: loss_fn(p, example, step), in_axes=(axis, 0))
    lift = (lambda p: p) if axis is None else (lambda p: p[:, None])
    return lambda p: masked_sum(losses(lift(p), _singles(part)), mask) / num_examples


def masked_sum(values: Shaped[Array, "examples ..."], mask: Array) -> Array:
    """Return the sum over the examples for which the mask is True.

    >>> masked_sum(jnp.asarray([1.0, 2.0, jnp.nan]), jnp.asarray([True, True, False])).item()
    3.0
    """
    return jnp.sum(jnp.where(mask.reshape(-1, *[1] * (values.ndim - 1)), values, 0), axis=0)


def check_parts(loss_fn: Callable, params: Params, batch: Batch, step: PyTree) -> None:
    """Raise ValueError unless a loss, or each of several, is a mean over examples that do not interact."""
    unsteady, apart, limit = _tried("the loss", loss_fn, params, batch, step, is_mean=True)
    if unsteady > limit:
        raise ValueError(f"the loss differs by {unsteady:.0e} of its size when called twice: {_REMEDY}")
    if apart > limit:
        raise ValueError(
            f"the loss of a batch, or its curvature, is {apart:.0e} of its size from the mean over its "
            "examples alone: leave batch_size out or make it a mean; if the network couples its examples, "
            f"{_REMEDY}"
        )


def check_network(apply_fn: ApplyFn, params: Params, inputs: Inputs) -> None:
    """Raise ValueError unless a network gives an example the same logits alone, in a batch, and once more."""
    args = Partial(_network, as_pytree(apply_fn)), params, Batch(inputs, None), None
    unsteady, apart, limit = _tried("the network", *args, is_mean=False)
    if unsteady > limit:
        raise ValueError(f"logits differ by {unsteady:.0e} of their size when called twice: {_REMEDY}")
    if apart > limit:
        raise ValueError(
            f"the network couples or tells apart the examples of a batch, whose logits are {apart:.0e} of "
            f"their size from those of each alone: {_REMEDY}"
        )


_REMEDY = "take frozen(problem, state), with batch statistics and dropout fixed"


def _network(apply_fn, params, batch, step):
    return checked_logits(apply_fn, params, batch.inputs)


def _tried(name, fn, params, batch, step, is_mean):
    """Return how far fn is from itself and from its examples alone, and the limit; zeros where traced."""
    args = as_pytree(fn), params, batch, step
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return 0, 0, 0
    with jax.ensure_compile_time_eval():  # also amid the trace of something else
        try:
            tried = [_compare(*args, near, is_mean=is_mean) for near in _NEAR]
        except TypeError as error:
            raise ValueError(f"{name} cannot take some of the examples alone: {_line(error)}") from error
    if isinstance(tried[0][0], jax.core.Tracer):  # fn itself holds something traced
        return 0, 0, 0
    unsteady, apart, limits = np.asarray(jax.device_get(tried)).T
    return unsteady.max(), np.sort(apart)[-2], limits[0]


def _line(error):
    return str(error).partition("\n")[0]


@partial(jax.jit, static_argnames="is_mean")
@precise
def _compare(fn, params, batch, step, near, is_mean):
    def noise(p):
        size = jnp.sqrt(jnp.mean(p * p))
        wave = jnp.cos(1 + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
        return jnp.where(size > 0, size, 1) * wave

    direction = jax.tree.map(noise, params)
    params = jax.tree.map(lambda p, u: p + near * u, params, direction)
    few = _few(batch, sum(p.size for p in jax.tree.leaves(params)))
    together, again = (fn(params, few, step) for _ in range(2))
    alone = jax.vmap(lambda example: fn(params, example, step))(_singles(few))
    expected = jnp.mean(alone, axis=0) if is_mean else alone[:, 0]

    def apart(x, y, alone):  # what is broken in both, or in one
        sizes = jnp.abs(jnp.append(x, alone))
        scale = jnp.max(jnp.where(jnp.isfinite(sizes), sizes, 0))
        finite = jnp.isfinite(x), jnp.isfinite(y)
        distance = jnp.where(finite[0] & finite[1], jnp.abs(x - y) / jnp.where(scale > 0, scale, 1), jnp.inf)
        return jnp.max(jnp.where(finite[0] | finite[1], distance, 0))

    # half precision within the function sets the limit
    results = (v.aval for eqn in equations(jax.make_jaxpr(fn)(params, few, step)) for v in eqn.outvars)
    kinds = {alone.dtype, *(of.dtype for of in results if hasattr(of, "dtype"))}
    eps = max(float(jnp.finfo(kind).eps) for kind in kinds if jnp.isdtype(kind, "real floating"))
    found = apart(together, expected, alone)
    if is_mean:  # of the loss itself a weak coupling shows in the second order only

        def curvature(examples):
            return curvature_along(lambda p: fn(p, examples, step), params, direction)

        alone = jax.vmap(curvature)(_singles(few))
        found = jnp.maximum(found, apart(curvature(few), jnp.mean(alone, axis=0), alone))
    return apart(together, again, alone), found, jnp.asarray(min(eps**0.5, _ROUNDINGS * eps), alone.dtype)


def _few(batch, num_params):
    """Return some examples from all over the batch, in their order, the same at every call."""
    num_examples = len(batch.inputs)
    numbers = num_params + batch.inputs.size // num_examples
    num = min(max(_FEW, _NUMBERS // numbers), _MANY)
    chosen = jnp.asarray(np.sort(np.random.RandomState(0).permutation(num_examples)[: num - 2]), int)
    if batch.labels is not None:
        first = batch.labels.reshape(num_examples, -1)[:, 0]
        chosen = jnp.concatenate([chosen, jnp.stack([jnp.argmin(first), jnp.argmax(first)]).astype(int)])
    return jax.tree.map(lambda x: x[chosen], batch)


def _singles(batch):
    return jax.tree.map(lambda x: x[:, None], batch)
