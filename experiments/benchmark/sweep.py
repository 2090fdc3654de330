"""Speed and memory of ensembles and sweeps: replica-steps a second, overhead, peak memory.

The network is that of the phase diagrams. Every row is measured in processes of their own, each pinned to
one core, with one repeat of all rows after another, so that a noisy machine hits all alike; a ratio is
taken within a repeat. Two processes run at the same time, on two cores, for the same seconds.
"""

import importlib.util
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from dlf.ensembles import make_ensemble
from dlf.store import files
from dlf.train import init_carries
from experiments import build, command_line
from experiments.benchmark.fig4 import in_fresh_process, step_flops
from experiments.benchmark.report import Row, header
from experiments.benchmark.torch_ensembles import eager, vectorized
from experiments.configs import phase_amplitude_period as diagram
from experiments.sweep import blocks, fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.work import work

REPLICAS = (1, 2, 16, 256)
_WINDOW = 1.0  # seconds that a row is run for in every repeat
_MATMUL_SIZE = 1024
_VARIABLES = ("loss", "accuracy")


def runs(float64: bool) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return what is timed in one process: name -> (function, replica-steps or, for the bound, flops)."""
    config = diagram.get_config("small")
    config.float64 = float64
    config.unlock()
    config.probes = dict()
    config.lock()
    command_line.use_precision(config)
    experiment = build.build(config)
    loop, carries = build.make_loop(experiment), init_carries({}, experiment.state)
    found = {"alone": (lambda: loop(experiment.replica, experiment.state, carries, 2_000), 2_000)}
    series = {name: experiment.series[name] for name in _VARIABLES}
    for num in REPLICAS:
        steps = max(200, 4_000 // num)
        stacked = jax.tree.map(lambda leaf, num=num: jnp.stack([leaf] * num), experiment.replica)
        active = jnp.ones(num, bool)
        for name, is_vectorized in (("mapped", False), ("vectorised", True)):
            program = make_ensemble(experiment.assemble, steps, "final", series, is_vectorized)
            found[f"{name}, {num}"] = (partial(program, stacked, active), num * steps)
        if importlib.util.find_spec("torch"):
            steps = max(5, 200 // num)
            found[f"torch.func, {num}"] = (vectorized(experiment, num, steps), num * steps)
    if importlib.util.find_spec("torch"):
        found["PyTorch eager"] = (eager(experiment, 200), 200)
    matrix = jnp.ones((_MATMUL_SIZE, _MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    found["matrix product"] = (lambda: product(matrix, matrix), 2 * _MATMUL_SIZE**3)
    return found


def _serve(core: int, float64: bool, orders: Any, answers: Any) -> None:
    """Time what is asked for on one core, in a process of its own: (name, seconds) -> units a second."""
    os.sched_setaffinity(0, {core})
    made = runs(float64)
    for function, _ in made.values():
        jax.block_until_ready(function())  # compiles
    answers.put(list(made))
    for name, seconds in iter(orders.get, None):
        function, units = made[name]
        started, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - started) < seconds:
            jax.block_until_ready(function())
            count += 1
        answers.put(count * units / taken)


def measure(float64: bool, repeats: int) -> dict[str, np.ndarray]:
    """Return units a second of every row in every repeat, and under "two: ..." those of two processes."""
    context, cores = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))[:2]
    orders, answers = [context.Queue() for _ in cores], [context.Queue() for _ in cores]
    servers = [
        context.Process(target=_serve, args=(core, float64, order, answer), daemon=True)
        for core, order, answer in zip(cores, orders, answers, strict=True)
    ]
    for server in servers:
        server.start()
    names, *_ = [answer.get() for answer in answers]  # all have compiled
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in track(range(repeats), "float64" if float64 else "float32", console=Console(stderr=True)):
        for name in names:
            orders[0].put((name, _WINDOW))
            found[name].append(answers[0].get())
            if name.startswith("mapped") and len(cores) > 1:
                for order in orders:
                    order.put((name, _WINDOW))
                found.setdefault(f"two: {name}", []).append(sum(answer.get() for answer in answers))
    for order in orders:
        order.put(None)
    return {name: np.array(values) for name, values in found.items()}


def rows(float64: bool, taken: dict[str, np.ndarray]) -> list[Row]:
    """Derive the rows of one precision."""
    precision = "float64" if float64 else "float32"
    bound = taken.pop("matrix product") / step_flops(300, (2, 100, 3))
    found = [Row(precision, f"{name}: replica-steps", "1/s", values) for name, values in taken.items()]
    torch = [values for name, values in taken.items() if "orch" in name]
    for num in REPLICAS:
        mapped = taken[f"mapped, {num}"]
        found.append(Row(precision, f"mapped {num} : alone", "times", mapped / taken["alone"], (">=", 1.0)))
        if f"two: mapped, {num}" in taken:
            target = (">=", 1.9) if num > 1 else None
            ratio = taken[f"two: mapped, {num}"] / mapped
            found.append(Row(precision, f"two processes : one, {num}", "times", ratio, target))
    best = max(torch, key=np.median, default=None)
    ratio = () if best is None else taken["mapped, 256"] / best
    found.append(Row(precision, "mapped 256 : PyTorch's best", "times", ratio, (">=", 8.0)))
    found.append(Row(precision, "bound by matrix products", "1/s", bound))
    found.append(Row(precision, "mapped 256 : bound", "%", 100 * taken["mapped, 256"] / bound))
    return found


def _small_sweep(num_cells: int, num_steps: int):
    config = diagram.get_config("small")
    config.update(num_steps=num_steps)
    rates = np.linspace(0.5, 1.0, num_cells // 10)
    axes = [axis("learning_rate", rates, "optimizer.learning_rate"), axis("seed", range(10), "seed")]
    return make_sweep(config, "main", [*axes, record("final", *_VARIABLES)])


def peak_memory(num_cells: int) -> float:
    """Return the peak memory in MiB of a sweep that stores final values; for a fresh process."""
    sweep = _small_sweep(num_cells, num_steps=20)
    command_line.use_precision(sweep.config)
    with tempfile.TemporaryDirectory() as folder:
        fill.run(sweep, folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def overhead(repeats: int) -> tuple[float, np.ndarray]:
    """Return the seconds that the first block takes longer, and what the others take more than compute, in %.

    Cells of 35,000 steps, ten a block, on one core; after every block its program runs alone. For a fresh
    process.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sweep = _small_sweep(10 * (repeats + 1), num_steps=35_001)
    command_line.use_precision(sweep.config)
    experiment = build.build(sweep.config)
    program = blocks.ensemble(sweep, experiment, sweep.config.num_steps)
    replicas = [build.draw(sweep.cell((0, seed))) for seed in range(10)]
    stacked, active = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas), jnp.ones(10, bool)
    jax.block_until_ready(program(stacked, active))
    whole, alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        fill.create(sweep, Path(folder), 2**30)
        started = time.perf_counter()
        for _ in work(sweep, Path(folder)):
            whole.append(time.perf_counter() - started)
            started = time.perf_counter()
            jax.block_until_ready(program(stacked, active))
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
    whole, alone = np.array(whole), np.array(alone)
    return whole[0] - np.median(whole[1:]), 100 * (whole[1:] / alone[1:] - 1)


def benchmark(path: Path, repeats: int) -> list[Row]:
    """Measure all rows and write them to a JSON file."""
    found = []
    for num_cells in (100, 1_000, 10_000):
        peaks = [in_fresh_process(peak_memory, num_cells)]
        found.append(Row("float32", f"peak memory, {num_cells:,} cells", "MiB", peaks))
    compiling, share = in_fresh_process(overhead, repeats)
    found.append(Row("float32", "compile a block's program", "s", [compiling]))
    found.append(Row("float32", "sweep machinery : compute", "%", share, ("<=", 5.0)))
    for float64 in (False, True):
        found += rows(float64, measure(float64, repeats))
    files.write_json(path, header(repeats) | {"rows": [row.as_json() for row in found]})
    return found
