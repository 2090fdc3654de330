"""The networks that solvers and kernels are measured on."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch, Model
from experiments.benchmark.solvers import KEY, STEP, Case


def cases() -> Iterator[Case]:
    """Yield three networks at initialisation and after training, the loss weighted by class."""
    spiral, digits = data.spiral().train, data.digits().train
    few = Batch(digits.inputs[:200], digits.labels[:200])
    perceptron, deep = models.mlp(3, (100,), "relu", "original", True), (256, 256)
    # activation, data, learning rate, steps
    networks = {
        "spiral 2-100-3": (perceptron, "relu", spiral, 1.0, 2_000),
        "digits 64-256-256-10": (models.mlp(10, deep, "tanh", "original", True), "tanh", digits, 0.1, 200),
        "digits, convolutions": (models.myrtle(10, (16, 32, 32), "relu"), "relu", few, 0.1, 200),
    }
    for name, (model, activation, batch, rate, num_steps) in networks.items():
        batch = Batch(batch.inputs.astype("f4"), batch.labels)
        schedule = schedules.triangular(3 if name.startswith("spiral") else 10, amplitude=10.0, period=5_000)
        loss_fn = losses.make_loss(model.apply, losses.cross_entropy, schedule)
        optimizer = optimizers.make_optimizer("sgd", learning_rate=rate)
        state = train.init_state(model.init(KEY, batch.inputs[:1]), optimizer)
        weights = np.asarray(schedule(STEP), "f4")
        loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
        for stage in ("initial", "trained"):
            after = loop(state, {}, 10)[0]
            yield Case(name, stage, activation, loss_fn, weights, batch, state.params, after.params)
            state = loop(state, {}, num_steps)[0]


class Network(NamedTuple):
    """A network of ours, the same in plain operations (the best case of neural-tangents), and its inputs."""

    model: Model
    plain: Callable[[Any, jax.Array], jax.Array]
    inputs: jax.Array
    target: tuple[str, float] | None  # of our NTK's time over that of neural-tangents


def of_kernels() -> Iterator[tuple[str, Network]]:
    """Yield the spiral network on its 300 points, and one of convolutions on 64 of the digits."""
    spiral, digits = data.spiral().train.inputs, data.digits(num_train=64).train.inputs
    perceptron = models.mlp(3, (100,), "relu", "original", True)
    yield "300 points", Network(perceptron, _perceptron, spiral, ("<=", 0.7))
    yield "64 images 8x8", Network(models.myrtle(10, (16, 16), "relu"), _convolutions, digits, None)


def _perceptron(params, inputs):
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"][None])
    return hidden @ last["kernel"] + last["bias"][None]


def _convolutions(params, inputs):
    def convolve(x, layer):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dimensions)
        return jax.nn.relu(y + layer["bias"][None, None, None])

    hidden = convolve(convolve(inputs, params["Conv_0"]), params["Conv_1"])
    examples, height, width, channels = hidden.shape
    squares = hidden.reshape(examples, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return squares.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
