"""The empirical NTK against neural-tangents, where that is installed."""

import time
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from analysis import neural_tangents_import
from analysis.ntk import empirical_ntk
from dlf import data, models
from experiments.benchmark.report import Row
from experiments.benchmark.solvers import KEY


def ntk_rows(repeats: int) -> Iterator[Row]:
    """Compare the NTK of the spiral network on 300 points with the three of neural-tangents."""
    batch = data.spiral().train
    model = models.mlp(3, (100,), "relu", "original", True)
    for dtype in ("float64", "float32"):
        inputs = batch.inputs.astype(dtype)
        params = model.init(KEY, inputs)
        runs = {"ours": jax.jit(partial(empirical_ntk, model.apply))}
        try:
            library = neural_tangents_import.load()
        except ImportError:
            library = None
        for index in (1, 2, 3) if library else ():
            kernel_fn = library.empirical_ntk_fn(
                lambda params, inputs: _plain(params, inputs), implementation=index, vmap_axes=0
            )
            runs[str(index)] = jax.jit(lambda params, x, kernel_fn=kernel_fn: kernel_fn(x, None, params))
        taken = {name: [] for name in runs}
        for _ in range(repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                jax.block_until_ready(run(params, inputs))
                taken[name].append(time.perf_counter() - started)
        times = {name: np.asarray(values[1:]) for name, values in taken.items()}
        yield Row(f"NTK, 300 points, {dtype}", "ours", "ms", 1e3 * times.pop("ours"))
        for name, values in times.items():
            yield Row(
                f"NTK, 300 points, {dtype}", f"neural-tangents, implementation {name}", "ms", 1e3 * values
            )
        best = min(times.values(), key=np.median, default=None)
        ratio = () if best is None else np.asarray(taken["ours"][1:]) / best
        yield Row(f"NTK, 300 points, {dtype}", "ours : best of neural-tangents", "times", ratio, ("<=", 0.7))


def _plain(params, inputs):
    """The spiral network in plain products, the best case of neural-tangents."""
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"])
    return hidden @ last["kernel"] + last["bias"]
