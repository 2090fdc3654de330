"""Many runs: replica-steps a second of ensembles, overhead and peak memory of sweeps.

The network is that of the phase diagrams. Rows are measured in processes of their own, each pinned to one
core. Two processes run at the same time, on two cores, for the same seconds.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlf.ensembles import make_ensemble
from experiments import build
from experiments.benchmark import timing
from experiments.benchmark.one_run import compiled, prepare, step_flops
from experiments.benchmark.timing import MATMUL, Record, fastest, in_fresh_process, row, timed
from experiments.configs import phase_amplitude_period as diagram
from experiments.sweep import blocks, fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.blocks import work

_REPLICAS = (1, 2, 16, 256)
_WINDOW = 1.0  # seconds that a row is run for in every repeat
_VARIABLES = ("loss", "accuracy")
_WEIGHTS = (1.5, 0.75, 0.75)  # of the classes, in PyTorch


@cache
def runs(core: int, float64: bool) -> dict[str, tuple[Callable[[], Any], int]]:
    """Pin this process to a core, before JAX starts; return name -> (what is timed, replica-steps)."""
    os.sched_setaffinity(0, {core})
    config = diagram.get_config("small")
    config.unlock()
    config.probes = dict()
    experiment = prepare(config, float64=float64)
    found = {"alone": (compiled(experiment, (), 2_000), 2_000)}
    series = {name: experiment.series[name] for name in _VARIABLES}
    for num in _REPLICAS:
        steps = max(200, 4_000 // num)
        replicas = jax.tree.map(lambda leaf, num=num: jnp.stack([leaf] * num), experiment.replica)
        for name, is_vectorized in (("mapped", False), ("vectorised", True)):
            program = make_ensemble(experiment.assemble, steps, "final", series, is_vectorized)
            found[f"{name}, {num}"] = partial(program, replicas, jnp.ones(num, bool)), num * steps
    if find_spec("torch"):
        from experiments.benchmark import peers

        for num in _REPLICAS:
            steps = max(5, 200 // num)
            found[f"torch.func, {num}"] = peers.vectorized(experiment, _WEIGHTS, num, steps), num * steps
        found["PyTorch eager"] = peers.eager(experiment, np.tile(_WEIGHTS, (200, 1))), 200
    return found | {MATMUL: timing.matrix_product()}


def names(core: int, float64: bool) -> list[str]:
    """Return the names of what is timed; functions do not leave their process."""
    return list(runs(core, float64))


def rate(core: int, float64: bool, name: str) -> float:
    """Return the replica-steps a second of a run, over a window of time."""
    run, units = runs(core, float64)[name]
    started, count = perf_counter(), 0
    while (taken := perf_counter() - started) < _WINDOW:
        jax.block_until_ready(run())
        count += 1
    return count * units / taken


def measure_pinned(float64: bool, repeats: int) -> dict[str, np.ndarray]:
    """Return the rate of every run in every repeat, and under "two: ..." that of two processes together."""
    cores, cases = sorted(os.sched_getaffinity(0))[:2], {}
    with ExitStack() as stack:
        pools = {core: stack.enter_context(timing.fresh_process()) for core in cores}

        def together(name: str, num: int) -> float:
            rates = [pools[core].submit(rate, core, float64, name) for core in cores[:num]]
            return sum(found.result() for found in rates)

        for name in pools[cores[0]].submit(names, cores[0], float64).result():
            cases[name] = partial(together, name, 1)
            if name.startswith("mapped") and len(cores) > 1:
                cases[f"two: {name}"] = partial(together, name, 2)
        return timing.measure(cases, repeats)


def rows(float64: bool, taken: dict[str, np.ndarray]) -> Iterator[Record]:
    """Derive the rows of one precision."""
    add = partial(row, "float64" if float64 else "float32")
    bound = taken.pop(MATMUL) / step_flops(300, (2, 100, 3))
    for name, values in taken.items():
        yield add(f"{name}: replica-steps", "1/s", values)
    for num in _REPLICAS:
        mapped = taken[f"mapped, {num}"]
        yield add(f"mapped {num} : alone", "times", mapped / taken["alone"], (">=", 1.0))
        if f"two: mapped, {num}" in taken:
            ratio, target = taken[f"two: mapped, {num}"] / mapped, (">=", 1.9) if num > 1 else None
            yield add(f"two processes : one, {num}", "times", ratio, target)
    seconds = fastest(1 / rates for name, rates in taken.items() if "orch" in name)
    yield add("mapped 256 : PyTorch's best", "times", taken["mapped, 256"] * seconds, (">=", 8.0))
    yield add("bound by matrix products", "1/s", bound)
    yield add("mapped 256 : bound", "%", 100 * taken["mapped, 256"] / bound)


def _sweep(num_cells: int, num_steps: int):
    """Return a small sweep that stores final values, and what its first cell builds, in its precision."""
    experiment = prepare(config := diagram.get_config("small"), num_steps=num_steps)
    rates = np.linspace(0.5, 1.0, num_cells // 10)
    axes = [axis("learning_rate", rates, "optimizer.learning_rate"), axis("seed", range(10), "seed")]
    return make_sweep(config, "main", [*axes, record("final", *_VARIABLES)]), experiment


def peak_of_sweep(num_cells: int) -> float:
    """Return the peak memory in MiB of a sweep; for a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        fill.run(_sweep(num_cells, num_steps=20)[0], folder)
    return timing.peak_memory()


def overhead(repeats: int, num_steps: int = 35_001) -> tuple[float, np.ndarray]:
    """Return the seconds that the first block takes longer, and what the others take more than compute, in %.

    Ten cells a block, on one core; after every block its program runs alone. For a fresh process.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sweep, experiment = _sweep(10 * (repeats + 1), num_steps)
    replicas = [build.draw(sweep.cell((0, seed))) for seed in range(10)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)
    alone = timed(partial(blocks.ensemble(sweep, experiment, num_steps), stacked, jnp.ones(10, bool)))
    alone()  # compiles
    with tempfile.TemporaryDirectory() as folder:
        fill.create(sweep, Path(folder), 2**30)
        whole = timed(partial(next, work(sweep, Path(folder))))
        seconds, compute = np.transpose([(whole(), alone()) for _ in range(repeats + 1)])
    return seconds[0] - np.median(seconds[1:]), 100 * (seconds[1:] / compute[1:] - 1)


def speed(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure ensembles and sweeps: replica-steps a second, overhead, memory."""
    for num in (100, 1_000, 10_000):
        peak = in_fresh_process(peak_of_sweep, num)
        yield {"rows": [row("float32", f"peak memory, {num:,} cells", "MiB", peak)]}
    compiling, share = in_fresh_process(overhead, repeats)
    yield {"rows": [row("float32", "compile a block's program", "s", compiling)]}
    yield {"rows": [row("float32", "sweep machinery : compute", "%", share, ("<=", 5.0))]}
    for float64 in (False, True):
        yield {"rows": list(rows(float64, measure_pinned(float64, repeats)))}
