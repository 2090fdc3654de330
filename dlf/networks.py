"""The networks as modules of flax.linen: (inputs, train, weights) -> logits.

`weights` [examples] are those of the examples in the loss, which a norm of weighted batches takes.
"""

import itertools
import math
from collections.abc import Container, Sequence

import flax.linen as nn
import jax.numpy as jnp

from dlf.layers import NORMALIZATIONS, Conv, Dense, relu
from dlf.types import Inputs

ACTIVATIONS = {name: getattr(nn, name) for name in ("elu", "gelu", "sigmoid", "silu", "softplus", "tanh")}
ACTIVATIONS["relu"] = relu


class Mlp(nn.Module):
    """See `dlf.models.mlp`."""

    widths: Sequence[int]  # of all layers, the logits included
    activation: str
    use_bias: bool
    normalization: str
    dropout: float

    @nn.compact
    def __call__(self, inputs, train=False, weights=None):
        check_inputs(inputs, range(1, 10))
        hidden = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
        for depth, width in enumerate(self.widths):
            if depth > 0:
                hidden = NORMALIZATIONS[self.normalization](hidden, train, weights)
                hidden = ACTIVATIONS[self.activation](hidden)
                hidden = _drop(self.dropout, hidden, train)
            hidden = Dense(width, self.use_bias, name=f"Dense_{depth}")(hidden)
        return hidden


class Myrtle(nn.Module):
    """See `dlf.models.myrtle`."""

    widths: Sequence[int]  # of all layers, the logits included
    per_pool: Sequence[int]  # convolutions before each pool, () as many as the image has sides for
    activation: str
    normalization: str
    dropout: float
    strided: bool = False

    @nn.compact
    def __call__(self, inputs, train=False, weights=None):
        check_inputs(inputs, (3, 4))
        hidden, ends = inputs, {*itertools.accumulate(self.per_pool)}
        for depth, width in enumerate(self.widths[:-1]):
            hidden = Conv(width, stride=2 if self.strided else 1, name=f"Conv_{depth}")(hidden)
            hidden = NORMALIZATIONS[self.normalization](hidden, train, weights)
            hidden = ACTIVATIONS[self.activation](hidden)
            least = min(hidden.shape[1:-1])
            if self.per_pool and depth + 1 in ends and least < 2:
                raise ValueError(f"too many pools for inputs {list(inputs.shape[1:])}: take fewer layers")
            if depth + 1 in ends if self.per_pool else depth > 0 and least > 2 and not self.strided:
                hidden = _pool(hidden)
        if self.strided:
            hidden = hidden.reshape(len(hidden), math.prod(hidden.shape[1:]))
        else:
            hidden = hidden.mean(axis=range(1, hidden.ndim - 1))
        hidden = _drop(self.dropout, hidden, train)
        return Dense(self.widths[-1], use_bias=True, name="Dense_0")(hidden)


class WideResNet(nn.Module):
    """See `dlf.models.wide_resnet`."""

    num_classes: int
    num_blocks: int  # of a group
    widen_factor: int
    normalization: str
    dropout: float

    @nn.compact
    def __call__(self, inputs, train=False, weights=None):
        check_inputs(inputs, (3, 4))
        norm, use_bias = NORMALIZATIONS[self.normalization], self.normalization == "none"
        hidden = Conv(16, use_bias=use_bias)(inputs)
        for group, width in enumerate((16, 32, 64)):
            for block in range(self.num_blocks):
                stride, features = 2 if group and not block else 1, width * self.widen_factor
                if stride > min(hidden.shape[1:-1]):
                    raise ValueError(f"too few pixels for this network: inputs {list(inputs.shape[1:])}")
                active = relu(norm(hidden, train, weights))
                if hidden.shape[-1] != features or stride > 1:
                    hidden = Conv(features, 1, stride, use_bias=False)(active)
                active = Conv(features, 3, stride, use_bias)(active)
                active = _drop(self.dropout, relu(norm(active, train, weights)), train)
                hidden = hidden + Conv(features, use_bias=use_bias)(active)
        hidden = relu(norm(hidden, train, weights))
        return Dense(self.num_classes, use_bias=True)(hidden.mean(axis=range(1, hidden.ndim - 1)))


def _drop(rate, hidden, train):
    return nn.Dropout(rate, deterministic=not train)(hidden) if rate else hidden


def _pool(hidden):
    """Return means over pairs of points, or squares of 2x2, without an odd last row or column."""
    examples, *sides, features = hidden.shape
    pairs = [n // 2 for n in sides]
    hidden = hidden[:, *(slice(2 * n) for n in pairs)]
    shape = itertools.chain.from_iterable((n, 2) for n in pairs)  # nn.pool has slower derivatives on CPU
    return hidden.reshape(examples, *shape, features).mean(axis=range(2, 2 * len(sides) + 1, 2))


def check_inputs(inputs: Inputs, num_axes: Container[int]) -> None:
    """Raise ValueError for inputs of another number of axes, or that are no real floating numbers."""
    if inputs.ndim not in num_axes:
        shapes = "images [examples, height, width, channels], or signals [examples, points, channels]"
        if 3 not in num_axes:
            shapes = "inputs [examples, in]"
        raise ValueError(f"need {shapes}, got shape {inputs.shape}")
    if not jnp.isdtype(inputs.dtype, "real floating"):
        advice = "give the model the mean and std of each channel"
        if inputs.dtype != jnp.uint8:
            advice = "make them floats"
        raise ValueError(f"inputs are {inputs.dtype}: {advice}")
