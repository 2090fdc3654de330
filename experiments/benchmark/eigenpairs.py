"""Curvature: solvers of the largest Hessian eigenvalues at equal true residual, and the empirical NTK.

The same float32 weights and data for all: three networks, at initialisation and after training. A solver
that cannot be asked for a residual is given larger and larger settings until it has it. The true residual
is computed afterwards, in float64.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from analysis import neural_tangents_import
from analysis.linear_maps import dense
from analysis.ntk import empirical_ntk
from dlf import data, models
from dlf.types import Batch
from experiments.benchmark.solvers import KEY, NUM, SOLVERS, STEP, TOL, Case, Found, cases
from experiments.benchmark.timing import Record, fastest, measure, peak_memory, row, timed

_DENSE = 2_000  # parameters up to which the dense Hessian is the reference
_STOPPING = ("scipy eigsh", "curvlinops + eigsh", "lobpcg_standard, tol / 20n", "eigenthings, power")
_PATIENCE = 10.0  # seconds; what takes longer is run once, with its compilation
_PEAK = Path("/proc/self/clear_refs")  # on Linux


def attempt(case: Case, solver: str, make: Callable, settings: Iterable) -> tuple[Record, Callable | None]:
    """Run the settings of a solver until the true residual is reached: the result, and what to time.

    `residual` and `error` are the largest over the largest |eigenvalue|, `memory` what the process grew by
    during the call, in MiB.
    """
    params = case.next_params if "warm" in solver else case.params
    exact = jax.tree.map(lambda x: x.astype(float), params)
    matvec = case._replace(batch=Batch(case.batch.inputs.astype(float), case.batch.labels)).hessian(exact)
    flat, unravel = ravel_pytree(exact)
    result = {"network": case.network, "stage": case.stage, "solver": solver, "num": NUM, "tol": TOL}
    result |= {"num_matvecs": 0, "seconds": None, "residual": None, "error": None, "memory": None}
    for setting in settings:
        try:
            run = make(case, setting)
            found, seconds, memory = _watch(run)
            if seconds < _PATIENCE:  # the first call compiles
                found, seconds, memory = _watch(run)
        except Exception as error:  # whatever a foreign package raises is its result
            reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            return result | {"noticed": reason, "values": []}, None
        images = [ravel_pytree(matvec(unravel(jnp.asarray(u, float))))[0] for u in found.vectors]
        differences = np.asarray(images) - found.values[:, None] * found.vectors
        residual = float(np.linalg.norm(differences, axis=1).max() / np.abs(found.values).max())
        if residual <= TOL:
            break
    if flat.size <= _DENSE:
        expected = np.linalg.eigvalsh(dense(matvec, exact))[::-1][: len(found.values)]
        result["error"] = float(np.abs(np.sort(found.values)[::-1] - expected).max() / expected[0])
    result |= {"num_matvecs": int(found.num_matvecs), "seconds": seconds, "residual": residual}
    result |= {"memory": memory, "noticed": "" if residual <= TOL else found.noticed, "values": [seconds]}
    return result, run if seconds < _PATIENCE else None


def _watch(run: Callable[[], Found]) -> tuple[Found, float, float | None]:
    """Return the result, the seconds, and the MiB by which the process grew at its peak (on Linux)."""
    if is_told := os.access(_PEAK, os.W_OK):
        _PEAK.write_text("5")  # the peak is counted anew
    before, started = peak_memory(), perf_counter()
    found = run()
    return found, perf_counter() - started, peak_memory() - before if is_told else None


def solve(case: Case, repeats: int) -> list[Record]:
    """Return the results of all solvers on one case, their times taken in turn."""
    solvers = SOLVERS
    if find_spec("torch"):
        from experiments.benchmark import peers

        solvers = SOLVERS | peers.SOLVERS
    found = {name: attempt(case, name, *solver) for name, solver in solvers.items()}
    times = measure({name: timed(run) for name, (_, run) in found.items() if run}, repeats)
    for name, values in times.items():
        found[name][0].update(values=values.tolist(), seconds=float(np.median(values)))
    return [result for result, _ in found.values()]


def summarise(results: list[Record]) -> Iterator[Record]:
    """Compare our solver with the others on one case: the targets of the curvature engine."""
    of = {result["solver"]: result for result in results}
    cold, products = of["ours, cold"], {name: result["num_matvecs"] for name, result in of.items()}
    reached = [name for name in of if of[name]["residual"] is not None and of[name]["residual"] <= TOL]
    add, count = partial(row, f"{cold['network']}, {cold['stage']}"), cold["num_matvecs"]
    fewest = min((products[name] for name in _STOPPING if name in reached), default=np.inf)
    yield add("cold : unrestarted", "products", count / products["unrestarted Lanczos"], ("<=", 1.15))
    yield add("cold : best with a stopping rule", "products", count / fewest, ("<", 1))
    warm = products["ours, warm"] / max(8, 0.7 * count)
    yield add("warm : max(8, 0.7 cold)", "products", warm, ("<=", 1))
    if (cold["network"], cold["stage"]) == ("digits 64-256-256-10", "initial"):
        yield add("cold", "products", count, ("<=", 65))
    torch = fastest(np.array(of[name]["values"]) for name in reached if name not in SOLVERS)
    bound = 1 if "convolutions" in cold["network"] else 0.5
    yield add("cold : best in PyTorch", "seconds", np.array(cold["values"]) / torch, ("<=", bound))


def compare_product(case: Case, repeats: int) -> Record:
    """Compare one Hessian product with one gradient."""
    product = partial(case.hessian(case.params), case.params)
    gradient = partial(jax.jit(jax.grad(case.loss_fn)), case.params, case.batch, STEP)
    runs = {of: timed(lambda of=of: [of() for _ in range(10)]) for of in (product, gradient)}
    ratio = np.divide(*measure(runs, repeats).values())
    return row(f"{case.network}, {case.stage}", "Hessian product : gradient", "times", ratio, ("<=", 2.3))


class Plain(nn.Module):
    """`mlp` or `myrtle` of `dlf.models` in flax's own layers, the best case of neural-tangents."""

    widths: tuple[int, ...]
    is_convolutional: bool

    @nn.compact
    def __call__(self, x):
        """Return the logits; the last of `widths` is their number."""
        for width in self.widths[:-1]:
            x = nn.relu((nn.Conv(width, (3, 3)) if self.is_convolutional else nn.Dense(width))(x))
        # a mean over squares of 2x2, then over these, is one over all
        return nn.Dense(self.widths[-1])(x.mean((1, 2)) if self.is_convolutional else x)


