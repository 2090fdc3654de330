"""Networks in flax.linen, as pairs of functions (init, apply).

`__all__` is the catalogue that a config names a model from.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

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


class _Mlp(nn.Module):
    widths: Sequence[int]  # of all layers, the logits included
    activation: str
    use_bias: bool

    @nn.compact
    def __call__(self, inputs):
        hidden = inputs
        for depth, width in enumerate(self.widths):
            if depth > 0:
                hidden = getattr(nn, self.activation)(hidden)
            hidden = nn.Dense(width, use_bias=self.use_bias, param_dtype=inputs.dtype)(hidden)
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

    `activation` is a name of flax.linen; `initialization` is "original" (W ~ N(0, 1/fan_in), zero
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
    if not callable(getattr(nn, activation, None)):
        raise ValueError(f"unknown activation {activation!r}: name a function of flax.linen")
    if initialization not in _INITIALIZERS:
        raise ValueError(f"unknown initialization {initialization!r}: one of {list(_INITIALIZERS)}")
    widths = (*hidden_widths, num_classes)
    if not all(isinstance(width, int) and width > 0 for width in widths):
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
