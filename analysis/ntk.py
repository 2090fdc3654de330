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
    jacobian = jax.vmap(jax.jacrev(lambda p, x: apply_fn(p, x[None])[0]), in_axes=(None, 0))
    rows = [leaf.reshape(len(inputs), -1) for leaf in jax.tree.leaves(jacobian(params, inputs))]
    num_classes = jax.eval_shape(apply_fn, params, inputs).shape[1]
    return sum(leaf @ leaf.T for leaf in rows) / num_classes


def spectrum(kernel: Float[Array, "size size"]) -> Float[Array, " size"]:
    """Return the eigenvalues of a symmetric kernel in descending order.

    >>> spectrum(jnp.asarray([[1.0, 2.0], [2.0, 4.0]]))[0].round(4).item()
    5.0
    """
    return jnp.linalg.eigvalsh(kernel)[::-1]
