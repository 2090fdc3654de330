"""Top eigenpairs of a symmetric linear map on pytrees, with residuals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from dlf.types import Matvec, Params


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs in descending order, with their proof of convergence.

    `residuals` are |H u - value u| for unit vectors u, in the unit of the values: an eigenvalue
    lies within that distance of each value. Residuals do not tell which eigenvalue it is.
    """

    values: Float[Array, " num"]
    vectors: PyTree  # as `like`, with a leading axis of length num
    residuals: Float[Array, " num"]
    converged: Bool[Array, ""]  # all residuals at most tol times the largest |value|
    num_matvecs: int


@jax.default_matmul_precision("highest")  # the default of GPU and TPU is too coarse
def top_eigenpairs(
    matvec: Matvec, like: Params, *, num: int, tol: float, basis_size: int = 24, key: Array
) -> Eigenpairs:
    """Find the `num` largest eigenvalues of a symmetric map by Lanczos from a random start.

        H V = V T + beta v e_m^T,    T s = theta s,    u = V s

    One Krylov basis of `basis_size` vectors (at most the dimension), each orthogonalised twice
    against all others. If the Krylov space is exhausted (beta at most 10 sqrt(n) eps |T|), the
    basis goes on from a fresh random vector: rounding errors would otherwise grow into invented
    eigenvalues. Of a multiple eigenvalue one copy is sure, the others only if that happens. `like`
    gives the structure of a vector; the residuals are measured with `num` further products.
    `converged` compares them with tol times the largest |value|, or with the rounding of the
    product, 20 eps |T|, where that is larger.

    Raises ValueError if `num` exceeds `basis_size` or the dimension.

    Source: Paige 1972 (the recurrence), Parlett 1998, chapter 13 (orthogonalisation, residuals).

    >>> diagonal = jnp.arange(40.0)
    >>> pairs = top_eigenpairs(lambda v: diagonal**3 * v, diagonal, num=2, tol=1e-3, key=jax.random.key(0))
    >>> [round(float(v)) for v in pairs.values], bool(pairs.converged), pairs.num_matvecs
    ([59319, 54872], True, 26)
    """
    example, unravel = ravel_pytree(like)
    size, dtype = example.size, example.dtype
    basis_size = min(basis_size, size)
    if num > basis_size:
        raise ValueError(f"num must be at most {basis_size}, the size of the basis, got {num}")
    eps = jnp.finfo(dtype).eps

    def product(v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def orthonormalise(v, basis):
        for _ in range(2):
            v = v - (basis @ v) @ basis
        norm = jnp.linalg.norm(v)
        return v / jnp.where(norm > 0, norm, jnp.ones_like(norm)), norm

    def random_direction(index, basis):
        v = jax.random.normal(jax.random.fold_in(key, index), (size,), dtype)
        return orthonormalise(v, basis)[0]

    def extend(index, loop):
        basis, diagonal, off_diagonal, v = loop  # rows of `basis` from `index` on are zero
        basis = basis.at[index].set(v)
        w = product(v)
        alpha = v @ w
        v, beta = orthonormalise(w, basis)
        diagonal = diagonal.at[index].set(alpha)
        scale = jnp.max(jnp.abs(diagonal)) + jnp.max(off_diagonal)
        exhausted = beta <= 10 * size**0.5 * eps * scale
        v = jax.lax.cond(exhausted, lambda: random_direction(index + 1, basis), lambda: v)
        beta = jnp.where(exhausted, jnp.zeros_like(beta), beta)
        return basis, diagonal, off_diagonal.at[index].set(beta), v

    basis = jnp.zeros((basis_size, size), dtype)
    start = basis, jnp.zeros(basis_size, dtype), jnp.zeros(basis_size, dtype), random_direction(0, basis)
    basis, diagonal, off_diagonal, _ = jax.lax.fori_loop(0, basis_size, extend, start)
    neighbours = off_diagonal[:-1]
    projected = jnp.diag(diagonal) + jnp.diag(neighbours, 1) + jnp.diag(neighbours, -1)
    ritz_values, ritz_vectors = jnp.linalg.eigh(projected)

    values = ritz_values[::-1][:num]
    vectors = ritz_vectors[:, ::-1][:, :num].T @ basis
    images = jax.lax.map(product, vectors)
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    # a residual computed as exactly zero still carries the rounding of the product
    largest = jnp.max(jnp.abs(ritz_values))
    residuals = jnp.maximum(residuals, eps * largest)
    converged = jnp.all(residuals <= jnp.maximum(tol * jnp.max(jnp.abs(values)), 20 * eps * largest))
    return Eigenpairs(values, jax.vmap(unravel)(vectors), residuals, converged, basis_size + num)
