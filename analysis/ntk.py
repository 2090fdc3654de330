"""The empirical neural tangent kernel and its spectrum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlf.types import ApplyFn, Params


def empirical_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Float[Array, "examples ..."]
) -> Float[Array, "examples examples"]:
    """Return the empirical NTK, traced over the logits and divided by their number.

        Theta(x, x') = (1/C) sum_c grad_theta f_c(x) . grad_theta f_c(x')

    Symmetric, positive semi-definite up to rounding. Memory: one Jacobian, [examples, classes,
    parameters].

    Source: the default of `empirical_ntk_fn` in neural-tangents, which Ruiz-Garcia et al. 2021
    (arXiv 2102.03793) used.

    >>> x = jnp.asarray([[1.0], [2.0]])
    >>> empirical_ntk(lambda w, x: x @ w, jnp.ones((1, 3)), x).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    # Examples last: the Jacobian's rows are then written and contracted along whole vectors.
    jacobian = jax.vmap(jax.jacrev(lambda p, x: apply_fn(p, x[None])[0]), in_axes=(None, 0), out_axes=-1)(
        params, inputs
    )
    leaves = jax.tree.leaves(jacobian)  # [classes, *parameter, examples] each
    columns = jnp.concatenate([leaf.reshape(-1, len(inputs)) for leaf in leaves])
    columns = jax.lax.optimization_barrier(columns)  # stored once, not computed again in the product
    return columns.T @ columns / leaves[0].shape[0]


def spectrum(kernel: Float[Array, "size size"]) -> Float[Array, " size"]:
    """Return the eigenvalues of a symmetric positive semi-definite kernel in descending order.

    They are its singular values, which cost half of `eigvalsh`: that one computes the vectors too.

    >>> spectrum(jnp.asarray([[1.0, 2.0], [2.0, 4.0]]))[0].round(4).item()
    5.0
    """
    return jnp.linalg.svd(kernel, compute_uv=False)
