"""The traced NTK against the three ways of neural-tangents, from the same weights."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from analysis import neural_tangents_import
from analysis.ntk import empirical_ntk
from dlf import data, models
from experiments.benchmark.timing import Record, fastest, measure, row, timed


def in_flax(*layers: Callable) -> Callable:
    """Return (params, inputs) -> logits in flax's own layers, the best case of neural-tangents."""
    names = [f"layers_{i}" for i, layer in enumerate(layers) if isinstance(layer, nn.Module)]

    def apply_fn(params, inputs):  # params of ours, layer by layer
        return nn.Sequential(layers).apply({"params": dict(zip(names, params.values(), strict=True))}, inputs)

    return apply_fn


def networks() -> dict[str, tuple]:
    """Return ours, the same in flax's layers, inputs, and the target of our NTK : neural-tangents' best."""
    perceptron, myrtle = models.mlp(3, (100,), "relu", "original", True), models.myrtle(10, (16, 16), "relu")
    conv = partial(nn.Conv, 16, (3, 3))
    pool = partial(jnp.mean, axis=(1, 2))  # one mean over all is that of means over squares of 2x2
    images = in_flax(conv(), nn.relu, conv(), nn.relu, pool, nn.Dense(10))
    points = in_flax(nn.Dense(100), nn.relu, nn.Dense(3))
    return {
        "300 points": (perceptron, points, data.spiral().train.inputs, ("<=", 0.7)),
        "64 images 8x8": (myrtle, images, data.digits(64).train.inputs, None),
    }


def compare_ntk(name: str, dtype: str, repeats: int) -> list[Record]:
    """Compare the time of the traced NTK with the three ways of neural-tangents, where it is installed."""
    model, plain, inputs, target = networks()[name]
    inputs = inputs.astype(dtype)
    params, _ = model.init(jax.random.key(0), inputs)
    runs = {"ours": jax.jit(partial(empirical_ntk, models.apply_fn(model)))}
    try:
        library = neural_tangents_import.load()
    except ImportError:
        library = None
    for choice in list(library.NtkImplementation)[1:] if library else ():  # the first leaves it open
        kernel_fn = library.empirical_ntk_fn(plain, implementation=choice, vmap_axes=0)
        words = f"neural-tangents, {choice.name.replace('_', ' ').lower()}"
        runs[words] = jax.jit(lambda params, x, kernel_fn=kernel_fn: kernel_fn(x, None, params))
    taken = measure({words: timed(partial(run, params, inputs)) for words, run in runs.items()}, repeats)
    found, ours = [(words, "ms", 1e3 * values) for words, values in taken.items()], taken.pop("ours")
    found.append(("ours : best of neural-tangents", "times", ours / fastest(taken.values()), target))
    return [row(f"NTK, {name}, {dtype}", *of) for of in found]
