"""Curvature: solvers of the largest Hessian eigenvalues at equal true residual, and the empirical NTK.

The same float32 weights and data for all: three networks, at initialisation and after training. A solver
that cannot be asked for a residual is given larger and larger settings until it has it. The true residual
is computed afterwards, in float64.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from analysis import neural_tangents_import
from analysis.linear_maps import dense
from analysis.ntk import empirical_ntk
from dlf import data, models
from dlf.types import Batch, Model
from experiments.benchmark import peers
from experiments.benchmark.solvers import KEY, NUM, SOLVERS, STEP, TOL, Case, Found, cases
from experiments.benchmark.timing import Record, fastest, measure, row, timed

_DENSE = 2_000  # parameters up to which the dense Hessian is the reference
_STOPPING = ("scipy eigsh", "curvlinops + eigsh", "lobpcg_standard, tol / 20n", "eigenthings, power")
_PATIENCE = 10.0  # seconds; what takes longer is run once, with its compilation


def attempt(case: Case, solver: str, make: Callable, settings: Iterable) -> tuple[Record, Callable | None]:
    """Run the settings of a solver until the true residual is reached: the result, and what to time.

    `residual` and `error` are the largest over the largest |eigenvalue|, `memory` what the process grew by
    during the call, in MiB.
    """
    params = case.next_params if "warm" in solver else case.params
    exact = jax.tree.map(lambda x: x.astype(float), params)
    matvec = case._replace(batch=Batch(case.batch.inputs.astype(float), case.batch.labels)).hessian(exact)
    unravel = ravel_pytree(exact)[1]
    result = {"network": case.network, "stage": case.stage, "solver": solver}
    result |= {"num": NUM, "tol": TOL, "num_matvecs": 0}
    result |= dict.fromkeys(("seconds", "residual", "error", "memory"))
    for setting in settings:
        try:
            run = make(case, setting)
            found, seconds, memory = _watch(run)
            if seconds < _PATIENCE:  # the first call compiles
                found, seconds, memory = _watch(run)
        except Exception as error:  # whatever a foreign package raises is its result
            reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            return result | {"noticed": reason}, None
        images = [ravel_pytree(matvec(unravel(jnp.asarray(u, float))))[0] for u in found.vectors]
        differences = np.asarray(images) - found.values[:, None] * found.vectors
        residual = np.linalg.norm(differences, axis=1).max() / np.abs(found.values).max()
        if residual <= TOL:
            break
    if ravel_pytree(exact)[0].size <= _DENSE:
        expected = np.linalg.eigvalsh(dense(matvec, exact))[::-1][: len(found.values)]
        result["error"] = float(np.abs(np.sort(found.values)[::-1] - expected).max() / expected[0])
    result |= {"num_matvecs": int(found.num_matvecs), "residual": float(residual)}
    result |= {"seconds": seconds, "memory": memory, "noticed": "" if residual <= TOL else found.noticed}
    return result, run if seconds < _PATIENCE else None


def _watch(run: Callable[[], Found]) -> tuple[Found, float, float | None]:
    """Return the result, the seconds, and the MiB by which the process grew at its peak (on Linux)."""
    anew = Path("/proc/self/clear_refs")
    is_told = os.access(anew, os.W_OK)
    if is_told:
        anew.write_text("5")  # the peak is counted anew
    before, started = _peak() if is_told else 0.0, time.perf_counter()
    found = run()
    return found, time.perf_counter() - started, _peak() - before if is_told else None


def _peak() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**10


def solve(case: Case, repeats: int) -> list[Record]:
    """Return the results of all solvers on one case, their times taken in turn."""
    solvers = SOLVERS | peers.installed()
    found = {name: attempt(case, name, *solver) for name, solver in solvers.items()}
    times = measure({name: timed(run) for name, (_, run) in found.items() if run}, repeats)
    for name, (result, _) in found.items():
        result["values"] = [] if result["seconds"] is None else [result["seconds"]]
        if name in times:
            result |= {"values": times[name].tolist(), "seconds": float(np.median(times[name]))}
    return [result for result, _ in found.values()]


def summarise(results: list[Record]) -> Iterator[Record]:
    """Compare our solver with the others on one case: the targets of the curvature engine."""
    of = {result["solver"]: result for result in results}
    cold, warm = of["ours, cold"], of["ours, warm"]
    add, products = partial(row, f"{cold['network']}, {cold['stage']}"), cold["num_matvecs"]
    measured = {name: result for name, result in of.items() if result["residual"] is not None}
    reached = {name: result for name, result in measured.items() if result["residual"] <= TOL}
    fewest = min((reached[name]["num_matvecs"] for name in _STOPPING if name in reached), default=np.inf)
    base = of["unrestarted Lanczos"]["num_matvecs"]
    yield add("cold : unrestarted", "products", products / base, ("<=", 1.15))
    yield add("cold : best with a stopping rule", "products", products / fewest, ("<", 1))
    yield add("warm : max(8, 0.7 cold)", "products", warm["num_matvecs"] / max(8, 0.7 * products), ("<=", 1))
    if (cold["network"], cold["stage"]) == ("digits 64-256-256-10", "initial"):
        yield add("cold", "products", products, ("<=", 65))
    torch = fastest(np.array(reached[name]["values"]) for name in peers.PEERS if name in reached)
    bound = 1 if "convolutions" in cold["network"] else 0.5
    yield add("cold : best in PyTorch", "seconds", np.array(cold["values"]) / torch, ("<=", bound))


def compare_product(case: Case, repeats: int) -> Record:
    """Compare one Hessian product with one gradient."""
    matvec, gradient = case.hessian(case.params), jax.jit(jax.grad(case.loss_fn))
    runs = {
        "product": lambda: [matvec(case.params) for _ in range(10)],
        "gradient": lambda: [gradient(case.params, case.batch, STEP) for _ in range(10)],
    }
    taken = measure({name: timed(run) for name, run in runs.items()}, repeats)
    ratio = taken["product"] / taken["gradient"]
    return row(f"{case.network}, {case.stage}", "Hessian product : gradient", "times", ratio, ("<=", 2.3))


class Network(NamedTuple):
    """A network of ours, the same in plain operations (the best case of neural-tangents), and its inputs."""

    model: Model
    plain: Callable[[Any, jax.Array], jax.Array]
    inputs: jax.Array
    target: tuple[str, float] | None  # of our NTK's time over that of neural-tangents


def networks() -> Iterator[tuple[str, Network]]:
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


def compare_ntk(name: str, network: Network, dtype: str, repeats: int) -> Iterator[Record]:
    """Compare the time of the traced NTK with the three ways of neural-tangents, where it is installed."""
    inputs = network.inputs.astype(dtype)
    params = network.model.init(KEY, inputs)
    runs = {"ours": jax.jit(partial(empirical_ntk, network.model.apply))}
    try:
        library = neural_tangents_import.load()
    except ImportError:
        library = None
    for choice in list(library.NtkImplementation)[1:] if library else ():  # the first leaves it open
        kernel_fn = library.empirical_ntk_fn(network.plain, implementation=choice, vmap_axes=0)
        words = f"neural-tangents, {choice.name.replace('_', ' ').lower()}"
        runs[words] = jax.jit(lambda params, x, kernel_fn=kernel_fn: kernel_fn(x, None, params))
    taken = measure({words: timed(partial(run, params, inputs)) for words, run in runs.items()}, repeats)
    add = partial(row, f"NTK, {name}, {dtype}")
    for words, values in taken.items():
        yield add(words, "ms", 1e3 * values)
    ours = taken.pop("ours")
    yield add("ours : best of neural-tangents", "times", ours / fastest(taken.values()), network.target)


def curvature(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure solvers of the largest Hessian eigenvalues, and the NTK."""
    jax.config.update("jax_enable_x64", True)  # for the true residuals; all solvers get float32
    for name, network in networks():
        for dtype in ("float64", "float32"):
            yield {"rows": list(compare_ntk(name, network, dtype, 3 * repeats))}
    for case in cases():
        product, results = compare_product(case, repeats), solve(case, repeats)
        yield {"results": results, "rows": [product, *summarise(results)]}
