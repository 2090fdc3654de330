"""Networks in flax.linen, each as three functions: init, apply in evaluation, train.

`__all__` is the catalogue that a config names a model from.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array, lax

from dlf.layers import NORMALIZATIONS, Conv, Dense, relu
from dlf.types import ApplyFn, Inputs, Model, ModelState, Params

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
    normalization: str
    dropout: float

    @nn.compact
    def __call__(self, inputs, train=False):
        hidden = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
        for depth, width in enumerate(self.widths):
            if depth > 0:
                hidden = NORMALIZATIONS[self.normalization](hidden, train)
                hidden = _ACTIVATIONS[self.activation](hidden)
                hidden = _drop(self.dropout, hidden, train)
            hidden = Dense(width, self.use_bias, name=f"Dense_{depth}")(hidden)
        return hidden


class _Myrtle(nn.Module):
    widths: Sequence[int]  # of all layers, the logits included
    activation: str
    normalization: str
    dropout: float

    @nn.compact
    def __call__(self, inputs, train=False):
        if inputs.ndim != 4:
            raise ValueError(f"need images [examples, height, width, channels], got shape {inputs.shape}")
        hidden = inputs
        for depth, width in enumerate(self.widths[:-1]):
            hidden = NORMALIZATIONS[self.normalization](Conv(width, name=f"Conv_{depth}")(hidden), train)
            hidden = _ACTIVATIONS[self.activation](hidden)
            if depth > 0 and min(hidden.shape[1:3]) > 2:
                hidden = nn.pool(hidden, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4
        hidden = _drop(self.dropout, hidden.mean(axis=(1, 2)), train)
        return Dense(self.widths[-1], use_bias=True, name="Dense_0")(hidden)


def _drop(rate, hidden, train):
    return nn.Dropout(rate, deterministic=not train)(hidden) if rate else hidden


def _check(activation, normalization, dropout, widths):
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: one of {', '.join(sorted(_ACTIVATIONS))}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization!r}: one of {', '.join(NORMALIZATIONS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, the share that is dropped, got {dropout}")
    if not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"widths and num_classes must be positive integers, got {widths}")


def mlp(
    num_classes: int,
    hidden_widths: Sequence[int],
    activation: str,
    initialization: str,
    use_bias: bool,
    normalization: str = "none",
    dropout: float = 0.0,
) -> Model:
    """Build a fully connected network: (inputs [examples, ...]) -> logits [examples, classes].

        h_0 = x, flattened,   h_{l+1} = drop(activation(norm(h_l W_l + b_l))),   logits h_L W_L + b_L

    `activation` is one of flax.linen; `initialization` is "original" (W ~ N(0, 1/fan_in), zero
    biases) or "updated" (Glorot-normal W, biases ~ N(0, 0.01^2)). Whether there are biases must
    be said: without them this network does not learn the spiral. `normalization` is one of
    `dlf.layers.NORMALIZATIONS`; `dropout` the share of hidden values that is set to zero in training.

    The draw is the authors' too: keys are split layer by layer as their `stax.serial` did (one
    split for each dense layer and each activation, then one between W and b), under JAX's older
    random bits. So PRNGKey(0) gives their initial parameters to the bit in float64.

    Raises ValueError for an unknown activation, initialization or normalization, or an impossible width
    or dropout.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' two notebooks.

    >>> import jax.numpy as jnp
    >>> model = mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
    >>> params, _ = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 2)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    603
    """
    widths = (*hidden_widths, num_classes)
    _check(activation, normalization, dropout, widths)
    if initialization not in _INITIALIZERS:
        raise ValueError(f"unknown initialization {initialization!r}: one of {', '.join(_INITIALIZERS)}")
    model = _model(_Mlp(widths, activation, use_bias, normalization, dropout))
    draw_kernel, draw_bias = _INITIALIZERS[initialization]

    def init(key, inputs):
        params, model_state = model.init(key, inputs) if normalization != "none" else ({}, ())
        fan_in, dtype = math.prod(inputs.shape[1:]), inputs.dtype
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
        return params, model_state

    return model._replace(init=init)


def myrtle(
    num_classes: int,
    widths: Sequence[int],
    activation: str,
    normalization: str = "none",
    dropout: float = 0.0,
) -> Model:
    """Build a convolutional network: (images [examples, height, width, channels]) -> logits.

        h_{l+1} = pool(activation(norm(conv(h_l)))),   logits = W drop(mean_{pixels} h_L) + b

    One 3x3 convolution with zero padding and biases for each of `widths`, its number of channels.
    From the second on, while both sides are longer than 2, `pool` averages squares of 2x2 pixels
    (without an odd last row or column). So four widths make Myrtle5 of 32x32 images, and two to
    four suit 8x8 ones. `normalization` and `dropout` as in `mlp`. Kernels are He-normal (variance
    2/fan_in), W has variance 1/fan_in, both from normals cut at two standard deviations; biases start at
    zero.

    Raises ValueError as `mlp` does, and for inputs that are no images.

    Source: Shankar et al. 2020 (arXiv 2003.02237), Myrtle5; initialisation and other sizes are ours.

    >>> import jax.numpy as jnp
    >>> model = myrtle(10, (4, 8), activation="relu")
    >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> logits = model.apply(params, model_state, jnp.zeros((5, 8, 8, 1)))
    >>> sum(p.size for p in jax.tree.leaves(params)), logits.shape
    (426, (5, 10))
    """
    widths = (*widths, num_classes)
    _check(activation, normalization, dropout, widths)
    model = _model(_Myrtle(widths, activation, normalization, dropout))
    return model._replace(init=jax.jit(model.init))  # compiled, it skips the logits


def _model(module: nn.Module) -> Model:
    return linen(module, training={"train": True}, evaluation={"train": False})


@dataclass(frozen=True)
class _Apply:
    """The network in evaluation, equal for equal modules and modes."""

    module: nn.Module
    mode: tuple[tuple[str, Any], ...]

    def __call__(self, params, model_state, inputs):
        return self.module.apply({"params": params, **dict(model_state)}, inputs, **dict(self.mode))


@dataclass(frozen=True)
class _Train:
    """The network in training: all of its state may move, masks come from the key."""

    module: nn.Module
    mode: tuple[tuple[str, Any], ...]

    def __call__(self, params, model_state, inputs, key):
        variables = {"params": params, **dict(model_state)}
        rngs, mutable = {"dropout": key}, [*dict(model_state)]
        logits, moved = self.module.apply(variables, inputs, rngs=rngs, mutable=mutable, **dict(self.mode))
        statistics = [*map(jax.tree.leaves, (variables.get("batch_stats"), moved.get("batch_stats")))]
        if statistics[0] and all(x is of for x, of in zip(*statistics, strict=True)):
            raise ValueError(
                "the batch statistics do not move in training: say by training=dict(...) and "
                "evaluation=dict(...) how its call is told the mode, such as train=True and train=False"
            )
        # flax begins statistics in float32, and goes on in the precision of the inputs
        state = {
            name: jax.tree.map(lambda x, of: of.astype(x.dtype), variables[name], moved[name])
            for name in moved
        }
        return logits, state or ()


def linen(
    module: nn.Module, *, training: Mapping[str, Any] = {}, evaluation: Mapping[str, Any] = {}
) -> Model:
    """Return the three functions of a flax.linen module whose call gives logits.

    `training` and `evaluation` are the keyword arguments of its call in these modes, such as
    dict(train=True) and dict(train=False). What it holds beside its parameters is the model state; it draws
    from the stream "dropout".

    Raises ValueError, when called, for batch statistics that stay as they are in training, flax's
    ModifyScopeVariableError for an evaluation that would change the state.

    >>> import jax.numpy as jnp
    >>> modes = dict(use_running_average=False), dict(use_running_average=True)
    >>> model = linen(nn.BatchNorm(), training=modes[0], evaluation=modes[1])
    >>> params, state = model.init(jax.random.key(0), inputs := jnp.asarray([[1.0], [3.0]]))
    >>> model.apply(params, state, inputs).round(2).tolist()
    [[1.0], [3.0]]
    >>> logits, state = model.train(params, state, inputs, jax.random.key(0))
    >>> logits.round(2).tolist(), round(float(state["batch_stats"]["mean"][0]), 4)
    ([[-1.0], [1.0]], 0.02)
    """

    def init(key, inputs):
        variables = dict(module.init(key, inputs, **evaluation))
        return variables.pop("params", {}), variables or ()

    modes = (tuple(sorted(mode.items())) for mode in (evaluation, training))
    return Model(init, _Apply(module, next(modes)), _Train(module, next(modes)))


def stateless(init: Callable[[Array, Inputs], Params], apply_fn: ApplyFn) -> Model:
    """Return the three functions of a network that is the same in training: no statistics, nothing drawn.

    `init(key, inputs)` gives the first parameters, `apply_fn(params, inputs)` the logits.

    >>> import jax.numpy as jnp
    >>> model = stateless(lambda key, inputs: jnp.eye(2), lambda params, inputs: inputs @ params)
    >>> logits, model_state = model.train(jnp.eye(2), (), jnp.ones((1, 2)), jax.random.key(0))
    >>> logits.tolist(), model_state
    ([[1.0, 1.0]], ())
    """
    return Model(
        lambda key, inputs: (init(key, inputs), ()),
        lambda params, model_state, inputs: apply_fn(params, inputs),
        lambda params, model_state, inputs, key: (apply_fn(params, inputs), model_state),
    )


@dataclass(frozen=True)
class _Frozen:
    apply: Callable

    def __call__(self, model_state, params, inputs):
        return self.apply(params, model_state, inputs)


def apply_fn(model: Model, model_state: ModelState = ()) -> ApplyFn:
    """Return (params, inputs) -> logits of a network in evaluation mode, its state held fixed.

    The function is a pytree of the state's arrays, equal in structure for equal networks: compiled functions
    that take it as an argument are not compiled again.

    >>> import jax.numpy as jnp
    >>> model = mlp(3, (4,), activation="relu", initialization="original", use_bias=True)
    >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    >>> apply_fn(model, model_state)(params, jnp.zeros((5, 2))).shape
    (5, 3)
    """
    return jax.tree_util.Partial(_Frozen(model.apply), model_state)
