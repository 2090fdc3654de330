"""Further copies of multiple eigenvalues, of which a search from one vector is sure of one only."""

import itertools
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from analysis.krylov import check_like
from analysis.lanczos import Eigenpairs, solve
from analysis.linear_maps import as_pytree, precise
from dlf.types import Matvec

_LOOKED = 16  # products from a random vector


def certify(
    pairs: Eigenpairs,
    matvec: Matvec,
    like: PyTree,
    *,
    tol: float,
    which: Literal["largest", "smallest", "both"] = "largest",
    max_matvecs: int = 1000,
    key: Array,
) -> Eigenpairs:
    """Look for eigenvalues that no search from one vector can see, further copies of multiple ones; add them.

        D = P H P + s U U^T,    P = I - U U^T,    s = last value - max |value|
        doubt = min(1, 3.3 sqrt(n) exp(-31 sqrt(e))),    e = (value - theta) / (2 (value - theta_min))

    theta and theta_min are the extreme Ritz values of D after 16 products from a new random vector. While
    theta is above the last of the wanted values by more than the tolerance, its pair takes that one's place.
    `doubt` bounds the chance of such a theta although D has an eigenvalue at or above the value; it is small
    where a gap lies below the value, and 1 where a next one follows too closely for 16 products to tell.

    Cost: 16 products at each end, for every pair that was missed at least 17 more; memory: of the basis and
    `pairs.vectors` twice. `tol` and `which` are those of the search. Pairs that have not converged are
    returned as they are. Not to be traced.

    Raises ValueError for a `tol` outside (0, 1), or vectors that are not like `like`.

    Source: Kuczynski and Wozniakowski 1992 (the bound: Lanczos from a random vector).

    >>> from analysis.lanczos import top_eigenpairs
    >>> diagonal = jnp.asarray([5.0] * 3 + [1.0] * 40)
    >>> search = dict(tol=1e-3, key=jax.random.key(0))
    >>> pairs = top_eigenpairs(lambda v: diagonal * v, diagonal, num=4, **search)
    >>> pairs = certify(pairs, lambda v: diagonal * v, diagonal, **search)
    >>> [round(float(value), 3) for value in pairs.values], bool(pairs.doubt[0] < 1e-4)
    ([5.0, 5.0, 5.0, 1.0], True)
    """
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, relative to the largest value, got {tol}")
    size, dtype = check_like(like)
    shapes = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], pairs.vectors)
    if shapes != jax.tree.map(jnp.shape, like):
        raise ValueError(f"pairs.vectors must be like the parameters behind an axis of pairs, got {shapes}")
    if not pairs.converged:
        return pairs
    matvec, unravel = as_pytree(matvec), ravel_pytree(like)[1]
    key = jax.random.fold_in(key, np.iinfo(np.int32).max)  # else a search with this key saw the same vector
    values, residuals, doubt = (np.array(x) for x in (pairs.values, pairs.residuals, pairs.doubt))
    vectors = jax.vmap(lambda vector: ravel_pytree(vector)[0])(pairs.vectors)
    converged, spent, broken = True, int(pairs.num_matvecs), 0
    for sign, ends in _ends(which, len(values)):
        for turn in itertools.count():
            last, scale = sign * values[ends[-1]], np.abs(values).max()
            limit = max(tol * scale, residuals.max())
            deflated = Partial(_deflated, matvec, vectors, *jnp.asarray([sign, last - scale], dtype))
            search = partial(
                solve, deflated, like, None, key=jax.random.fold_in(key, turn), num=1, rows=min(size, 24),
                fewest=_LOOKED,
            )  # fmt: skip
            found = search(0.0, _LOOKED, which="both")
            top, bottom = (float(value) for value in found.values)
            missed = top > last + limit
            if missed and found.residuals[0] > limit:
                spent, found = spent + _LOOKED, search(tol, max_matvecs, which="largest")
            if found.nonfinite_matvec:
                converged, broken = False, spent + int(found.nonfinite_matvec)
            spent += int(found.num_matvecs)
            if not (converged and missed):
                break
            new = _joined(matvec, vectors, jax.tree.map(lambda leaf: leaf[0], found.vectors))
            order, at, spent = np.arange(len(values)), ends[-1], spent + 1
            values[at], residuals[at], vectors = new[0], new[1], vectors.at[at].set(new[2])
            order[ends] = ends[np.argsort(-sign * values[ends], kind="stable")]
            converged = residuals[at] <= limit
            values, residuals, vectors = values[order], residuals[order], vectors[order]
            if not converged:
                break
        if converged:
            above = np.maximum(sign * values[ends] - np.array([[top], [bottom]]), np.finfo(dtype).tiny)
            chance = 3.3 * size**0.5 * np.exp(-(2 * _LOOKED - 1) * np.sqrt(above[0] / (2 * above[1])))
            doubt[ends] = np.minimum(chance, 1)
    found = (jnp.asarray(x) for x in (residuals, converged, spent, broken, doubt))
    return Eigenpairs(jnp.asarray(values), jax.vmap(unravel)(vectors), *found)


def _ends(which, num):
    """Return of each end its sign, and where its pairs stand from the outermost inwards."""
    places = np.arange(num)
    if which == "both":
        return (1, places[: num // 2]), (-1, places[: num // 2 - 1 : -1])
    return ((1, places) if which == "largest" else (-1, places[::-1]),)


def _deflated(matvec, vectors, sign, shift, vector):
    """Multiply by sign P H P + shift U U^T."""
    flat, unravel = ravel_pytree(vector)
    along = vectors @ flat
    image, _ = ravel_pytree(matvec(unravel(flat - along @ vectors)))
    return unravel(sign * (image - (vectors @ image) @ vectors) + shift * along @ vectors)


@jax.jit
@precise
def _joined(matvec, vectors, new):
    """Return the Rayleigh quotient, the residual, and what a vector leaves beside others, of unit length."""
    flat, unravel = ravel_pytree(new)
    flat = flat - (vectors @ flat) @ vectors
    flat = flat / jnp.linalg.norm(flat)
    image, _ = ravel_pytree(matvec(unravel(flat)))
    value = flat @ image
    rounding = jnp.finfo(flat.dtype).eps * jnp.abs(value)
    return value, jnp.maximum(jnp.linalg.norm(image - value * flat), rounding), flat
