"""The empirical NTK against neural-tangents, where that is installed."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from analysis import neural_tangents_import
from analysis.ntk import empirical_ntk
from dlf import data, models
from dlf.types import Model
from experiments.benchmark.report import Row
from experiments.benchmark.solvers import KEY


class Network(NamedTuple):
    """A network of ours, the same in plain operations (the best case of neural-tangents), and its inputs."""

    model: Model
    plain: Callable[[Any, jax.Array], jax.Array]
    inputs: jax.Array
    target: tuple[str, float] | None


def networks() -> Iterator[tuple[str, Network]]:
    """Yield the spiral network on its 300 points, and one of convolutions on 64 of the digits."""
    spiral, digits = data.spiral().train.inputs, data.digits(num_train=64).train.inputs
    yield (
        "300 points",
        Network(models.mlp(3, (100,), "relu", "original", True), _perceptron, spiral, ("<=", 0.7)),
    )
    yield "64 images 8x8", Network(models.myrtle(10, (16, 16), "relu"), _convolutions, digits, None)


def ntk_rows(repeats: int) -> Iterator[Row]:
    """Compare the time of the traced NTK with the three ways of neural-tangents, in both precisions."""
    for words, network in networks():
        for dtype in ("float64", "float32"):
            yield from _compare(f"NTK, {words}, {dtype}", network, dtype, repeats)


def _compare(case: str, network: Network, dtype: str, repeats: int) -> Iterator[Row]:
    inputs = network.inputs.astype(dtype)
    params = network.model.init(KEY, inputs)
    runs = {"ours": jax.jit(partial(empirical_ntk, network.model.apply))}
    try:
        library = neural_tangents_import.load()
    except ImportError:
        library = None
    for choice in list(library.NtkImplementation)[1:] if library else ():  # the first leaves it open
        name = f"neural-tangents, {choice.name.replace('_', ' ').lower()}"
        kernel_fn = library.empirical_ntk_fn(network.plain, implementation=choice, vmap_axes=0)
        runs[name] = jax.jit(lambda params, x, kernel_fn=kernel_fn: kernel_fn(x, None, params))
    taken = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(params, inputs))
            taken[name].append(time.perf_counter() - started)
    times = {name: np.asarray(values[1:]) for name, values in taken.items()}
    for name, values in times.items():
        yield Row(case, name, "ms", 1e3 * values)
    ours = times.pop("ours")
    best = min(times.values(), key=np.median, default=None)
    ratio = () if best is None else ours / best
    yield Row(case, "ours : best of neural-tangents", "times", ratio, network.target)


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
