"""Networks in flax.linen, as pairs of functions (init, apply).

`__all__` is the catalogue that a config names a model from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax

from dlf.layers import Conv, Dense, relu
from dlf.types import ApplyFn, Model

__all__ = ["mlp", "myrtle"]

# The two initialisations that the authors published: (kernel, bias).
_INITIALIZERS = {
    "original": (
        lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / math.sqrt(shape[0]),
        nn.initializers.zeros_init(),
    ),
    "updated": (nn.initializers.glorot_normal(), nn.initializers.normal(0.01)),
}

_ACTIVATIONS = {name: getattr(nn, name) for name in ("elu", "gelu", "sigmoid", "silu", "softplus", "tanh")}
_ACTIVATIONS["relu"] = relu


class _Mlp(nn.Module):
    widths: Sequence[int]  # of all layers, the logits included
    activation: str
    use_bias: bool

    @nn.compact
    def __call__(self, inputs):
        hidden = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
        for depth, width in enumerate(self.widths):
            if depth > 0:
                hidden = _ACTIVATIONS[self.activation](hidden)
            hidden = Dense(width, self.use_bias, name=f"Dense_{depth}")(hidden)
        return hidden


class _Myrtle(nn.Module):
    widths: Sequence[int]  # of all layers, the logits included
    activation: str

    @nn.compact
    def __call__(self, inputs):
        if inputs.ndim != 4:
            raise ValueError(f"need images [examples, height, width, channels], got shape {inputs.shape}")
        hidden = inputs
        for depth, width in enumerate(self.widths[:-1]):
            hidden = _ACTIVATIONS[self.activation](Conv(width, name=f"Conv_{depth}")(hidden))
            if depth > 0 and min(hidden.shape[1:3]) > 2:
                hidden = nn.pool(hidden, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4
        return Dense(self.widths[-1], use_bias=True, name="Dense_0")(hidden.mean(axis=(1, 2)))


def _check(activation, widths):
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: one of {', '.join(sorted(_ACTIVATIONS))}")
    if not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"widths and num_classes must be positive integers, got {widths}")


def mlp(
    num_classes: int, hidden_widths: Sequence[int], activation: str, initialization: str, use_bias: bool
) -> Model:
    """Build a fully connected network: (inputs [examples, ...]) -> logits [examples, classes].

        h_0 = x, flattened,   h_{l+1} = activation(h_l W_l + b_l),   logits without activation

    `activation` is one of flax.linen; `initialization` is "original" (W ~ N(0, 1/fan_in), zero
    biases) or "updated" (Glorot-normal W, biases ~ N(0, 0.01^2)). Whether there are biases must
    be said: without them this network does not learn the spiral.

    The draw is the authors' too: keys are split layer by layer as their `stax.serial` did (one
    split for each dense layer and each activation, then one between W and b), under JAX's older
    random bits. So PRNGKey(0) gives their initial parameters to the bit in float64.

    Raises ValueError for an unknown activation or initialization, or an impossible width.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' two notebooks.

    >>> import jax.numpy as jnp
    >>> model = mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
    >>> params = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 2)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    603
    """
    widths = (*hidden_widths, num_classes)
    _check(activation, widths)
    if initialization not in _INITIALIZERS:
        raise ValueError(f"unknown initialization {initialization!r}: one of {', '.join(_INITIALIZERS)}")
    module = _Mlp(widths, activation, use_bias)
    draw_kernel, draw_bias = _INITIALIZERS[initialization]

    def init(key, inputs):
        params, fan_in, dtype = {}, math.prod(inputs.shape[1:]), inputs.dtype
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

    return Model(init, frozen(module, {}))


def myrtle(num_classes: int, widths: Sequence[int], activation: str) -> Model:
    """Build a convolutional network: (images [examples, height, width, channels]) -> logits.

        h_{l+1} = pool(activation(conv(h_l))),   logits = W mean_{pixels} h_L + b

    One 3x3 convolution with zero padding and biases for each of `widths`, its number of channels.
    From the second on, while both sides are longer than 2, `pool` averages squares of 2x2 pixels
    (without an odd last row or column). So four widths make Myrtle5 of 32x32 images, and two to
    four suit 8x8 ones. No normalisation. Kernels are He-normal (variance 2/fan_in), W has variance
    1/fan_in, both from normals cut at two standard deviations; biases start at zero.

    Raises ValueError for an unknown activation, an impossible width, or inputs that are no images.

    Source: Shankar et al. 2020 (arXiv 2003.02237), Myrtle5; initialisation and other sizes are ours.

    >>> import jax.numpy as jnp
    >>> model = myrtle(10, (4, 8), activation="relu")
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> sum(p.size for p in jax.tree.leaves(params)), model.apply(params, jnp.zeros((5, 8, 8, 1))).shape
    (426, (5, 10))
    """
    widths = (*widths, num_classes)
    _check(activation, widths)
    module = _Myrtle(widths, activation)
    init = jax.jit(lambda key, inputs: module.init(key, inputs)["params"])  # compiled, it skips the logits
    return Model(init, frozen(module, {}))


class _Frozen(NamedTuple):
    module: nn.Module
    mode: tuple[tuple[str, Any], ...]

    def __call__(self, model_state, rngs, params, inputs):
        return self.module.apply({"params": params, **model_state}, inputs, rngs=rngs, **dict(self.mode))


def frozen(module: nn.Module, model_state: Mapping, rngs: Mapping = {}, **mode: Any) -> ApplyFn:
    """Return (params, inputs) -> logits of a flax.linen module with all else held fixed.

    `model_state` holds the variables beside the parameters, such as {"batch_stats": ...}; `mode`
    are keyword arguments of the module's call, such as train=False; `rngs` fix dropout masks. The
    function is a pytree of the arrays of both, equal in structure for equal modules and modes:
    compiled functions that take it as an argument are not compiled again.

    Raises flax's ModifyScopeVariableError, when called, in a mode that would change `model_state`.

    >>> import jax.numpy as jnp
    >>> module, inputs = nn.BatchNorm(), jnp.asarray([[1.0], [3.0]])
    >>> variables = module.init(jax.random.key(0), inputs, use_running_average=True)
    >>> params = variables.pop("params")
    >>> frozen(module, variables, use_running_average=True)(params, inputs).round(2).tolist()
    [[1.0], [3.0]]
    """
    return jax.tree_util.Partial(_Frozen(module, tuple(sorted(mode.items()))), dict(model_state), dict(rngs))
