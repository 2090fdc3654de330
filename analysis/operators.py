"""Curvature of a loss as matrix-vector products on parameter pytrees, over a whole data set.

Each builder returns a `jax.tree_util.Partial`: its functions are static, parameters, data and step are
arrays. A compiled function that takes such a matvec as an argument is compiled once for all parameters and
steps. All raise ValueError for an empty data set, or a batch size below 1 or above the number of examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from analysis.linear_maps import as_pytree, check_batch_size, precise
from dlf.types import ApplyFn, Batch, LossFn, Matvec, Params, Step

ClassLosses = Callable[[Params, Batch], Float[Array, " classes"]]  # as `make_class_losses` gives them


@jax.tree_util.register_static
@dataclass(frozen=True)
class _BatchSize:
    value: int | None


def _batch_size(batch: Batch, value: int | None) -> _BatchSize:
    if not hasattr(batch, "inputs"):
        raise ValueError(f"the data must be a Batch, such as dataset.train, got {type(batch).__name__}")
    num_examples = len(batch.inputs)
    if num_examples == 0:
        raise ValueError("the data set is empty: curvature is a mean over its examples")
    if len(batch.labels) != num_examples:
        raise ValueError(f"need a label for each input, got {num_examples} and {len(batch.labels)}")
    check_batch_size(value, num_examples)
    return _BatchSize(value)


def _accumulate(product, like, batch, batch_size):
    """Sum product(part, mask, P) over parts of the batch; a single part has no mask."""
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


def _share(loss_fn, part, mask, num_examples, step, axis=None):
    """Return the part's share of the mean loss, as a function of what has that batch axis."""
    if mask is None:
        return lambda p: loss_fn(p, part, step)
    singles = jax.tree.map(lambda x: x[:, None], part)
    losses = jax.vmap(lambda p, example: loss_fn(p, example, step), in_axes=(axis, 0))
    lift = (lambda p: p) if axis is None else (lambda p: p[:, None])
    return lambda p: jnp.sum(jnp.where(mask, losses(lift(p), singles), 0)) / num_examples


def _hvp(scalar_fn, point, vector):
    return jax.jvp(jax.grad(scalar_fn), (point,), (vector,))[1]


