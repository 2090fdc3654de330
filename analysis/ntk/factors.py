"""The Jacobian of a network's logits as the kernels need it: by dense layers, or as it is."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state, jaxpr_as_fun

from analysis.parts import checked_logits
from dlf.layers import Dense
from dlf.types import ApplyFn, Inputs, Params

# With these settings flax's Dense is h W + b and nothing else.
_PLAIN = {
    name: getattr(nn.Dense, name)
    for name in ("dtype", "precision", "promote_dtype", "dot_general", "dot_general_cls")
}


def jacobian_factors(apply_fn: ApplyFn, params: Params, inputs: Inputs) -> Callable:
    """Return the function from examples, as `inputs`, and roots of weights to factors of the Jacobian.

        W^{1/2} grad f_c(x) = (h(x) delta_c(x)^T, one such outer product for each factor)

    The function takes inputs [size, ...] and roots as in `rooted_logits`, [size] or [size, classes] or
    None, and returns pairs h [size, in], delta [classes, size, out]: one of each dense layer if these
    hold all parameters, where h has a last entry of 1 for the bias; else the Jacobian with h = 1.

    >>> factors = jacobian_factors(lambda w, x: x @ w, jnp.ones((1, 1)), jnp.asarray([[3.0]]))
    >>> [(h.tolist(), delta.tolist()) for h, delta in factors(jnp.asarray([[3.0], [4.0]]), None)]
    [([[1.0], [1.0]], [[[3.0], [4.0]]])]
    """
    return _dense_layers(apply_fn, params, inputs) or partial(_jacobian, apply_fn, params)


def rooted_logits(apply_fn, params, example, root):
    """Return the logits [outputs] of one example alone, times the root of its weight or weights if any."""
    logits = checked_logits(apply_fn, params, example[None]).reshape(-1)
    return logits if root is None else root * logits


def _jacobian(apply_fn, params, inputs, roots):
    # Examples last: the Jacobian's rows are then written and contracted along whole vectors.
    jacobian = jax.vmap(jax.jacrev(partial(rooted_logits, apply_fn)), in_axes=(None, 0, 0), out_axes=-1)
    leaves = jax.tree.leaves(jacobian(params, inputs, roots))  # [classes, *parameter, examples] each
    columns = jnp.concatenate([leaf.reshape(len(leaf), -1, len(inputs)) for leaf in leaves], axis=1)
    columns = jax.lax.optimization_barrier(columns)  # stored once, not computed again in the product
    return [(jnp.ones_like(columns, shape=(len(inputs), 1)), columns.mT)]


def _dense_layers(apply_fn, params, inputs):
    """Return the function to (h, delta) of each dense layer, None if they do not hold all parameters."""

    def tapped(taps, params, example):
        return _tap(apply_fn, taps, params, example)

    leaves, example = jax.tree.leaves(params), inputs[:1]
    taps = [jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(tapped, [], params, example)[2]]
    trace, num = jax.make_jaxpr(tapped)(taps, params, example), len(taps)
    parameters, results = trace.jaxpr.invars[num:-1], trace.jaxpr.outvars
    # Given the layers' outputs, parameters must matter neither to the logits nor to any layer's input.
    if not taps or _leads(trace.jaxpr, parameters, results[:-num], around=results[-num:]):
        return None

    def logits_and_inputs(taps, x, root):
        hs = []

        def apply(params, example):
            logits, *rest = jaxpr_as_fun(trace)(*taps, *leaves, example)
            hs.extend(h[0] for h in rest[:num])
            return logits

        return rooted_logits(apply, params, x, root), hs

    def factors(inputs, roots):
        jacobian = jax.jacrev(logits_and_inputs, has_aux=True)
        deltas, hs = jax.vmap(jacobian, in_axes=(None, 0, 0), out_axes=(1, 0))(taps, inputs, roots)
        return [(h, delta[:, :, 0]) for h, delta in zip(hs, deltas, strict=True)]

    return factors


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
