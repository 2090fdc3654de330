"""Networks in flax.linen, as pairs of functions (init, apply).

`__all__` is the catalogue that a config names a model from.
"""

import math
from collections.abc import Sequence
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dlf.types import Model

__all__ = ["mlp"]

# The two initialisations that the authors published: (kernel, bias).
_INITIALIZERS = {
    "original": (
        lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / math.sqrt(shape[0]),
        nn.initializers.zeros_init(),
    ),
    "updated": (nn.initializers.glorot_normal(), nn.initializers.normal(0.01)),
}

_ACTIVATIONS = ("elu", "gelu", "relu", "sigmoid", "silu", "softplus", "tanh")  # of flax.linen

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
def _relu(z):
    """Return max(z, 0), stored once, with the derivative (0 at 0) read off the stored value.

    >>> jax.grad(lambda z: _relu(z).sum())(jnp.asarray([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    return lax.optimization_barrier(jnp.where(z <= 0, jnp.zeros_like(z), z))


@_relu.defjvp
def _(primals, tangents):
    h = _relu(*primals)
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


class _Mlp(nn.Module):
    widths: Sequence[int]  # of all layers, the logits included
    activation: str
    use_bias: bool

    @nn.compact
    def __call__(self, inputs):
        hidden = inputs
        for depth, width in enumerate(self.widths):
            if depth > 0:
                hidden = _relu(hidden) if self.activation == "relu" else getattr(nn, self.activation)(hidden)
            hidden = Dense(width, self.use_bias, name=f"Dense_{depth}")(hidden)
        return hidden


def mlp(
    num_classes: int,
    hidden_widths: Sequence[int],
    activation: str,
    initialization: str,
    use_bias: bool,
) -> Model:
    """Build a fully connected network: (inputs [examples, features]) -> logits [examples, classes].

        h_0 = x,   h_{l+1} = activation(h_l W_l + b_l),   logits without activation

    `activation` is the name of one in flax.linen; `initialization` is "original" (W ~ N(0, 1/fan_in), zero
    biases) or "updated" (Glorot-normal W, biases ~ N(0, 0.01^2)). Whether there are biases must
    be said: without them this network does not learn the spiral, which is how the authors' code
    broke when the default of neural-tangents' `stax.Dense` changed in October 2021.

    The draw is the authors' too: keys are split layer by layer as their `stax.serial` did (one
    split for each dense layer and each activation, then one between W and b), under JAX's older
    random bits. So PRNGKey(0) gives their initial parameters to the bit in float64.

    Raises ValueError for an unknown activation or initialization, or an impossible width.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' two notebooks.

    >>> model = mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
    >>> params = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 2)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    603
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: one of {', '.join(_ACTIVATIONS)}")
    if initialization not in _INITIALIZERS:
        raise ValueError(f"unknown initialization {initialization!r}: one of {', '.join(_INITIALIZERS)}")
    widths = (*hidden_widths, num_classes)
    if not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"hidden_widths must be positive integers, got {tuple(hidden_widths)}")
    module = _Mlp(widths, activation, use_bias)
    draw_kernel, draw_bias = _INITIALIZERS[initialization]

    def init(key, inputs):
        params, fan_in, dtype = {}, inputs.shape[1], inputs.dtype
        with jax.threefry_partitionable(False):
            for depth, width in enumerate(widths):
                if depth > 0:
                    key, _ = jax.random.split(key)  # the activation's, unused
                key, layer_key = jax.random.split(key)
                kernel_key, bias_key = jax.random.split(layer_key)
                layer = {"kernel": draw_kernel(kernel_key, (fan_in, width), dtype)}
                if use_bias:
                    layer["bias"] = draw_bias(bias_key, (width,), dtype)
                params[f"Dense_{depth}"] = layer
                fan_in = width
        return params

    return Model(init, lambda params, inputs: module.apply({"params": params}, inputs))
