"""Layers in flax.linen that are fast on CPU, too: products with a thin axis, convolutions inside a loop."""

import math
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dlf.convolutions import convolve
from dlf.labels import wide

# XLA's CPU code is slow for products with an axis this short unless they are written its way, and
# folds a transpose into the product unless a barrier keeps it.
_THIN = 4
_MOMENTUM, _EPSILON = 0.9, 1e-5  # of batch norm


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
    """flax's Dense, in the inputs' precision, with products that are fast for few inputs or outputs, too."""

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        shape, dtype = (x.shape[1], self.features), x.dtype
        w = self.param("kernel", nn.initializers.lecun_normal(), shape, dtype).astype(dtype)
        if not self.use_bias:
            return _matmul(x, w)
        b = self.param("bias", nn.initializers.zeros_init(), shape[1:], dtype).astype(dtype)
        if x.shape[1] < _THIN:  # the bias as the weight of a constant input: one gradient product
            x = jnp.concatenate([x, jnp.ones_like(x, shape=(x.shape[0], 1))], axis=1)
            return _matmul(x, jnp.concatenate([w, b[None]]))
        return _matmul(x, w) + b[None]


class Conv(nn.Module):
    """flax's Conv on one or two axes, zero padding, He-normal, as fast inside a loop as outside on CPU."""

    features: int
    taps: int = 3  # a side of the kernel
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        num_sides, dtype = x.ndim - 2, x.dtype
        shape = (*(self.taps,) * num_sides, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, dtype).astype(dtype)
        y = convolve(x, kernel, self.stride)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:], dtype).astype(dtype)
        return y + bias.reshape(*(1,) * (num_sides + 1), -1)


class WeightedBatchNorm(nn.Module):
    """flax's BatchNorm with the statistics of a weighted batch, as the loss weighs its examples.

        m = sum_j w_j h_j / sum_j w_j,    v = sum_j w_j (h_j - m)^2 / sum_j w_j

    Weights [examples], None for equal ones; of an example all places count alike.

    Source: Yasuda 2020 (arXiv 2001.01433), its abstract; momentum and the rest as in `NORMALIZATIONS`.
    """

    @nn.compact
    def __call__(self, x, train, weights=None):
        shape, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        lift = (None,) * (x.ndim - 1)
        scale = self.param("scale", nn.initializers.ones_init(), shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, x.dtype)
        running = [
            self.variable("batch_stats", name, begin, shape, x.dtype)
            for name, begin in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        mean, var = (of.value for of in running)
        if train:
            shares = jnp.ones(len(x), x.dtype) if weights is None else weights.astype(x.dtype)
            shares = (shares / shares.sum())[:, *lift] / math.prod(x.shape[1:-1])
            mean = (shares * x).sum(axes)
            var = (shares * (x - mean[lift]) ** 2).sum(axes)
            for of, found in zip(running, (mean, var), strict=True):
                of.value = _MOMENTUM * of.value + (1 - _MOMENTUM) * found
        return (x - mean[lift]) * (lax.rsqrt(var + _EPSILON) * scale)[lift] + bias[lift]


def _batch_norm(x, train, weights):
    return nn.BatchNorm(
        use_running_average=not train, momentum=_MOMENTUM, param_dtype=x.dtype, force_float32_reductions=False
    )(x)


def _weighted_batch_norm(x, train, weights):
    return WeightedBatchNorm()(x, train, weights)


def _group_norm(x, train, weights):
    num_groups = math.gcd(x.shape[-1], 8)
    return nn.GroupNorm(num_groups, param_dtype=x.dtype, force_float32_reductions=False)(x)


def _layer_norm(x, train, weights):
    return nn.LayerNorm(param_dtype=x.dtype, force_float32_reductions=False)(x)


def _in_full(norm):
    """Return a norm that is computed in at least 32 bits."""
    return lambda x, train, weights: norm(wide(x), train, weights).astype(x.dtype)


# What a network may have between a layer and its activation, as functions (x, train, weights of the examples
# in the loss) -> x inside a module, by features, the last axis. Batch norm: statistics of the batch in
# training, their running means in evaluation (momentum 0.9). Group norm: gcd(features, 8) groups.
NORMALIZATIONS = {
    "none": lambda x, train, weights: x,
    "batch": _in_full(_batch_norm),
    "weighted_batch": _in_full(_weighted_batch_norm),
    "group": _in_full(_group_norm),
    "layer": _in_full(_layer_norm),
}
