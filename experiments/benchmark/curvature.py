"""Solvers of the largest Hessian eigenvalues, ours and others', at equal true residual.

The same float32 weights and data for all: three networks, at initialisation and after training, the
loss weighted by class. A solver that cannot be asked for a residual is given larger and larger
settings until it has it. The true residual is computed afterwards, in float64.
"""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis import operators
from analysis.linear_maps import dense
from dlf import data, losses, models, optimizers, schedules, train
from dlf.store import files
from dlf.types import Batch
from experiments.benchmark import torch_peers
from experiments.benchmark.ntk import ntk_rows
from experiments.benchmark.report import Row
from experiments.benchmark.solvers import KEY, NUM, STEP, TOL, Case, Found, others, ours, pytorch

_DENSE = 2_000  # parameters up to which the dense Hessian is the reference
_STOPPING = ("scipy eigsh", "curvlinops + eigsh", "lobpcg_standard, tol / 20n", "eigenthings, power")
_PATIENCE = 10.0  # seconds; what takes longer is run once, with its compilation


def cases() -> Iterator[Case]:
    """Yield the three networks at initialisation and after training."""
    spiral, digits = data.spiral().train, data.digits().train
    networks = {
        "spiral 2-100-3": (models.mlp(3, (100,), "relu", "original", True), "relu", 3, spiral, 1.0, 2_000),
        "digits 64-256-256-10": (
            models.mlp(10, (256, 256), "tanh", "original", True), "tanh", 10, digits, 0.1, 200,
        ),
        "digits, convolutions": (
            models.myrtle(10, (16, 32, 32), "relu"), "relu", 10, digits._replace(
                inputs=digits.inputs[:200], labels=digits.labels[:200]), 0.1, 200,
        ),
    }  # fmt: skip
    for name, (model, activation, num_classes, batch, rate, num_steps) in networks.items():
        batch = Batch(batch.inputs.astype("f4"), batch.labels)
        schedule = schedules.triangular(num_classes, amplitude=10.0, period=5_000)
        loss_fn = losses.make_loss(model.apply, losses.cross_entropy, schedule)
        optimizer = optimizers.make_optimizer("sgd", learning_rate=rate)
        state = train.init_state(model.init(KEY, batch.inputs[:1]), optimizer)
        weights = np.asarray(schedule(STEP), "f4")
        loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
        for stage in ("initial", "trained"):
            after = loop(state, {}, 10)[0]
            yield Case(name, stage, model, activation, loss_fn, weights, batch, state.params, after.params)
            state = loop(state, {}, num_steps)[0]


class Result(NamedTuple):
    """One line of the table."""

    network: str
    stage: str
    solver: str
    num_matvecs: int
    seconds: float
    residual: float  # the largest true residual over the largest |eigenvalue|
    error: float | None  # the largest error against the dense answer over the largest |eigenvalue|
    memory: float  # MiB that the process grew by during the call
    noticed: str


def measure(case: Case, solver: str, attempts: list[Callable[[], Found]], repeats: int) -> Result:
    """Run the settings of a solver until the true residual is reached, and time the last."""
    params = case.next_params if "warm" in solver else case.params
    exact = jax.tree.map(lambda x: x.astype(float), params)
    batch = Batch(case.batch.inputs.astype(float), case.batch.labels)
    matvec, unravel = operators.hessian(case.loss_fn, exact, batch, STEP), ravel_pytree(exact)[1]
    for attempt in attempts:
        try:
            found, seconds, memory = _watch(attempt)
            if seconds < _PATIENCE:  # the first call compiles
                found, seconds, memory = _watch(attempt)
        except Exception as error:  # whatever a foreign package raises is its result
            reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            return Result(*case[:2], solver, 0, np.nan, np.nan, None, np.nan, reason)
        images = [ravel_pytree(matvec(unravel(jnp.asarray(u, float))))[0] for u in found.vectors]
        differences = np.asarray(images) - found.values[:, None] * found.vectors
        residual = np.linalg.norm(differences, axis=1).max() / np.abs(found.values).max()
        if residual <= TOL:
            break
    times = [seconds] + [_watch(attempt)[1] for _ in range(repeats - 1) if seconds < _PATIENCE]
    error = None
    if ravel_pytree(exact)[0].size <= _DENSE:
        expected = np.linalg.eigvalsh(dense(matvec, exact))[::-1][: len(found.values)]
        error = np.abs(found.values - expected).max() / expected[0]
    noticed = "" if residual <= TOL else found.noticed
    return Result(
        *case[:2], solver, found.num_matvecs, statistics.median(times), residual, error, memory, noticed
    )


