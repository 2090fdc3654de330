"""Krylov bases of a symmetric map: what eigenpairs, spectral density and trace are made of."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from dlf.convolutions import warn_of_convolutions
from dlf.types import Matvec, Params

_PIECES = 16  # in which a large basis is rotated


class Basis(NamedTuple):
    """An orthonormal basis, one vector a row, and all that is known of its images under H.

    H V = V C + v c^T + E        C = coupling[:size, :size], c = coupling[size, :size]
    """

    vectors: Float[Array, "rows width"]  # V^T; rows from `size` on are zero
    next: Float[Array, " width"]  # v, orthogonal to V, of unit length
    coupling: Float[Array, "more_rows rows"]
    lost: Float[Array, " rows"]  # |E| of each column: rounding, if H is symmetric
    size: Int[Array, ""]


def check_like(like: PyTree) -> tuple[int, jnp.dtype]:
    """Return the dimension and the dtype of vectors shaped as `like`.

    Raises ValueError unless all leaves are of one real floating dtype of at least 32 bits.
    """
    leaves = jax.tree.leaves(like)
    kinds = {jnp.result_type(leaf) for leaf in leaves}
    real = [kind for kind in kinds if jnp.isdtype(kind, "real floating") and jnp.finfo(kind).bits >= 32]
    if len(kinds) != 1 or not real:
        names = ", ".join(sorted(map(str, kinds))) or "no leaves"
        raise ValueError(f"parameters must be of one real floating dtype of 32 or 64 bits, got {names}")
    return sum(jnp.size(leaf) for leaf in leaves), real[0]


def flatten(matvec: Matvec, like: Params, key: Array) -> tuple[Callable, Callable, Callable, int]:
    """Return a map of pytrees as one of flat vectors: (product, random, unflatten, size).

    `random(number)` is a random unit vector, one for each number. Vectors are padded with zeros to a width
    that divides into pieces; `size` is without them. Warns of a `lax.conv` on a CPU.

    Raises ValueError if the map does not return what it is given: structure, shapes and dtypes.
    """

    def kind(leaf):
        return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"

    warn_of_convolutions(matvec, like)
    expected, found = (jax.tree.map(kind, tree) for tree in (like, jax.eval_shape(matvec, like)))
    if expected != found:
        raise ValueError(f"the map must return a pytree like the one it is given, {expected}, not {found}")
    flat, unravel = ravel_pytree(like)
    padding = -flat.size % _PIECES

    def pad(vector):
        return jnp.pad(vector, (0, padding))

    def random(number):
        vector = jax.random.normal(jax.random.fold_in(key, number), flat.shape, flat.dtype)
        return pad(vector / jnp.linalg.norm(vector))

    def unflatten(vector):
        return unravel(vector[: flat.size])

    return lambda v: pad(ravel_pytree(matvec(unflatten(v)))[0]), random, unflatten, flat.size


def first_basis(vector: Float[Array, " width"], rows: int) -> Basis:
    """Return the empty basis that a unit vector will start."""
    zeros = jnp.zeros((rows + 1, rows), vector.dtype)
    none = jnp.zeros((rows, vector.size), vector.dtype)
    return Basis(none, vector, zeros, zeros[0], jnp.zeros((), int))


def expand(basis: Basis, product: Callable, fresh: Callable[[], Array]) -> tuple[Basis, Bool[Array, ""]]:
    """Add v to the basis and make the direction of H v the next v; say whether H v was finite.

    H v is orthogonalised twice against all vectors. Where it leaves nothing, at most 10 eps times
    the largest coefficient, the next v is `fresh()`: rounding errors would otherwise grow into
    invented eigenvalues. A product that is not finite leaves the size as it was.
    """
    vectors, v, coupling, lost, index = basis

    def orthogonalise(vector):
        part, part_v = vectors @ vector, v @ vector
        return vector - part @ vectors - part_v * v, part.at[index].set(part_v)

    image = product(v)
    finite = jnp.all(jnp.isfinite(image))
    rest, along = orthogonalise(jnp.where(finite, image, 0))
    rest, more = orthogonalise(rest)
    along = along + more
    beta = jnp.linalg.norm(rest)
    scale = jnp.maximum(jnp.max(jnp.abs(coupling)), jnp.max(jnp.abs(along)))
    exhausted = beta <= 10 * jnp.finfo(v.dtype).eps * scale
    # a loop of two or no turns, not a branch: that would make the compiler copy all of V
    rest = jax.lax.fori_loop(
        0,
        jnp.where(exhausted, 2, 0),
        lambda turn, vector: orthogonalise(jnp.where(turn == 0, fresh(), vector))[0],
        rest,
    )
    norm = jnp.linalg.norm(rest)
    rest = rest / jnp.where(norm > 0, norm, 1)
    column = jnp.append(along, 0).at[index + 1].set(jnp.where(exhausted, 0, beta))
    coupling = coupling.at[:, index].set(column)
    lost = lost.at[index].set(jnp.where(exhausted, beta, lost[index]))
    # Written after all of V has been read, which the otherwise idle condition makes sure of: earlier,
    # the compiler would have to copy V.
    row = jnp.where(norm >= 0, index, index + 1)
    vectors = jax.lax.dynamic_update_index_in_dim(vectors, v, row, 0)
    return Basis(vectors, rest, coupling, lost, index + finite.astype(index.dtype)), finite


def rotate(vectors: Float[Array, "rows width"], rotation: Float[Array, "rows kept"], due: Bool[Array, ""]):
    """Return rotation^T V^T over rows of zeros, in the memory of V^T; or V^T itself where it is not due."""
    rows, width = vectors.shape
    rotation = jnp.pad(rotation, ((0, 0), (0, rows - rotation.shape[1])))
    num_pieces = _PIECES if width >= 4096 * _PIECES else 1
    piece = width // num_pieces

    def turn(index, vectors):
        part = jax.lax.dynamic_slice(vectors, (0, index * piece), (rows, piece))
        return jax.lax.dynamic_update_slice(vectors, rotation.T @ part, (0, index * piece))

    # a loop of no turns, not a branch, as in `expand`
    return jax.lax.fori_loop(0, jnp.where(due, num_pieces, 0), turn, vectors)


def rayleigh_ritz(basis):
    """Return the Ritz values in ascending order behind those of unused rows, vectors, residuals."""
    used = jnp.arange(len(basis.lost)) < basis.size
    coupling = jnp.where(used[None], basis.coupling, 0)
    projected = jnp.where(used[:, None], coupling[:-1], 0)
    projected = (projected + projected.T) / 2
    bound = jnp.max(jnp.sum(jnp.abs(projected), axis=1))
    # below all others, so that unused rows invent no eigenvalue zero
    unused = jnp.where(used, 0, -jnp.where(bound > 0, 2 * bound, 1))
    values, vectors = jnp.linalg.eigh(projected + jnp.diag(unused))
    shifted = (coupling @ vectors).at[:-1].add(-values[None] * vectors)
    return values, vectors, jnp.sqrt(jnp.sum(shifted**2, axis=0) + basis.lost**2 @ vectors**2)


def order_of_ends(basis, num, which, kept):
    """Return where `kept` Ritz pairs stand in ascending order: first the wanted, from the top down."""
    rows = len(basis.lost)
    down, up = rows - 1 - np.arange(rows), rows - basis.size + np.arange(rows)
    if which == "largest":
        return down[:kept]
    if which == "smallest":
        return jnp.concatenate([up[:num][::-1], up[num:kept]])
    extra = kept // 2 - num
    return jnp.concatenate([down[:num], up[:num][::-1], down[num : num + extra], up[num : num + extra]])


def restart(basis, ritz_vectors, num, which, wanted, due):
    """Where it is due, turn the basis so that its first rows are the best Ritz vectors, and drop the rest."""
    rows = len(basis.lost)
    kept = order_of_ends(basis, num, which, min(rows - 1, wanted + 2 * (rows - wanted) // 5))
    size, rotation = len(kept), ritz_vectors[:, kept]
    used = jnp.arange(rows) < basis.size
    coupling = jnp.where(used[None], basis.coupling, 0)
    inner = jnp.where(used[:, None], coupling[:-1], 0) @ rotation
    projected = rotation.T @ inner
    turned = jnp.zeros_like(coupling).at[:size, :size].set(projected)
    turned = turned.at[size, :size].set(coupling[basis.size] @ rotation)
    dropped = jnp.sum((inner - rotation @ projected) ** 2, axis=0)
    lost = jnp.sqrt(basis.lost**2 @ rotation**2 + dropped)  # rounding errors are independent
    small = turned, jnp.pad(lost, (0, rows - size)), jnp.full_like(basis.size, size)
    small = jax.tree.map(partial(jnp.where, due), small, tuple(basis[2:]))
    return Basis(rotate(basis.vectors, rotation, due), basis.next, *small)
