"""Networks as three functions, in training and in evaluation, from modules or functions of any kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dlf.types import ApplyFn, Inputs, Model, ModelState, Params


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
    weights: str  # the argument of its call that takes them, "" for none

    @property
    def takes_weights(self) -> bool:
        return bool(self.weights)

    def __call__(self, params, model_state, inputs, key, weights=None):
        variables = {"params": params, **dict(model_state)}
        rngs, mutable = {"dropout": key}, [*dict(model_state)]
        given = dict(self.mode) | ({self.weights: weights} if self.weights else {})
        logits, moved = self.module.apply(variables, inputs, rngs=rngs, mutable=mutable, **given)
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
    module: nn.Module,
    *,
    training: Mapping[str, Any] = {},
    evaluation: Mapping[str, Any] = {},
    weights: str = "",
) -> Model:
    """Return the three functions of a flax.linen module whose call gives logits.

    `training` and `evaluation` are the keyword arguments of its call in these modes, such as
    dict(train=True) and dict(train=False). What it holds beside its parameters is the model state; it draws
    from the stream "dropout". `weights` names the argument of its call, if there is one, that takes the class
    weights of the examples in training, [examples]; it is not given in evaluation.

    Raises ValueError, when called, for batch statistics that stay as they are in training, flax's
    ModifyScopeVariableError for an evaluation that would change the state.

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
    return Model(init, _Apply(module, next(modes)), _Train(module, next(modes), weights))


def stateless(init: Callable[[Array, Inputs], Params], apply_fn: ApplyFn) -> Model:
    """Return the three functions of a network that is the same in training: no statistics, nothing drawn.

    `init(key, inputs)` gives the first parameters, `apply_fn(params, inputs)` the logits.

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


def frozen_after(model: Model, num_steps: int) -> Model:
    """Return a network whose state moves in so many training steps, and stays as it is from then on.

    From there training is as evaluation: batch norm takes its running statistics, nothing is dropped. The
    model state is that of the network beside the number of steps.

    >>> modes = dict(use_running_average=False), dict(use_running_average=True)
    >>> model = frozen_after(linen(nn.BatchNorm(), training=modes[0], evaluation=modes[1]), 1)
    >>> params, state = model.init(jax.random.key(0), inputs := jnp.asarray([[1.0], [3.0]]))
    >>> for _ in range(2):
    ...     logits, state = model.train(params, state, inputs, jax.random.key(0))
    >>> [round(float(x), 2) for x in logits[:, 0]], round(float(state[0]["batch_stats"]["mean"][0]), 4)
    ([0.98, 2.98], 0.02)
    """

    def init(key, inputs):
        params, model_state = model.init(key, inputs)
        return params, (model_state, jnp.zeros((), jnp.int32))

    def apply(params, model_state, inputs):
        return model.apply(params, model_state[0], inputs)

    def train(params, model_state, inputs, key):
        state, step = model_state
        moving = partial(model.train, params, state, inputs, key)
        logits, state = jax.lax.cond(
            step < num_steps, moving, lambda: (apply(params, model_state, inputs), state)
        )
        return logits, (state, step + 1)

    return Model(init, apply, train)


@dataclass(frozen=True)
class _Frozen:
    apply: Callable

    def __call__(self, model_state, params, inputs):
        return self.apply(params, model_state, inputs)


def apply_fn(model: Model, model_state: ModelState = ()) -> ApplyFn:
    """Return (params, inputs) -> logits of a network in evaluation mode, its state held fixed.

    The function is a pytree of the state's arrays, equal in structure for equal networks: compiled functions
    that take it as an argument are not compiled again.

    >>> from dlf.models import mlp
    >>> model = mlp(3, (4,), activation="relu", initialization="original", use_bias=True)
    >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    >>> apply_fn(model, model_state)(params, jnp.zeros((5, 2))).shape
    (5, 3)
    """
    return jax.tree_util.Partial(_Frozen(model.apply), model_state)


def prepared(model: Model, mean: Sequence[float], std: Sequence[float], dtype: str) -> Model:
    """Return a network of inputs that are bytes, or one that computes in another precision, or the same one.

        x = (bytes / 255 - mean) / std        for each channel, the last axis

    Nothing of it is kept: bytes stay bytes outside of a step.

    Raises ValueError for a mean without a std, numbers that fit no channels, or a dtype that is none; when
    called, for inputs that are no bytes although there is a mean.

    >>> sums = stateless(lambda key, x: (), lambda params, x: x.sum(axis=(1, 2)))
    >>> model = prepared(sums, mean=(0.5,), std=(0.25,), dtype="")
    >>> model.apply((), (), jnp.asarray([[[0], [255]]], jnp.uint8)).tolist()
    [0.0]
    """
    if len(mean) != len(std) or not all(of > 0 for of in std):
        raise ValueError(f"mean and std must be numbers, one for each channel, got {mean} and {std}")
    if dtype and dtype not in ("bfloat16", "float16"):
        raise ValueError(f"dtype must be bfloat16, float16 or empty, got {dtype!r}")
    if not mean and not dtype:
        return model
    scaled = partial(_scaled, tuple(mean), tuple(std))
    functions = (_Prepared(fn, tuple(mean), tuple(std), dtype) for fn in model[1:])
    return Model(lambda key, inputs: model.init(key, scaled(inputs)), *functions)


@dataclass(frozen=True)
class _Prepared:
    fn: Callable
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str

    @property
    def takes_weights(self) -> bool:
        return getattr(self.fn, "takes_weights", False)

    def __call__(self, params, model_state, inputs, *rest, **weights):
        inputs = _scaled(self.mean, self.std, inputs)
        if self.dtype:
            inputs = inputs.astype(self.dtype)
        return self.fn(params, model_state, inputs, *rest, **weights)


def _scaled(mean, std, inputs):
    if not mean:
        return inputs
    if inputs.dtype != jnp.uint8 or inputs.shape[-1] != len(mean):
        kind = f"{inputs.dtype}{list(inputs.shape)}"
        raise ValueError(f"mean and std are of bytes in {len(mean)} channels, got inputs {kind}")
    values = inputs.astype(float)
    lift = (1,) * (inputs.ndim - 1) + (-1,)
    scale, offset = (
        jnp.asarray(of, values.dtype).reshape(lift)
        for of in ([1 / (255 * s) for s in std], [m / s for m, s in zip(mean, std, strict=True)])
    )
    return values * scale - offset
