"""Extreme eigenpairs of a symmetric linear map on pytrees, with their proof of convergence."""

import warnings
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from analysis.krylov import check_like, expand, first_basis, flatten, order_of_ends, rayleigh_ritz, restart
from analysis.linear_maps import as_pytree, precise
from dlf.recording import missing
from dlf.types import Matvec

_LEAST_WARM = 8  # products after a warm start, in which a new direction can outgrow the old ones
_RANDOM_PART = 0.1  # of a warm start's length


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs in descending order; an eigenvalue lies within its residual of each value."""

    values: Float[Array, " num"]
    vectors: PyTree  # as `like`, with a leading axis of length num
    residuals: Float[Array, " num"]  # |H u - value u| for unit vectors u, in the unit of the values
    converged: Bool[Array, ""]  # all residuals within the tolerance
    num_matvecs: Int[Array, ""]
    nonfinite_matvec: Int[Array, ""]  # the product, counted from 1, that was not finite; 0 if none
    # What `converged` does not prove: a bound on the chance that one more eigenvalue at or beyond each value
    # is missing, such as a further copy of it. NaN where it was not looked for, see `multiplicity.certify`.
    doubt: Float[Array, " num"]


def top_eigenpairs(
    matvec: Matvec,
    like: PyTree,  # of one real floating dtype, which is checked below
    *,
    num: int,
    tol: float | Float[Array, ""],
    which: Literal["largest", "smallest", "both"] = "largest",
    start: PyTree = None,
    basis_size: int | None = None,
    max_matvecs: int | Int[Array, ""] = 1000,
    key: Array,
) -> Eigenpairs:
    """Find the `num` largest or smallest eigenvalues of a symmetric map, or `num` of each end.

        H V = V T + v b^T,    T s = theta s,    u = V s,    H u - theta u = V (T s - theta s) + v (b . s)

    Thick-restart Lanczos: a basis V of at most `basis_size` vectors, each orthogonalised twice against all
    others. When it is full, the best of its Ritz vectors u and the last direction v start the next one. The
    coefficients T and b are those measured, not the ones that symmetry would give, so that the last equation
    yields the true residual without another product. It stops once all wanted residuals are at most `tol`
    times the largest |wanted value|, or 20 eps |T|, the rounding of a product; a smaller `tol` warns.

    `like` gives the structure of a vector; memory is that of `basis_size` vectors (24, or twice what is
    wanted plus 4, if not said) and at most ten more. `start`, eigenvectors of a map nearby as `vectors`
    holds them, makes a warm start: from their sum and a random part, with at least 8 products, since at once
    a residual would certify an old direction while a new one has grown larger. Still it can miss one: measure
    cold from time to time. All zeros, or NaN, stand for a cold start. Where the Krylov space is exhausted,
    random vectors go on, at least as many as are wanted. Of a multiple eigenvalue one copy is sure, whatever
    `converged` says: `certify` looks for the others.

    It never raises for what it finds: without convergence within `max_matvecs`, `converged` is False beside
    the best values; a product that is not finite ends the search, and `nonfinite_matvec` says which. A map
    that is not symmetric does not converge, nor one of eigenvalues whose squares the dtype cannot hold
    (beyond 1e-17 to 1e17 in 32 bits). Compiled once for all arrays in a matvec that is a `Partial`, as the
    builders of `analysis.operators` return it, and for all `tol`, `start`, `max_matvecs` and `key`.

    Raises ValueError if not 1 <= num < dimension (all of a small spectrum: `dense` and eigh), for a basis or
    a limit too small for `num`, a `tol` outside (0, 1), a `start` of another shape, a structure that the map
    does not keep, or leaves not all of one real floating dtype of 32 or 64 bits.

    Source: Wu and Simon 2000 (thick restart), Stewart 2001 (Krylov-Schur), Parlett 1998 (residuals).

    >>> cubes = jnp.arange(100.0) ** 3
    >>> pairs = top_eigenpairs(lambda v: cubes * v, cubes, num=2, tol=1e-4, key=jax.random.key(0))
    >>> [round(float(value), -1) for value in pairs.values], bool(pairs.converged)
    ([970300.0, 941190.0], True)
    """
    size, dtype = check_like(like)
    wanted = 2 * num if which == "both" else num
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"which must be 'largest', 'smallest' or 'both', got {which!r}")
    if not (num >= 1 and wanted < size):
        raise ValueError(
            f"num must be at least 1, and fewer eigenpairs wanted than the dimension {size}, got {num=}"
        )
    rows = min(size, max(24, 2 * wanted + 4) if basis_size is None else basis_size)
    if rows < min(size, wanted + 2):
        raise ValueError(f"basis_size must be at least {wanted + 2} for {wanted} eigenpairs, got {rows}")
    if not isinstance(max_matvecs, jax.core.Tracer) and max_matvecs < wanted + 1:
        raise ValueError(f"max_matvecs must be more than {wanted} for as many eigenpairs, got {max_matvecs}")
    floor = 20 * float(jnp.finfo(dtype).eps)
    if not isinstance(tol, jax.core.Tracer):
        if not 0 < tol < 1:
            raise ValueError(f"tol must be between 0 and 1, relative to the largest value, got {tol}")
        if tol < floor:
            warnings.warn(f"tol={tol} is below the rounding of {dtype}: {floor:.1e} is used", stacklevel=2)
    if start is not None:
        shapes, found = jax.tree.map(jnp.shape, like), jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], start)
        if shapes != found:
            raise ValueError(f"start must be like the parameters with a leading axis, got {found} behind it")
    return solve(as_pytree(matvec), like, start, tol, max_matvecs, key, num=num, which=which, rows=rows)


@partial(jax.jit, static_argnames=("num", "which", "rows", "fewest"))
@precise
def solve(matvec, like, start, tol, max_matvecs, key, *, num, which, rows, fewest=0):
    """Search as `top_eigenpairs` says, with at least `fewest` products; nothing is checked."""
    product, random, unflatten, size = flatten(matvec, like, key)
    wanted = 2 * num if which == "both" else num
    first, least_warm = _first_vector(start, like, random, fewest)
    eps, tiny, huge = (getattr(jnp.finfo(first.dtype), name) for name in ("eps", "tiny", "max"))

    def grow(search):
        basis, found, least, _ = search
        count = found.num_matvecs + 1
        basis, finite = expand(basis, product, lambda: random(count))
        ritz_values, ritz_vectors, residuals = rayleigh_ritz(basis)
        order = order_of_ends(basis, num, which, wanted)
        values, residuals = ritz_values[order], residuals[order]
        spread = jnp.max(jnp.abs(basis.coupling))
        residuals = jnp.maximum(residuals, eps * spread)  # a residual of zero has still been rounded
        limit = jnp.maximum(tol * jnp.max(jnp.abs(values)), 20 * eps * spread)
        # beyond, squares underflow or overflow, and norms say nothing
        in_range = (spread == 0) | ((spread > 100 * tiny**0.5) & (spread < 0.01 * huge**0.5))
        enough = basis.size >= wanted
        # an invariant space tells nothing of the rest: as many directions more as are wanted
        invariant = jnp.linalg.norm(basis.coupling[basis.size]) <= limit
        least = jnp.where(invariant & (least < 0), count + wanted, least)
        explored = (count >= jnp.maximum(least, least_warm)) | (basis.size == size)
        converged = enough & finite & explored & in_range & jnp.all(residuals <= limit)
        values, residuals = (jnp.where(enough, x, missing((), x.dtype)) for x in (values, residuals))
        found = Eigenpairs(values, None, residuals, converged, count, jnp.where(finite, 0, count), None)
        ended = converged | (count >= max_matvecs) | ~finite | (basis.size == size)
        # at the end, too: the wanted Ritz vectors are then the first rows
        basis = restart(basis, ritz_vectors, num, which, wanted, due=ended | (basis.size == rows))
        return basis, found, least, ended

    nothing = missing((wanted,), first.dtype)
    zero = jnp.zeros((), int)
    found = Eigenpairs(nothing, None, nothing, zero > 0, zero, zero, None)
    # the third is how many products it must have at least, -1 until a Krylov space is exhausted
    search = first_basis(first, rows), found, zero - 1, zero > 0
    basis, found, _, _ = jax.lax.while_loop(lambda search: ~search[-1], grow, search)
    return found._replace(vectors=jax.vmap(unflatten)(basis.vectors[:wanted]), doubt=nothing)


def _first_vector(start, like, random, fewest):
    """Return the first vector of the search, and how many products it must have at least."""
    cold = random(0)
    if start is None:
        return cold, fewest
    total, _ = ravel_pytree(jax.tree.map(lambda leaf, _: jnp.sum(leaf, axis=0), start, like))
    norm = jnp.linalg.norm(total)
    known = norm > 0
    warm = jnp.pad(total / jnp.where(known, norm, 1), (0, cold.size - total.size)) + _RANDOM_PART * cold
    return jnp.where(known, warm / jnp.linalg.norm(warm), cold), jnp.where(known, _LEAST_WARM, 0)
