"""Matrix-vector products with the curvature of a loss, and their dense form as an oracle."""

import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from dlf.types import Batch, LossFn, Matvec, Params, Step


@jax.default_matmul_precision("highest")  # the default of GPU and TPU is too coarse
def hvp(loss_fn: LossFn, params: Params, batch: Batch, step: Step, vector: Params) -> Params:
    """Multiply the Hessian of the loss at frozen time with a vector.

        H(t) v = d/de grad F(theta + e v, t) at e = 0        forward over reverse

    `vector` and the product have the structure of `params`.

    >>> import jax.numpy as jnp
    >>> loss_fn = lambda w, batch, step: jnp.mean((batch.inputs @ w) ** 3)
    >>> batch = Batch(jnp.eye(2), jnp.zeros(2, int))
    >>> hvp(loss_fn, jnp.asarray([1.0, 2.0]), batch, jnp.asarray(0), jnp.ones(2)).tolist()
    [3.0, 6.0]
    """
    grad_fn = jax.grad(lambda p: loss_fn(p, batch, step))
    return jax.jvp(grad_fn, (params,), (vector,))[1]


def dense(matvec: Matvec, like: Params) -> Float[Array, "size size"]:
    """Return the matrix of a linear map on pytrees shaped as `like`, for small sizes.

    Rows and columns are in the order of `jax.flatten_util.ravel_pytree`.

    >>> import jax.numpy as jnp
    >>> dense(lambda v: {"a": 2 * v["a"], "b": v["b"]}, {"a": jnp.zeros(1), "b": jnp.zeros(1)}).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    flat, unravel = ravel_pytree(like)
    units = jax.numpy.eye(flat.size, dtype=flat.dtype)
    return jax.lax.map(lambda e: ravel_pytree(matvec(unravel(e)))[0], units).T