def _watch(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, the seconds, and the MiB by which the process grew at its peak."""
    peak, running = [_resident()], True

    def sample():
        while running:
            peak.append(_resident())
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.perf_counter()
    try:
        result = function()
        return result, time.perf_counter() - started, max(peak) - peak[0]
    finally:
        running = False
        thread.join()


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def summarise(results: list[Result]) -> Iterator[Row]:
    """Compare our solver with the others: the targets of the curvature engine."""
    for network, stage in dict.fromkeys((r.network, r.stage) for r in results):
        of = {r.solver: r for r in results if (r.network, r.stage) == (network, stage)}
        row, cold, warm = partial(Row, f"{network}, {stage}"), of["ours, cold"], of["ours, warm"]
        base = of["unrestarted Lanczos"].num_matvecs
        yield row("cold : unrestarted", "products", (cold.num_matvecs / base,), ("<=", 1.15))
        reached = [r for name, r in of.items() if name in _STOPPING and r.residual <= TOL]
        fewest = min((r.num_matvecs for r in reached), default=np.inf)
        yield row("cold : best with a stopping rule", "products", (cold.num_matvecs / fewest,), ("<", 1))
        least = max(8, 0.7 * cold.num_matvecs)
        yield row("warm : max(8, 0.7 cold)", "products", (warm.num_matvecs / least,), ("<=", 1))
        if network == "digits 64-256-256-10" and stage == "initial":
            yield row("cold", "products", (cold.num_matvecs,), ("<=", 65))
        peers = [of[name].seconds for name in torch_peers.PEERS if name in of and of[name].residual <= TOL]
        bound = 1 if "convolutions" in network else 0.5
        yield row(
            "cold : best in PyTorch", "seconds", (cold.seconds / min(peers),) if peers else (), ("<=", bound)
        )


def products(case: Case, repeats: int) -> Iterator[Row]:
    """Compare one Hessian product with one gradient, and the solver's memory with its basis."""
    matvec = operators.hessian(case.loss_fn, case.params, case.batch, STEP)
    gradient = jax.jit(jax.grad(case.loss_fn))
    ratios = []
    for _ in range(repeats):
        taken = []
        for run in (lambda: matvec(case.params), lambda: gradient(case.params, case.batch, STEP)):
            jax.block_until_ready(run())
            started = time.perf_counter()
            jax.block_until_ready([run() for _ in range(10)])
            taken.append(time.perf_counter() - started)
        ratios.append(taken[0] / taken[1])
    yield Row(f"{case.network}, {case.stage}", "Hessian product : gradient", "times", ratios, ("<=", 2.3))


def table(results: list[Result]) -> Table:
    """Lay out the results of all solvers."""
    layout = Table(
        "network", "solver", "products", "seconds", "true residual", "error", "MiB", "told", box=SIMPLE_HEAD
    )
    for r in results:
        numbers = (f"{r.seconds:.3f}", f"{r.residual:.1e}", "" if r.error is None else f"{r.error:.1e}")
        flag = "" if r.residual <= TOL else (r.noticed or "no")
        layout.add_row(
            f"{r.network}, {r.stage}", r.solver, str(r.num_matvecs), *numbers, f"{r.memory:.0f}", flag
        )
    return layout


def benchmark(path: Path, repeats: int) -> tuple[list[Result], list[Row]]:
    """Measure all solvers on all cases and write the results to a JSON file."""
    results, rows = [], []
    content = {"platform": platform.platform(), "cpus": os.cpu_count(), "jax": jax.__version__}
    content |= {"repeats": repeats, "num": NUM, "tol": TOL}
    with Console(stderr=True).status("measuring: takes minutes") as status:
        rows += ntk_rows(3 * repeats)
        for case in cases():
            rows += products(case, repeats)
            solvers = {"ours, cold": [ours(case)], "ours, warm": [ours(case, warm=True)]}
            for name, attempts in (solvers | others(case) | pytorch(case)).items():
                status.update(f"{case.network}, {case.stage}: {name}")
                results.append(measure(case, name, attempts, repeats))
            found = rows + list(summarise(results))
            content["results"] = [result._asdict() for result in results]
            # after each network: what was measured outlives an interrupt
            files.write_json(path, content | {"rows": [row.as_json() for row in found]})
    return results, found
