"""What follows a flip: a bounded two-cycle, or divergence."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from analysis.linear_maps import dense
from dlf.types import Params

_LARGEST = 5_000  # parameters: the Hessian is solved densely


class Flip(NamedTuple):
    """What happens to gradient descent at a minimum whose sharpness passes 2 / eta.

    `coefficient` c > 0: a two-cycle theta +- `amplitude` q, which exists while eta lambda > 2; c < 0: no
    bounded cycle nearby, the run leaves. `num_dropped` directions of the Hessian counted as singular and were
    left out of its inverse; `dropped_share`, of the squared length of the third derivative's vector, lay in
    them, and the coefficient holds only where that is small. `gradient_norm` tells how near to a fixed point
    it was taken.
    """

    coefficient: Float[Array, ""]
    sharpness: Float[Array, ""]  # lambda = q . H q
    amplitude: Float[Array, ""]  # sqrt((eta lambda - 2) / c), NaN where no two-cycle is predicted
    num_dropped: int
    dropped_share: float
    gradient_norm: float
    direction_residual: float  # |H q - lambda q|: not small, q is no eigenvector


def flip_coefficient(
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    direction: Params,
    learning_rate: float,
    rtol: float = 1e-6,
) -> Flip:
    """Return the coefficient of the flip of gradient descent at a fixed point along a critical direction.

        c = eta (D3[q, q, .]^T H^+ D3[q, q, .] / 2 - D4[q, q, q, q] / 6),   amplitude^2 = (eta lambda - 2) / c

    q is `direction` at unit length, an eigenvector of the Hessian H with eta lambda near 2; D3 and D4 are the
    third and fourth derivatives of the loss, by automatic differentiation. H^+ leaves out eigenvalues below
    `rtol` times the largest modulus. Needs the whole Hessian: up to 5,000 parameters. Of a ReLU network the
    derivatives omit the kinks that a finite cycle crosses: take a twin with tanh or softplus.

    Raises ValueError for more parameters, or a direction of zero length.

    Source: Kuznetsov, Elements of Applied Bifurcation Theory, chapter 5, for theta - eta grad L.

    >>> loss = lambda x: x**2 / 2 - x**3 / 3
    >>> flip = flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), learning_rate=2.25)
    >>> flip.coefficient.item(), round(flip.amplitude.item(), 4)
    (4.5, 0.2357)
    """
    flat, unravel = ravel_pytree(params)
    q = ravel_pytree(direction)[0]
    if flat.size > _LARGEST:
        raise ValueError(f"the flip coefficient solves a dense Hessian: at most {_LARGEST:,} parameters")
    if not 0 < float(jnp.linalg.norm(q)) < float("inf"):
        raise ValueError("direction must be finite and not zero: the eigenvector along which training flips")
    q = q / jnp.linalg.norm(q)

    def along(order, fn):
        for _ in range(order):
            fn = (lambda inner: lambda p: jax.jvp(inner, (p,), (q,))[1])(fn)
        return fn

    def flat_loss(p):
        return loss(unravel(p))

    gradient = jax.grad(flat_loss)
    third, fourth = jax.jit(along(2, gradient))(flat), jax.jit(along(4, flat_loss))(flat)
    hessian = dense(lambda v: jax.jvp(gradient, (flat,), (v,))[1], flat)
    values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
    regular = jnp.abs(values) > rtol * jnp.max(jnp.abs(values))
    parts = vectors.T @ third
    inverse = jnp.where(regular, 1 / jnp.where(regular, values, 1), 0)
    coefficient = learning_rate * (jnp.sum(inverse * parts**2) / 2 - fourth / 6)
    sharpness = q @ hessian @ q
    squared = (learning_rate * sharpness - 2) / coefficient
    exists = (coefficient > 0) & (squared > 0)
    total = jnp.maximum(jnp.sum(parts**2), jnp.finfo(parts.dtype).tiny)
    dropped = jnp.sum(jnp.where(regular, 0, parts**2)) / total
    return Flip(
        coefficient,
        sharpness,
        jnp.where(exists, jnp.sqrt(jnp.where(exists, squared, 0)), jnp.nan),
        int(jnp.sum(~regular)),
        float(dropped),
        float(jnp.linalg.norm(gradient(flat))),
        float(jnp.linalg.norm(hessian @ q - sharpness * q)),
    )
