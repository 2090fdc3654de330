"""Layers in flax.linen that are fast on CPU, too: products with a thin axis, convolutions inside a loop."""

import math
import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# XLA's CPU code is slow for products with an axis this short unless they are written its way, and
# folds a transpose into the product unless a barrier keeps it.
_THIN = 4


def _contract(a, b, axis):
    """Sum over `axis` of both matrices, of which the thin one is stored with its long axis last."""
    return lax.dot_general(lax.optimization_barrier(a), b, (((axis,), (axis,)), ((), ())))


@jax.custom_jvp
def _matmul(x, w):
    """Return x @ w for x [examples, in] and w [in, out], fast also where in or out is thin.

    >>> _matmul(jnp.ones((2, 3)), jnp.ones((3, 2))).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    if x.shape[1] <= _THIN:  # multiply-adds, which fuse with the activation
        return reduce(jnp.add, [x[:, i : i + 1] * w[i : i + 1] for i in range(x.shape[1])])
    if w.shape[1] < _THIN:  # whole vectors of four columns
        return (x @ jnp.pad(w, ((0, 0), (0, _THIN - w.shape[1]))))[:, : w.shape[1]]
    return x @ w


@_matmul.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    if w.shape[1] <= _THIN:
        # One product a class: its transpose, sum_c d_c w_c, fuses with the mask of the activation.
        columns = lax.optimization_barrier(w.T)
        from_x = jnp.stack([dx @ column for column in columns], axis=1)
        from_w = lax.optimization_barrier(_contract(dw.T, x, 1)).T
    else:
        from_x = dx @ w
        from_w = _contract(x.T, dw, 0) if x.shape[1] <= _THIN else x @ dw
    return _matmul(x, w), from_x + from_w


@jax.custom_jvp
def relu(z):
    """Return max(z, 0), stored once, with the derivative (0 at 0) read off the stored value.

    >>> jax.grad(lambda z: relu(z).sum())(jnp.asarray([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    return lax.optimization_barrier(jnp.where(z <= 0, jnp.zeros_like(z), z))


@relu.defjvp
def _(primals, tangents):
    h = relu(*primals)
    return h, jnp.where(h > 0, tangents[0], jnp.zeros_like(h))


class Dense(nn.Module):
    """flax's Dense with products that are fast for few inputs or few outputs, too."""

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        shape, dtype = (x.shape[1], self.features), x.dtype
        w = self.param("kernel", nn.initializers.lecun_normal(), shape, dtype)
        if not self.use_bias:
            return _matmul(x, w)
        b = self.param("bias", nn.initializers.zeros_init(), shape[1:], dtype)
        if x.shape[1] < _THIN:  # the bias as the weight of a constant input: one gradient product
            x = jnp.concatenate([x, jnp.ones_like(x, shape=(x.shape[0], 1))], axis=1)
            return _matmul(x, jnp.concatenate([w, b[None]]))
        return _matmul(x, w) + b[None]


def _convolve(x, kernel):
    """Convolve x [examples, height, width, in] with kernel [3, 3, in, out] and zeros around the image.

    >>> _convolve(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # On CPU, XLA runs the derivatives of lax.conv 20 to 50 times slower inside a loop (jax issue 12868).
    (examples, height, width, channels), features = x.shape, kernel.shape[3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    # A product of two plain matrices: with more axes the derivatives are slower.
    patches = jnp.concatenate(shifted, axis=3).reshape(examples * height * width, 9 * channels)
    return (patches @ kernel.reshape(9 * channels, features)).reshape(examples, height, width, features)


class Conv(nn.Module):
    """flax's Conv, 3x3 with zero padding, He-normal, as fast inside a loop as outside on CPU, too."""

    features: int

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, x.shape[3], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[3:], x.dtype)
        return _convolve(x, kernel) + bias[None, None, None]


def _batch_norm(x, train):
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, param_dtype=x.dtype, force_float32_reductions=False
    )(x)


def _group_norm(x, train):
    num_groups = math.gcd(x.shape[-1], 8)
    return nn.GroupNorm(num_groups, param_dtype=x.dtype, force_float32_reductions=False)(x)


def _layer_norm(x, train):
    return nn.LayerNorm(param_dtype=x.dtype, force_float32_reductions=False)(x)


# What a network may have between a layer and its activation, as functions (x, train) -> x inside a module, by
# features, the last axis. Batch norm: statistics of the batch in training, their running means in evaluation
# (momentum 0.9). Group norm: up to 8 groups.
NORMALIZATIONS = {
    "none": lambda x, train: x,
    "batch": _batch_norm,
    "group": _group_norm,
    "layer": _layer_norm,
}


def warn_of_convolutions(fn: Callable[..., Any], *args: Any) -> None:
    """Warn if fn(*args) holds a `lax.conv` and the platform is the CPU, where a loop slows it down.

    Arguments may be shapes (`jax.ShapeDtypeStruct`): the function is traced, never run.

    >>> warn_of_convolutions(Conv(2).init, jax.random.key(0), jnp.zeros((1, 3, 3, 1)))  # silent
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and lax.conv_general_dilated_p in _primitives(jax.make_jaxpr(fn)(*args)):
        slow = "XLA on CPU runs lax.conv 20 to 50 times slower inside a loop (jax issue 12868)"
        warnings.warn(f"{slow}: build the network of dlf.layers.Conv", stacklevel=2)


def _primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive
        for inner in jax.tree.leaves(eqn.params):
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)
