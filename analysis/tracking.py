"""Follow the largest eigenvalues of a moving Hessian: who is who, what moved them, where they will go."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import precise
from analysis.parts import accumulate, checked_logits, share
from dlf.derivatives import curvature_along, tangent
from dlf.recording import missing
from dlf.types import ApplyFn, Batch, LossFn, Params

_SAME = 0.5**0.5  # of a unit vector's length: of orthogonal vectors only one can have more


class Identity(NamedTuple):
    """Which eigenvector is which of those measured before, by their overlap."""

    previous: Int[Array, " num"]  # the rank that it had then, -1 for a newcomer
    overlap: Float[Array, " num"]  # the largest |u . u_before|
    sign: Float[Array, " num"]  # what turns it to the side of the old one
    crossing: Bool[Array, " num"]  # whether its rank has changed


class Split(NamedTuple):
    """What made the change of an eigenvalue, and whether that is to be trusted."""

    loss_moved: Float[Array, " num"]
    network_moved: Float[Array, " num"]
    valid: Bool[Array, " num"]  # the same eigenvector, at both ends further from others than its change


def identify(old: PyTree, new: PyTree) -> Identity:
    """Match unit vectors with those of the measurement before; both have a leading axis of length num.

    A vector is the same one if more than half of its squared length lies along the old one.

    >>> old, new = jnp.eye(3)[:2], jnp.asarray([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> found = identify(old, new)
    >>> found.previous.tolist(), found.sign.tolist(), found.crossing.tolist()
    ([1, -1], [-1.0, 1.0], [True, False])
    """
    flat = jax.vmap(lambda vector: ravel_pytree(vector)[0])
    products = flat(new) @ flat(old).T
    products = jnp.where(jnp.isfinite(products), products, 0)
    nearest = jnp.argmax(jnp.abs(products), axis=1)
    along = jnp.take_along_axis(products, nearest[:, None], axis=1)[:, 0]
    same = jnp.abs(along) > _SAME
    sign = jnp.where(same & (along < 0), -1, 1).astype(along.dtype)
    ranks = jnp.arange(len(along), dtype=nearest.dtype)
    return Identity(jnp.where(same, nearest, -1), jnp.abs(along), sign, same & (nearest != ranks))


def gaps(values: Float[Array, " num"]) -> Float[Array, " num"]:
    """Return the distance of each eigenvalue to the nearest of the others; of the last only from above.

    >>> gaps(jnp.asarray([5.0, 3.0, 2.5])).tolist()
    [2.0, 0.5, 0.5]
    """
    distances = jnp.abs(values[:, None] - values[None, :])
    return jnp.min(jnp.where(jnp.eye(len(values), dtype=bool), jnp.inf, distances), axis=1)


def split_change(
    old_values: Float[Array, " num"],
    new_values: Float[Array, " num"],
    old_curvatures: Float[Array, "num classes"],
    new_curvatures: Float[Array, "num classes"],
    change_of_weights: Float[Array, " classes"],
    previous: Int[Array, " num"],
    residuals: Float[Array, " num"],
) -> Split:
    """Split the changes of eigenvalues between two measurements.

        loss moved = sum_c (Gamma_c(t') - Gamma_c(t)) (k_c + k'_c) / 2,    k_c = u . H_c u
        network moved = the rest

    The curvatures k of both measurements (`operators.class_curvatures`), `previous` as in `Identity`,
    `residuals` those of the new values. It is the trapezoidal rule for the integral of sum_c k_c dGamma_c
    along the run; what it may be off by, half the difference of its two ends, must be below a tenth of it or
    the residual for the split to be valid. At frozen parameters the exact change is one more eigenvalue, of H
    at the later step. Of a newcomer, and of a degenerate eigenvalue, nothing is valid.

    Source: ours; Hellmann-Feynman for H(t) = sum_c Gamma_c(t) H_c.

    >>> values, curvatures = jnp.asarray([5.0, 1.0]), jnp.asarray([[4.0, 1.0], [0.5, 0.5]])
    >>> weights, previous = jnp.asarray([0.5, -0.5]), jnp.arange(2)
    >>> moved = split_change(values, values + 1, curvatures, curvatures, weights, previous, 0 * values)
    >>> moved.loss_moved.tolist(), moved.network_moved.tolist(), moved.valid.tolist()
    ([1.5, 0.0], [-0.5, 1.0], [True, True])
    """
    known = previous >= 0
    change = new_values - old_values[previous]
    before, after = old_curvatures[previous] @ change_of_weights, new_curvatures @ change_of_weights
    loss_moved, error = (before + after) / 2, jnp.abs(after - before) / 2
    gap = jnp.minimum(gaps(new_values), gaps(old_values)[previous])
    valid = known & (gap > jnp.abs(change)) & (gap > jnp.abs(loss_moved)) & (gap > 2 * residuals)
    valid &= error <= jnp.maximum(0.1 * jnp.abs(loss_moved), residuals)
    gap = missing((), loss_moved.dtype)
    both = jnp.where(known, loss_moved, gap), jnp.where(known, change - loss_moved, gap)
    return Split(*both, valid)


def gauss_newton_curvature(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: ArrayLike,
    vector: Params,
    *,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    """Return u . G u, the part of u . H u from the loss's own curvature, in one forward pass.

    `logits_loss`, `batch_size` and errors as in `operators.ggn`.

    >>> square = lambda logits, batch, step: jnp.mean(logits**2)
    >>> batch = Batch(jnp.asarray([[1.0], [3.0]]), jnp.zeros(2, int))
    >>> u = jnp.asarray(1.0)
    >>> gauss_newton_curvature(lambda w, x: x * w**2, square, 2 * u, batch, jnp.asarray(0), u).item()
    160.0
    """
    return operators.of_network(_gauss_newton, apply_fn, logits_loss, params, batch, step, batch_size)(vector)


@jax.jit
@precise
def _gauss_newton(apply_fn, logits_loss, params, batch, step, batch_size, vector):
    def product(part, mask, num_examples):
        def network(p):
            return checked_logits(apply_fn, p, part.inputs)

        of_logits = share(logits_loss, part, mask, num_examples, step, axis=0)
        return curvature_along(of_logits, *tangent(network, params, vector))

    like = jax.eval_shape(operators.composed(apply_fn, logits_loss), params, batch, step)
    return accumulate(product, like, batch, batch_size)


def class_subspace(
    class_losses: operators.ClassLosses,
    params: Params,
    batch: Batch,
    *,
    num: int,
    tol: float,
    batch_size: int | None = None,
    examples_per_class: int | None = None,
    key: Array,
) -> Float[Array, "classes basis basis"]:
    """Return the Hessian of every class within the space of the `num` top eigenvectors of each of them.

        B_c = V^T H_c V,    V orthonormal [size, classes num]

    For `forecast`: lambda_max(sum_c Gamma_c(t') B_c) <= lambda_max(H(t')) for every t' at these parameters.
    With `examples_per_class` the products of a class see no more of its examples, the first ones, in the
    place of all: less by the number of classes, exact where no class has more. Labels are then numbers.
    """
    _, _, num_classes = operators.checked_classes(class_losses, params, batch, batch_size)
    _, unravel = ravel_pytree(params)

    def of_class(label):
        if examples_per_class is None:
            return operators.class_hessian(class_losses, params, batch, label, batch_size=batch_size)
        is_other = batch.labels != label.astype(batch.labels.dtype)
        rows = jnp.argsort(is_other, stable=True)[:examples_per_class]
        part = jax.tree.map(lambda x: x[rows], batch)
        # class losses are divided by the number of all examples
        share = jnp.maximum(jnp.sum(~is_other), len(rows)) / len(is_other)
        matvec = operators.class_hessian(class_losses, params, part, label, batch_size=batch_size)
        return lambda v: jax.tree.map(lambda x: share.astype(x.dtype) * x, matvec(v))

    def top(label):
        of = dict(num=num, tol=tol, key=jax.random.fold_in(key, label))
        vectors = top_eigenpairs(of_class(label), params, **of).vectors
        return jax.vmap(lambda vector: ravel_pytree(vector)[0])(vectors)

    labels = jnp.arange(num_classes, dtype=jnp.zeros((), jnp.int32).dtype)
    vectors = jax.lax.map(top, labels)
    basis = jnp.linalg.qr(vectors.reshape(num_classes * num, -1).T)[0]

    def matrix(label):
        matvec = of_class(label)
        products = jax.lax.map(lambda column: ravel_pytree(matvec(unravel(column)))[0], basis.T)
        return jnp.matmul(products, basis, precision="highest")

    matrices = jax.lax.map(matrix, labels)
    return (matrices + matrices.swapaxes(1, 2)) / 2


def forecast(
    matrices: Float[np.ndarray, "classes basis basis"], weights: Float[np.ndarray, "steps classes"]
) -> Float[np.ndarray, " steps"]:
    """Forecast the sharpness at later class weights if the parameters stood still, from below.

        lambda(t') = lambda_max(sum_c Gamma_c(t') B_c)        `matrices` as `class_subspace` gives them

    >>> forecast(np.asarray([[[2.0]], [[1.0]]]), np.asarray([[1.0, 1.0], [2.0, 0.0]])).tolist()
    [3.0, 4.0]
    """
    return np.linalg.eigvalsh(np.einsum("tc,cab->tab", weights, matrices))[:, -1]