def networks() -> dict[str, tuple[Any, Plain, jax.Array, tuple | None]]:
    """Return ours, plain, inputs, and the target of our NTK's time over that of neural-tangents."""
    spiral, digits = data.spiral().train.inputs, data.digits(num_train=64).train.inputs
    ours, images = models.mlp(3, (100,), "relu", "original", True), models.myrtle(10, (16, 16), "relu")
    return {
        "300 points": (ours, Plain((100, 3), False), spiral, ("<=", 0.7)),
        "64 images 8x8": (images, Plain((16, 16, 10), True), digits, None),
    }


def compare_ntk(name: str, dtype: str, repeats: int) -> Iterator[Record]:
    """Compare the time of the traced NTK with the three ways of neural-tangents, where it is installed."""
    model, plain, inputs, target = networks()[name]
    inputs = inputs.astype(dtype)
    params = model.init(KEY, inputs)

    def apply_fn(params, x):
        return plain.apply({"params": params}, x)

    runs = {"ours": jax.jit(partial(empirical_ntk, model.apply))}
    try:
        library = neural_tangents_import.load()
    except ImportError:
        library = None
    for choice in list(library.NtkImplementation)[1:] if library else ():  # the first leaves it open
        kernel_fn = library.empirical_ntk_fn(apply_fn, implementation=choice, vmap_axes=0)
        words = f"neural-tangents, {choice.name.replace('_', ' ').lower()}"
        runs[words] = jax.jit(lambda params, x, kernel_fn=kernel_fn: kernel_fn(x, None, params))
    taken = measure({words: timed(partial(run, params, inputs)) for words, run in runs.items()}, repeats)
    add = partial(row, f"NTK, {name}, {dtype}")
    for words, values in taken.items():
        yield add(words, "ms", 1e3 * values)
    ours = taken.pop("ours")
    yield add("ours : best of neural-tangents", "times", ours / fastest(taken.values()), target)


def curvature(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure solvers of the largest Hessian eigenvalues, and the NTK."""
    jax.config.update("jax_enable_x64", True)  # for the true residuals; all solvers get float32
    for name in networks():
        for dtype in ("float64", "float32"):
            yield {"rows": list(compare_ntk(name, dtype, 3 * repeats))}
    for case in cases():
        product, results = compare_product(case, repeats), solve(case, repeats)
        yield {"results": results, "rows": [product, *summarise(results)]}
