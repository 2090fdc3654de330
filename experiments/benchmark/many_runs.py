"""Many runs: replica-steps a second of ensembles, overhead and peak memory of sweeps.

The network is that of the phase diagrams. Ensembles are measured in processes of their own, each pinned to
one core. Two processes run at the same time, on two cores, for the same seconds.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dlf.ensembles import make_ensemble
from experiments.benchmark import timing
from experiments.benchmark.one_run import STEP_FLOPS, compiled, prepare
from experiments.benchmark.timing import MATMUL, Record, in_fresh_process, row, timed
from experiments.configs import phase_amplitude_period as diagram
from experiments.sweep import blocks, fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.blocks import work

_REPLICAS = (1, 2, 16, 256)
_WINDOW = 1.0  # seconds that a case is run for in every repeat
_VARIABLES = ("loss", "accuracy")
_WEIGHTS = (1.5, 0.75, 0.75)  # of the classes, in PyTorch


@cache
def cases(float64: bool) -> dict[str, Callable[[], float]]:
    """Return name -> what times a replica-step."""
    config = diagram.get_config("small")
    config.unlock()
    config.probes = dict()
    experiment = prepare(config, float64=float64)
    series = {name: experiment.series[name] for name in _VARIABLES}
    runs = {"alone": (compiled(experiment, (), 2_000), 2_000)}  # and its replica-steps
    for num in _REPLICAS:
        steps, replicas = max(200, 4_000 // num), _copies(experiment.replica, num)
        for name, is_vectorized in (("mapped", False), ("vectorised", True)):
            program = make_ensemble(experiment.assemble, steps, "final", series, is_vectorized)
            runs[f"{name}, {num}"] = partial(program, *replicas), num * steps
    if find_spec("torch"):
        from experiments.benchmark import peers

        for num in _REPLICAS:
            weights = np.tile(_WEIGHTS, (max(5, 200 // num), 1))
            run = peers.training(experiment, weights, num_replicas=num)
            runs[f"torch.func, {num}"] = run, num * len(weights)
        runs["PyTorch eager"] = peers.training(experiment, np.tile(_WEIGHTS, (200, 1))), 200
    runs[MATMUL] = timing.matrix_product()
    return {name: timed(run, units, _WINDOW) for name, (run, units) in runs.items()}


def _copies(replica, num: int):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * num), replica), jnp.ones(num, bool)


def rate(core: int, float64: bool, name: str) -> float:
    """Return the replica-steps a second of a case; for a process of its own, pinned before JAX starts."""
    os.sched_setaffinity(0, {core})
    return 1 / cases(float64)[name]()


def measure_pinned(float64: bool, repeats: int) -> dict[str, np.ndarray]:
    """Return the rate of every case in every repeat, and under "two: ..." that of two processes together."""
    cores, pinned = sorted(os.sched_getaffinity(0))[:2], {}
    with ExitStack() as stack:
        pools = {core: stack.enter_context(timing.fresh_process()) for core in cores}

        def together(name: str, num: int) -> float:
            found = [pools[core].submit(rate, core, float64, name) for core in cores[:num]]
            return sum(each.result() for each in found)

        for name in cases(float64):  # not run in this process
            pinned[name] = partial(together, name, 1)
            if name.startswith("mapped") and len(cores) > 1:
                pinned[f"two: {name}"] = partial(together, name, 2)
        return timing.measure(pinned, repeats)


def rate_rows(float64: bool, taken: Mapping[str, np.ndarray]) -> list[Record]:
    """Derive the rows of one precision from the rates of its cases (see `measure_pinned`)."""
    bound, most = taken[MATMUL] / STEP_FLOPS, taken["mapped, 256"]
    found = [(f"{name}: replica-steps", "1/s", taken[name]) for name in taken if name != MATMUL]
    for num in _REPLICAS:
        mapped, two = taken[f"mapped, {num}"], taken.get(f"two: mapped, {num}")
        found.append((f"mapped {num} : alone", "times", mapped / taken["alone"], (">=", 1.0)))
        if two is not None:
            target = (">=", 1.9) if num > 1 else None
            found.append((f"two processes : one, {num}", "times", two / mapped, target))
    seconds = timing.fastest(1 / rates for name, rates in taken.items() if "orch" in name)
    found += [
        ("mapped 256 : PyTorch's best", "times", most * seconds, (">=", 8.0)),
        ("bound by matrix products", "1/s", bound),
        ("mapped 256 : bound", "%", 100 * most / bound),
    ]
    return [row("float64" if float64 else "float32", *of) for of in found]


def _sweep(num_cells: int, num_steps: int):
    """Return a small sweep that stores final values, and what its first cell builds, in its precision."""
    experiment = prepare(config := diagram.get_config("small"), num_steps=num_steps)
    speeds = np.linspace(0.5, 1.0, num_cells // 10)
    axes = [axis("learning_rate", speeds, "optimizer.learning_rate"), axis("seed", range(10), "seed")]
    return make_sweep(config, "main", [*axes, record("final", *_VARIABLES)]), experiment


def peak_of_sweep(num_cells: int) -> float:
    """Return the peak memory in MiB of a sweep; for a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        fill.run(_sweep(num_cells, num_steps=20)[0], folder)
    return timing.peak_memory()


def overhead(repeats: int, num_steps: int) -> tuple[float, np.ndarray]:
    """Return the seconds that the first block takes longer, and what the others take over compute, in %."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # ten cells a block, on one core
    sweep, experiment = _sweep(10 * (repeats + 1), num_steps)
    program = blocks.ensemble(sweep, experiment, num_steps)
    alone = timed(partial(program, *blocks.copies(sweep, experiment, 10)))
    alone()  # compiles
    with tempfile.TemporaryDirectory() as folder:
        fill.create(sweep, Path(folder), blocks.plan(sweep, 2**30))
        whole = timed(partial(next, work(sweep, Path(folder))))
        seconds, compute = np.transpose([(whole(), alone()) for _ in range(repeats + 1)])
    return seconds[0] - np.median(seconds[1:]), 100 * (seconds[1:] / compute[1:] - 1)


def speed(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure ensembles and sweeps: replica-steps a second, overhead, memory."""
    for num in (100, 1_000, 10_000):
        peak = in_fresh_process(peak_of_sweep, num)
        yield {"rows": [row("float32", f"peak memory, {num:,} cells", "MiB", peak)]}
    compiling, share = in_fresh_process(overhead, repeats, 35_001)
    yield {"rows": [row("float32", "compile a block's program", "s", compiling)]}
    yield {"rows": [row("float32", "sweep machinery : compute", "%", share, ("<=", 5.0))]}
    for float64 in (False, True):
        yield {"rows": rate_rows(float64, measure_pinned(float64, repeats))}
