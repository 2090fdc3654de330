"""Spectral density and trace of a symmetric linear map on pytrees, with standard errors over probes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from analysis.krylov import check_like, expand, first_basis, flatten
from analysis.linear_maps import as_pytree, precise
from dlf.labels import largest
from dlf.types import Matvec


class SpectralDensity(NamedTuple):
    """A smoothed density of eigenvalues, and its quadrature: n sum(weights * f(nodes)) estimates tr f(H)."""

    values: Float[Array, " points"]  # eigenvalues, ascending
    density: Float[Array, " points"]  # mean over the probes, per unit of the eigenvalues; integrates to one
    standard_error: Float[Array, " points"]  # of that mean
    width: Float[Array, ""]  # standard deviation of the Gaussian in place of each node
    nodes: Float[Array, "probes order"]
    weights: Float[Array, "probes order"]  # of one probe a row, which sums to one


@partial(jax.jit, static_argnames=("num_probes", "order", "num_points"))
@precise
def _density(matvec, like, width, key, *, num_probes, order, num_points):
    raw, random, _, _ = flatten(matvec, like, key)
    # a power of two, which rounds nothing: squares of eigenvalues far from one would overflow, or vanish
    size = largest(jnp.abs(raw(random(num_probes * (order + 1)))))
    sound = (size > 0) & jnp.isfinite(size)
    unit = jnp.ldexp(jnp.ones_like(size), jnp.where(sound, jnp.frexp(size)[1], 0))

    def product(vector):
        return raw(vector) / unit

    def quadrature(probe):
        def grow(count, loop):
            basis, finite = loop
            basis, ok = expand(basis, product, partial(random, num_probes + probe * order + count))
            return basis, finite & ok

        start = first_basis(random(probe), order), jnp.asarray(True)
        basis, finite = jax.lax.fori_loop(0, order, grow, start)
        nodes, vectors = jnp.linalg.eigh((basis.coupling[:-1] + basis.coupling[:-1].T) / 2)
        # the first component of each vector: its overlap with the probe
        return jnp.where(finite, nodes, jnp.nan), vectors[0] ** 2

    nodes, weights = jax.lax.map(quadrature, jnp.arange(num_probes))
    least, most = jnp.min(nodes), jnp.max(nodes)
    scale = jnp.maximum(jnp.abs(least), jnp.abs(most))
    # below, the points would fall together in this dtype
    resolved = jnp.maximum(width * (most - least), 2 * num_points * jnp.finfo(nodes.dtype).eps * scale)
    width = jnp.where(scale > 0, resolved, width)
    values = jnp.linspace(least - 4 * width, most + 4 * width, num_points)
    kernel = jax.scipy.stats.norm.pdf(values[:, None, None], nodes[None], width)
    densities = jnp.sum(kernel * weights[None], axis=2)
    error = jnp.std(densities, axis=1, ddof=1) / num_probes**0.5
    density, error = jnp.mean(densities, axis=1) / unit, error / unit
    return SpectralDensity(values * unit, density, error, width * unit, nodes * unit, weights)


def spectral_density(
    matvec: Matvec,
    like: PyTree,
    *,
    num_probes: int = 8,
    order: int = 64,
    width: float = 0.01,
    num_points: int = 1024,
    key: Array,
) -> SpectralDensity:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

        rho(x) = (1/n) sum_i N(x; lambda_i, s^2)  ~  mean over probes of sum_k w_k N(x; theta_k, s^2)

    theta_k are the eigenvalues of the tridiagonal T of `order` Lanczos steps from a random unit
    vector, w_k the squares of the first components of its eigenvectors, s is `width` times the range
    of the nodes, but at least what the dtype resolves, 2 eps times the largest |node| and the number
    of points. The basis is orthogonalised twice, and an exhausted Krylov space goes on from a
    random vector with weight zero, so that nothing is invented. The standard error over probes tells
    the noise of the probes, not the smoothing. Cost: `num_probes * order + 1` products; memory `order`
    vectors; `order` is at most the dimension. Products that are not finite make the result NaN.

    Raises ValueError for fewer than two probes, an order or a width that is not positive, fewer points than
    the width needs, or leaves not all of one real floating dtype of 32 or 64 bits.

    Source: Ubaru, Chen and Saad 2017; Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159).

    >>> diagonal = jnp.repeat(jnp.asarray([0.0, 1.0]), jnp.asarray([300, 100]))
    >>> found = spectral_density(lambda v: diagonal * v, diagonal, order=8, key=jax.random.key(0))
    >>> upper = found.values > 0.5  # a quarter of the eigenvalues
    >>> abs(jnp.trapezoid(found.density[upper], found.values[upper]) - 0.25) < 0.05
    Array(True, dtype=bool)
    """
    counts = ("num_probes", num_probes, 2), ("num_points", num_points, 2), ("order", order, 1)
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    if num_points - 1 < (1 + 8 * width) / (1.5 * width):  # a point for 1.5 s, over the range and 4 s more
        raise ValueError(f"{num_points} points are too few to resolve a width of {width}: take more of one")
    size, _ = check_like(like)
    settings = dict(num_probes=num_probes, order=min(order, size), num_points=num_points)
    return _density(as_pytree(matvec), like, width, key, **settings)


class TraceEstimate(NamedTuple):
    """The estimated trace of a map and its standard error."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]  # over the probes of the part that was not summed exactly
    num_matvecs: int


@partial(jax.jit, static_argnames=("num_exact", "num_probes"))
@precise
def _trace(matvec, like, key, *, num_exact, num_probes):
    product, random, _, size = flatten(matvec, like, key)
    sketch = jax.lax.map(lambda i: product(random(i)), jnp.arange(num_exact))
    q, _ = jnp.linalg.qr(sketch.T)
    exact = jnp.sum(jax.lax.map(lambda column: column @ product(column), q.T))

    def sample(index):
        x = random(num_exact + index)
        x = x - q @ (q.T @ x)
        return size * (x @ product(x))

    samples = jax.lax.map(sample, jnp.arange(num_probes))
    return exact + jnp.mean(samples), jnp.std(samples, ddof=1) / num_probes**0.5


def trace(matvec: Matvec, like: PyTree, *, num_matvecs: int = 60, key: Array) -> TraceEstimate:
    """Estimate the trace with the variance of its dominant part taken out (Hutch++).

        tr H = tr Q^T H Q + tr (I - Q Q^T) H (I - Q Q^T),    Q spans H times random vectors

    A third of the products each make Q, sum its part exactly, and estimate the rest by random unit
    vectors x as n x.Hx, whose spread gives the standard error. Memory: twice a third of `num_matvecs`
    vectors. Products that are not finite make the result NaN.

    Raises ValueError for fewer than 6 products.

    Source: Meyer, Musco, Musco and Woodruff 2021 (arXiv 2010.09649).

    >>> diagonal = jnp.asarray([5.0, -3.0] + [0.0] * 50)
    >>> round(float(trace(lambda v: diagonal * v, diagonal, num_matvecs=9, key=jax.random.key(0)).value), 3)
    2.0
    """
    if num_matvecs < 6:
        raise ValueError(f"num_matvecs must be at least 6, got {num_matvecs}")
    num_exact = min(num_matvecs // 3, check_like(like)[0])
    num_probes = num_matvecs - 2 * num_exact
    found = _trace(as_pytree(matvec), like, key, num_exact=num_exact, num_probes=num_probes)
    return TraceEstimate(*found, num_matvecs)
