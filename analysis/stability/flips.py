"""The Hessian that an optimizer's threshold bounds, and what follows a flip there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from analysis.linear_maps import dense, preconditioned
from dlf.labels import largest
from dlf.optimizers import adam_preconditioner, rmsprop_preconditioner
from dlf.thresholds import bound_settings
from dlf.types import Matvec, Params

_RANK = 1e-6  # below which share of the largest an eigenvalue counts as zero
_LARGEST = 5_000  # parameters: for the flip coefficient the Hessian is solved densely


def preconditioner(opt_state: PyTree, name: str, **settings: Any) -> Params | None:
    """Return the P of RMSProp or Adam from the optimizer's state, else None; errors as in `threshold`."""
    given, _ = bound_settings(name, **settings)
    if name == "adam":
        return adam_preconditioner(opt_state, **{key: given[key] for key in ("b2", "eps", "eps_root")})
    if name == "rmsprop":
        return rmsprop_preconditioner(opt_state, eps=given["eps"])
    return None


def effective_hessian(matvec: Matvec, opt_state: PyTree, name: str, **settings: Any) -> Matvec:
    """Return the map whose largest eigenvalue `threshold` bounds: H, or P^(-1/2) H P^(-1/2).

    `opt_state` is that of the optimizer, in wrappers of optax or not; `name`, settings and errors as in
    `threshold`. Parameters that a mask keeps from it count as frozen: their rows and columns are zero, the
    rest is that of the trained ones. Of a partition, groups that are moved otherwise are refused. Before the
    first update P is NaN, and so are all products (where the state is traced, else ValueError).

    >>> import optax
    >>> rmsprop = optax.rmsprop(0.1, decay=0.75)
    >>> _, opt_state = rmsprop.update(jnp.asarray([4.0]), rmsprop.init(jnp.ones(1)))
    >>> matvec = effective_hessian(lambda v: 3 * v, opt_state, "rmsprop", learning_rate=0.1, decay=0.75)
    >>> matvec(jnp.ones(1)).round(4).tolist()
    [1.5]
    """
    scale = preconditioner(opt_state, name, **settings)
    return matvec if scale is None else preconditioned(matvec, scale)


class Flip(NamedTuple):
    """What happens to gradient descent at a minimum whose sharpness passes 2 / eta.

    Of a `coefficient` c > 0: a two-cycle theta +- `amplitude` q, which exists while eta lambda > 2; c < 0: no
    bounded cycle nearby, the run leaves.
    """

    coefficient: Float[Array, ""]
    sharpness: Float[Array, ""]  # lambda = q . H q
    amplitude: Float[Array, ""]  # sqrt((eta lambda - 2) / c), NaN where no two-cycle is predicted
    num_dropped: int  # directions of the Hessian that counted as singular and were left out of its inverse
    dropped_share: float  # of |D3[q, q, .]|^2, which lay in them: not small, the coefficient does not hold
    gradient_norm: float  # how near to a fixed point it was taken
    direction_residual: float  # |H q - lambda q|: not small, q is no eigenvector


def flip_coefficient(
    loss: Callable[[Params], Float[Array, ""]], params: Params, direction: Params, learning_rate: float
) -> Flip:
    """Return the coefficient of the flip of gradient descent at a fixed point along a critical direction.

        c = eta (D3[q, q, .]^T H^+ D3[q, q, .] / 2 - D4[q, q, q, q] / 6),   amplitude^2 = (eta lambda - 2) / c

    q is `direction` at unit length, an eigenvector of the Hessian H with eta lambda near 2; D3 and D4 are the
    third and fourth derivatives of the loss, by automatic differentiation. H^+ leaves out eigenvalues below
    1e-6 times the largest modulus. Needs the whole Hessian: up to 5,000 parameters. Of a ReLU network the
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
    regular = jnp.abs(values) > _RANK * largest(jnp.abs(values))
    parts = vectors.T @ third
    inverse = jnp.where(regular, 1 / jnp.where(regular, values, 1), 0)
    coefficient = learning_rate * (jnp.sum(inverse * parts**2) / 2 - fourth / 6)
    sharpness = q @ hessian @ q
    squared = (learning_rate * sharpness - 2) / coefficient
    exists = (coefficient > 0) & (squared > 0)
    total = jnp.maximum(jnp.sum(parts**2), jnp.finfo(parts.dtype).tiny)
    dropped = jnp.sum(jnp.where(regular, 0, parts**2)) / total
    amplitude = jnp.where(exists, jnp.sqrt(jnp.where(exists, squared, 0)), jnp.nan)
    left_out = int(jnp.sum(~regular)), float(dropped)
    norms = float(jnp.linalg.norm(gradient(flat))), float(jnp.linalg.norm(hessian @ q - sharpness * q))
    return Flip(coefficient, sharpness, amplitude, *left_out, *norms)
