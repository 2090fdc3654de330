"""What kernels are compared by: their spectrum, the labels, and the GGN with the same spectrum."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import precise
from analysis.ntk.kernels import full_ntk
from analysis.operators import composed, ggn
from analysis.parts import check_network, check_parts, checked_logits
from dlf.derivatives import hvp
from dlf.labels import largest
from dlf.types import ApplyFn, Batch, Labels, LossFn, Params


def spectrum(kernel: Float[Array, "size size"]) -> Float[Array, " size"]:
    """Return the eigenvalues of a symmetric kernel in descending order.

    >>> spectrum(jnp.asarray([[1.0, 2.0], [2.0, 4.0]]))[0].round(4).item()
    5.0
    """
    return jnp.linalg.eigvalsh(kernel)[::-1]


def relative_distance(
    kernel: Float[Array, "*kernels size other"], reference: Float[Array, "size other"]
) -> Float[Array, "*kernels"]:
    """Return the distance of kernels from another one, relative to that one.

        d = |K - R| / |R|        Frobenius norm

    >>> reference = 4 * jnp.eye(4)
    >>> relative_distance(reference + 1, reference).item()
    0.5
    """
    apart = reference.reshape(*[1] * (kernel.ndim - 2), *reference.shape)
    return jnp.linalg.norm(kernel - apart, axis=(-2, -1)) / jnp.linalg.norm(reference)


def kernel_target_alignment(kernel: Float[Array, "examples examples"], labels: Labels) -> Float[Array, ""]:
    """Return the centred alignment of a traced kernel with the labels' Gram matrix, from -1 to 1.

        A = <K_c, Y_c> / (|K_c| |Y_c|),    Y = one_hot(y) one_hot(y)^T,    M_c = H M H,  H = I - 1 1^T / P

    with the Frobenius product and norm: 1 if K is Y up to centring and a positive factor, at least 0
    if K is positive semi-definite. NaN for labels of one class.

    Source: Cortes, Mohri and Rostamizadeh 2012, the alignment of centred kernel matrices.

    >>> kernel = jnp.asarray([[2.0, 0.0], [0.0, 2.0]])
    >>> round(float(kernel_target_alignment(kernel, jnp.asarray([0, 1]))), 4)
    1.0
    """
    same = (labels[:, None] == labels[None, :]).astype(kernel.dtype)
    centred_kernel, centred_same = _centred(kernel), _centred(same)
    norms = jnp.linalg.norm(centred_kernel) * jnp.linalg.norm(centred_same)
    return jnp.sum(centred_kernel * centred_same) / norms


def _centred(matrix):
    for axis in (0, 1):
        matrix = matrix - matrix.mean(axis=axis, keepdims=True)
    return matrix


class Duality(NamedTuple):
    """The largest eigenvalues of the GGN and of its dual kernel, in descending order."""

    ggn_eigenvalues: Float[Array, " num"]
    ntk_eigenvalues: Float[Array, " num"]
    difference: Float[Array, ""]  # the largest |difference|, relative to the largest eigenvalue


@precise
def ggn_ntk_duality(
    apply_fn: ApplyFn,
    logits_loss: LossFn,
    params: Params,
    batch: Batch,
    step: ArrayLike,
    *,
    num: int,
    tol: float,
    key: Array,
) -> Duality:
    """Compare two pipelines that must agree: GGN and full NTK share their non-zero eigenvalues.

        G = A^T A = J^T S J                    by Lanczos over the parameters, to `tol`
        K = A A^T = S^{1/2} J J^T S^{1/2}      by a dense solver over the logits
        A = S^{1/2} J,    S = d2F / dlogits2

    `logits_loss`, as in `ggn`, must be a mean of the examples' losses, so that S has a block
    [classes, classes] for each example, class weights and 1/P inside; and convex in the logits, so
    that S has a root: negative eigenvalues count as zero, and the spectra then differ.

    Raises ValueError for `num` above the number of logits, or as `top_eigenpairs` does.

    >>> square = lambda logits, batch, step: jnp.mean(logits**2)
    >>> batch = Batch(jnp.asarray([[1.0, 0.0], [0.0, 3.0]]), jnp.zeros(2, int))
    >>> network = lambda w, x: x @ w, square, jnp.ones((2, 1)), batch, jnp.asarray(0)
    >>> found = ggn_ntk_duality(*network, num=1, tol=1e-4, key=jax.random.key(0))
    >>> found.ggn_eigenvalues.round(4).tolist(), found.ntk_eigenvalues.round(4).tolist()
    ([9.0], [9.0])
    """
    logits, step = checked_logits(apply_fn, params, batch.inputs), jnp.asarray(step)
    check_network(apply_fn, params, batch.inputs)
    check_parts(composed(apply_fn, logits_loss), params, batch, step)
    if num > logits.size:
        raise ValueError(f"num must be at most {logits.size}, the number of logits, got {num}")

    rows = logits.reshape(len(logits), -1)

    def curvature(row, example):
        def loss(row):
            return logits_loss(row.reshape(1, *logits.shape[1:]), example, step) / len(logits)

        return jax.vmap(partial(hvp, loss, row))(jnp.eye(row.size, dtype=row.dtype))

    examples = jax.tree.map(lambda x: x[:, None], batch)
    values, vectors = jnp.linalg.eigh(jax.vmap(curvature)(rows, examples))
    roots = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :] @ vectors.mT  # [P, C, C]
    kernel = full_ntk(apply_fn, params, batch.inputs).reshape(2 * rows.shape)
    kernel = jnp.einsum("pab,pbqc,qcd->paqd", roots, kernel, roots).reshape(logits.size, logits.size)
    ntk_eigenvalues = spectrum(kernel)[:num]
    matvec = ggn(apply_fn, logits_loss, params, batch, step)
    ggn_eigenvalues = top_eigenpairs(matvec, params, num=num, tol=tol, key=key).values
    difference = largest(jnp.abs(ggn_eigenvalues - ntk_eigenvalues)) / largest(ntk_eigenvalues)
    return Duality(ggn_eigenvalues, ntk_eigenvalues, difference)