@jax.jit
@precise
def _hessian(loss_fn, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        return _hvp(_share(loss_fn, part, mask, num_examples, step), params, vector)

    return _accumulate(product, params, batch, batch_size)


def hessian(
    loss_fn: LossFn, params: Params, batch: Batch, step: Step, *, batch_size: int | None = None
) -> Matvec:
    """Return the Hessian of the loss at frozen time as a map of vectors shaped as the parameters.

        H(t) v = d/de grad F(theta + e v, t) at e = 0        forward over reverse

    `batch` holds the whole data set. With a `batch_size` the loss must be a mean over examples; the
    product is summed in one compiled scan over parts of that size and is the same for every size,
    ragged or not, up to rounding. Without one, any loss of the batch will do.

    >>> loss_fn = lambda w, batch, step: jnp.mean((batch.inputs @ w) ** 3)
    >>> batch = Batch(jnp.eye(2), jnp.zeros(2, int))
    >>> matvec = hessian(loss_fn, jnp.asarray([1.0, 2.0]), batch, jnp.asarray(0), batch_size=1)
    >>> matvec(jnp.ones(2)).tolist()
    [3.0, 6.0]
    """
    return Partial(_hessian, as_pytree(loss_fn), params, batch, step, _batch_size(batch, batch_size))


@jax.jit
@precise
def _ggn(apply_fn, logits_loss, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        logits, pullback = jax.vjp(lambda p: apply_fn(p, part.inputs), params)
        tangent = jax.jvp(lambda p: apply_fn(p, part.inputs), (params,), (vector,))[1]
        share = _share(logits_loss, part, mask, num_examples, step, axis=0)
        return pullback(_hvp(share, logits, tangent))[0]

    return _accumulate(product, params, batch, batch_size)


def ggn(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: Step,
    *,
    batch_size: int | None = None,
) -> Matvec:
    """Return the generalised Gauss-Newton matrix, the part of the Hessian from the loss's own curvature.

        G v = J^T (d2F/df2) J v,    J = df/dtheta of the logits f, class weights and 1/P in F

    `logits_loss` is F as a function of the logits in place of the parameters, as
    `make_loss(lambda logits, inputs: logits, weighted_loss, schedule)` gives it.

    Source: Schraudolph 2002.

    >>> square = lambda logits, batch, step: jnp.mean(logits**2)
    >>> batch = Batch(jnp.asarray([[1.0], [3.0]]), jnp.zeros(2, int))
    >>> ggn(lambda w, x: x * w, square, jnp.asarray(7.0), batch, jnp.asarray(0))(jnp.asarray(1.0)).item()
    10.0
    """
    size = _batch_size(batch, batch_size)
    return Partial(_ggn, as_pytree(apply_fn), as_pytree(logits_loss), params, batch, step, size)


@jax.jit
@precise
def _residual(apply_fn, logits_loss, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        logits = apply_fn(params, part.inputs)
        slopes = jax.grad(_share(logits_loss, part, mask, num_examples, step, axis=0))(logits)
        return _hvp(lambda p: jnp.vdot(slopes, apply_fn(p, part.inputs)), params, vector)

    return _accumulate(product, params, batch, batch_size)


def residual(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: Step,
    *,
    batch_size: int | None = None,
) -> Matvec:
    """Return the rest of the Hessian beside the GGN, from the network's own curvature.

        R v = H v - G v = sum_jc (dF/df_c(x_j)) (d2 f_c(x_j)/dtheta2) v

    Computed from that sum, not as a difference. `logits_loss` as in `ggn`.

    >>> linear = lambda logits, batch, step: jnp.mean(logits)
    >>> batch = Batch(jnp.asarray([[1.0], [3.0]]), jnp.zeros(2, int))
    >>> matvec = residual(lambda w, x: x * w**2, linear, jnp.asarray(7.0), batch, jnp.asarray(0))
    >>> matvec(jnp.asarray(1.0)).item()
    4.0
    """
    size = _batch_size(batch, batch_size)
    return Partial(_residual, as_pytree(apply_fn), as_pytree(logits_loss), params, batch, step, size)


def _class_loss(class_losses, params, batch, label):
    return class_losses(params, batch)[label]


def class_hessian(
    class_losses: ClassLosses,
    params: Params,
    batch: Batch,
    label: Int[Array, ""],
    *,
    batch_size: int | None = None,
) -> Matvec:
    """Return the Hessian of one class's loss, H_c.

        H(t) = sum_c Gamma_c(t) H_c,    H_c = d2 l_c / dtheta2,    F = Gamma(t) . l

    `class_losses` as `make_class_losses` gives them, with 1/P inside. The label is an array: one
    compiled product serves all classes.

    Raises ValueError for a label that is no class.
    """
    (num_classes,) = jax.eval_shape(class_losses, params, batch).shape
    if not isinstance(label, jax.core.Tracer) and not 0 <= label < num_classes:
        raise ValueError(f"label must be from 0 to {num_classes - 1}, got {label}")
    loss_fn = Partial(_class_loss, as_pytree(class_losses))
    return hessian(loss_fn, params, batch, label, batch_size=batch_size)


@precise
def class_curvatures(
    class_losses: ClassLosses, params: Params, batch: Batch, vector: Params
) -> Float[Array, " classes"]:
    """Return u . H_c u of every class c along one vector u, in one pass.

        Gamma(t) . (u . H_c u)_c = u . H(t) u        forward over forward

    >>> class_losses = lambda w, batch: jnp.stack([w**2, w**3])
    >>> batch = Batch(jnp.ones((1, 1)), jnp.zeros(1, int))
    >>> class_curvatures(class_losses, jnp.asarray(2.0), batch, jnp.asarray(1.0)).tolist()
    [2.0, 12.0]
    """

    def slopes(p):
        return jax.jvp(lambda q: class_losses(q, batch), (p,), (vector,))[1]

    return jax.jvp(slopes, (params,), (vector,))[1]
