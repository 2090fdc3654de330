"""Curvature of a loss as matrix-vector products on parameter pytrees, over a whole data set.

Each builder returns a `jax.tree_util.Partial`: its functions are static, parameters, data and step are
arrays. A compiled function that takes such a matvec as an argument is compiled once for all parameters and
steps. All raise ValueError for an empty data set, or a batch size below 1 or above the number of examples;
with a batch size also for a loss that is no mean over examples, or a network that couples them, as a trial on
a few examples tells (`parts`), unless something is traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from analysis.linear_maps import as_pytree, precise
from analysis.parts import BatchSize, accumulate, check_network, checked_logits, checked_size, share
from dlf.derivatives import curvature_along, hvp, tangent
from dlf.types import ApplyFn, Batch, LossFn, Matvec, Params

ClassLosses = Callable[[Params, Batch], Float[Array, " classes"]]  # as `make_class_losses` gives them


@jax.jit
@precise
def _hessian(loss_fn, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        return hvp(share(loss_fn, part, mask, num_examples, step), params, vector)

    return accumulate(product, params, batch, batch_size)


def hessian(
    loss_fn: LossFn, params: Params, batch: Batch, step: ArrayLike, *, batch_size: int | None = None
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
    loss_fn, step = as_pytree(loss_fn), jnp.asarray(step)
    size = checked_size(loss_fn, params, batch, step, batch_size)
    return Partial(_hessian, loss_fn, params, batch, step, size)


@jax.jit
@precise
def _ggn(apply_fn, logits_loss, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        def network(p):
            return checked_logits(apply_fn, p, part.inputs)

        logits, pullback = jax.vjp(network, params)
        of_logits = share(logits_loss, part, mask, num_examples, step, axis=0)
        return pullback(hvp(of_logits, logits, tangent(network, params, vector)[1]))[0]

    return accumulate(product, params, batch, batch_size)


def composed(apply_fn: ApplyFn, logits_loss: LossFn) -> LossFn:
    """Return the loss of the parameters from that of the logits."""
    return Partial(_composed, as_pytree(apply_fn), as_pytree(logits_loss))


def _composed(apply_fn, logits_loss, params, batch, step):
    return logits_loss(checked_logits(apply_fn, params, batch.inputs), batch, step)


def of_network(
    product: Callable,
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: ArrayLike,
    batch_size: int | None,
) -> Partial:
    """Return product(apply_fn, logits_loss, params, batch, step, size, vector) of the vector, checked."""
    apply_fn, logits_loss, step = as_pytree(apply_fn), as_pytree(logits_loss), jnp.asarray(step)
    size = checked_size(composed(apply_fn, logits_loss), params, batch, step, batch_size)
    if batch_size is not None:
        check_network(apply_fn, params, batch.inputs)
    return Partial(product, apply_fn, logits_loss, params, batch, step, size)


def ggn(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: ArrayLike,
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
    return of_network(_ggn, apply_fn, logits_loss, params, batch, step, batch_size)


@jax.jit
@precise
def _residual(apply_fn, logits_loss, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        logits = checked_logits(apply_fn, params, part.inputs)
        slopes = jax.grad(share(logits_loss, part, mask, num_examples, step, axis=0))(logits)
        return hvp(lambda p: jnp.vdot(slopes, apply_fn(p, part.inputs)), params, vector)

    return accumulate(product, params, batch, batch_size)


def residual(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: ArrayLike,
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
    return of_network(_residual, apply_fn, logits_loss, params, batch, step, batch_size)


def _of_classes(class_losses, params, batch, step):
    losses = class_losses(params, batch)
    if losses.ndim != 1:
        raise ValueError(f"class losses must be [classes], got the shape {losses.shape}")
    return losses


def _of_class(class_losses, params, batch, label):
    return _of_classes(class_losses, params, batch, None)[label]


def checked_classes(
    class_losses: ClassLosses, params: Params, batch: Batch, batch_size: int | None
) -> tuple[LossFn, BatchSize, int]:
    """Return the class losses as a loss of any step, the checked size of the parts, and how many they are."""
    losses = Partial(_of_classes, as_pytree(class_losses))
    size = checked_size(losses, params, batch, None, batch_size)
    return losses, size, len(jax.eval_shape(losses, params, batch, None))


def class_hessian(
    class_losses: ClassLosses,
    params: Params,
    batch: Batch,
    label: Int[Array, ""] | int,
    *,
    batch_size: int | None = None,
) -> Matvec:
    """Return the Hessian of one class's loss, H_c.

        H(t) = sum_c Gamma_c(t) H_c,    H_c = d2 l_c / dtheta2,    F = Gamma(t) . l

    `class_losses` as `make_class_losses` gives them, with 1/P inside. The label is an array: one
    compiled product serves all classes.

    Raises ValueError for a label that is no class.
    """
    _, size, num_classes = checked_classes(class_losses, params, batch, batch_size)
    if not isinstance(label, jax.core.Tracer) and not 0 <= label < num_classes:
        raise ValueError(f"label must be from 0 to {num_classes - 1}, got {label}")
    loss_fn = Partial(_of_class, as_pytree(class_losses))
    return Partial(_hessian, loss_fn, params, batch, jnp.asarray(label), size)


def class_curvatures(
    class_losses: ClassLosses, params: Params, batch: Batch, vector: Params, *, batch_size: int | None = None
) -> Float[Array, " classes"]:
    """Return u . H_c u of every class c along one vector u, in one pass.

        Gamma(t) . (u . H_c u)_c = u . H(t) u        forward over forward

    >>> class_losses = lambda w, batch: jnp.stack([w**2, w**3])
    >>> batch = Batch(jnp.ones((1, 1)), jnp.zeros(1, int))
    >>> class_curvatures(class_losses, jnp.asarray(2.0), batch, jnp.asarray(1.0)).tolist()
    [2.0, 12.0]
    """
    losses, size, _ = checked_classes(class_losses, params, batch, batch_size)
    return _class_curvatures(losses, params, batch, size, vector)


@jax.jit
@precise
def _class_curvatures(losses, params, batch, batch_size, vector):
    def product(part, mask, num_examples):
        return curvature_along(share(losses, part, mask, num_examples, None), params, vector)

    return accumulate(product, jax.eval_shape(losses, params, batch, None), batch, batch_size)
