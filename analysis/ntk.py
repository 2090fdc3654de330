"""The empirical neural tangent kernel and its spectrum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state, jaxpr_as_fun
from jaxtyping import Array, Float

from dlf.models import Dense
from dlf.types import ApplyFn, Params

# With these settings flax's Dense is h W + b and nothing else.
_PLAIN = {
    name: getattr(nn.Dense, name)
    for name in ("dtype", "precision", "promote_dtype", "dot_general", "dot_general_cls")
}


@jax.default_matmul_precision("highest")  # the default of GPU and TPU is too coarse
def empirical_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Float[Array, "examples ..."]
) -> Float[Array, "examples examples"]:
    """Return the empirical NTK, traced over the logits and divided by their number.

        Theta(x, x') = (1/C) sum_c grad_theta f_c(x) . grad_theta f_c(x')

    Symmetric, positive semi-definite up to rounding. If every parameter belongs to a dense layer
    y = h W + b of flax or of ours, called once, gradients are outer products and never formed:

        Theta(x, x') = (1/C) sum_layers (h(x) . h(x') + 1) sum_c delta_c(x) . delta_c(x')
        delta_c = d f_c / d y,   no + 1 without a bias

    Any other network costs its Jacobian, [examples, classes, parameters].

    Source: the default of `empirical_ntk_fn` in neural-tangents, which Ruiz-Garcia et al. 2021
    (arXiv 2102.03793) used; by layers: Novak et al. 2022 (arXiv 2206.08720), structured derivatives.

    >>> x = jnp.asarray([[1.0], [2.0]])
    >>> empirical_ntk(lambda w, x: x @ w, jnp.ones((1, 3)), x).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    layers = _dense_layers(apply_fn, params, inputs)
    if layers is None:
        return _contracted_jacobian(apply_fn, params, inputs)
    return sum(_gram(h) * _gram(delta).sum(0) for h, delta in layers) / len(layers[0][1])


def _gram(rows):
    return rows @ rows.mT


def _contracted_jacobian(apply_fn, params, inputs):
    # Examples last: the Jacobian's rows are then written and contracted along whole vectors.
    jacobian = jax.vmap(jax.jacrev(lambda p, x: apply_fn(p, x[None])[0]), in_axes=(None, 0), out_axes=-1)(
        params, inputs
    )
    leaves = jax.tree.leaves(jacobian)  # [classes, *parameter, examples] each
    columns = jnp.concatenate([leaf.reshape(-1, len(inputs)) for leaf in leaves])
    columns = jax.lax.optimization_barrier(columns)  # stored once, not computed again in the product
    return columns.T @ columns / leaves[0].shape[0]


def _dense_layers(apply_fn, params, inputs):
    """Return each layer's (h [examples, in], delta [classes, examples, out]), None if they are not all.

    h has a last entry of 1 where there is a bias.
    """

    def tapped(taps, params, example):
        return _tap(apply_fn, taps, params, example)

    leaves, example = jax.tree.leaves(params), inputs[:1]
    taps = [jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(tapped, [], params, example)[2]]
    trace, num = jax.make_jaxpr(tapped)(taps, params, example), len(taps)
    parameters, results = trace.jaxpr.invars[num:-1], trace.jaxpr.outvars
    # Given the layers' outputs, parameters must matter neither to the logits nor to any layer's input.
    if not taps or _leads(trace.jaxpr, parameters, results[:-num], around=results[-num:]):
        return None

    def logits_and_inputs(taps, x):
        logits, *rest = jaxpr_as_fun(trace)(*taps, *leaves, x[None])
        return logits[0], [h[0] for h in rest[:num]]

    jacobian = jax.jacrev(logits_and_inputs, has_aux=True)
    deltas, hs = jax.vmap(jacobian, in_axes=(None, 0), out_axes=(1, 0))(taps, inputs)
    return [(h, delta[:, :, 0]) for h, delta in zip(hs, deltas, strict=True)]


def _tap(apply_fn, taps, params, example):
    """Return the logits and the inputs and outputs of the dense layers, to which `taps` are added."""
    hs, outputs, level = [], [], get_opaque_trace_state()
    unclaimed = {id(leaf) for leaf in jax.tree.leaves(params)}

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        # What happens inside a jit or vmap of the network is cached or batched: not ours to change.
        if level != get_opaque_trace_state() or call is not context.orig_method or not _is_dense(context):
            return y
        own = context.module.variables["params"]
        claimed = {id(leaf) for leaf in own.values()}
        if kwargs or set(own) - {"kernel", "bias"} or not claimed <= unclaimed:
            return y
        (h,) = args
        if h.shape[:-1] != (1,) or any(leaf.dtype != h.dtype for leaf in own.values()):
            return y
        unclaimed.difference_update(claimed)
        hs.append(jnp.pad(h, ((0, 0), (0, len(own) - 1)), constant_values=1))
        outputs.append(y + (taps[len(outputs)] if taps else jnp.zeros_like(y)))
        return outputs[-1]

    with nn.intercept_methods(intercept):
        return apply_fn(params, example), hs, outputs


def _is_dense(context):
    """Whether this is a call of a layer y = h W + b; a subclass may compute something else."""
    module = context.module
    plain = all(getattr(module, name, usual) == usual for name, usual in _PLAIN.items())
    return context.method_name == "__call__" and type(module) in (nn.Dense, Dense) and plain


def _leads(jaxpr, sources, targets, around):
    """Whether any of the variables `targets` may depend on `sources` on a way around others."""
    reached, closed = {id(v) for v in sources}, {id(v) for v in around}
    for eqn in jaxpr.eqns:
        if eqn.effects or any(id(v) in reached for v in eqn.invars):
            reached |= {id(v) for v in eqn.outvars} - closed
    return any(id(v) in reached for v in targets)


def spectrum(kernel: Float[Array, "size size"]) -> Float[Array, " size"]:
    """Return the eigenvalues of a symmetric kernel in descending order.

    >>> spectrum(jnp.asarray([[1.0, 2.0], [2.0, 4.0]]))[0].round(4).item()
    5.0
    """
    return jnp.linalg.eigvalsh(kernel)[::-1]
