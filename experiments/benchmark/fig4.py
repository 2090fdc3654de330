"""Speed, memory and compile time of the run of Fig. 4.

The compiled program, a loop as in the authors' notebook and PyTorch eager, where it is installed,
train the same problem: row after row, all rows once more in every repeat, so that a noisy machine
hits all alike. What compares two rows is taken within a repeat, then the median. Each precision
has a process of its own, with JAX's x64 flag as its user would set it.
"""

import importlib.util
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from dlf.store import files
from experiments import command_line
from experiments.benchmark.baselines import (
    COMPILED,
    NOTEBOOK,
    PYTORCH,
    check_agreement,
    compiled_run,
    notebook_run,
    program,
    pytorch_run,
)
from experiments.benchmark.report import Row, header
from experiments.build import build
from experiments.configs import fig4

MATMUL = "matrix product"
_MATMUL_SIZE, _NUM_MATMULS = 1024, 10


def step_flops(num_examples: int, widths: tuple[int, ...]) -> int:
    """Count the floating-point operations in the matrix products of one step of a network.

    Forward, gradient of the weights, and gradient of the hidden layers (not of the inputs).
    `widths` are those of all layers, inputs and logits included.

    >>> step_flops(300, (2, 100, 3))
    780000
    """
    products = [2 * num_examples * n * m for n, m in pairwise(widths)]
    return 2 * sum(products) + sum(products[1:])


def probe_sets(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Return which probes are timed together: each one alone, then all of them."""
    return {name: (name,) for name in config.probes} | {"all probes": tuple(config.probes)}


def time_runs(float64: bool, repeats: int, num_steps: int) -> dict[str, list[float]]:
    """Return the seconds a step of each run, one for each repeat; for a process of its own.

    The first run of each is not timed: it compiles, and shows that all train the same. PyTorch
    takes a quarter of the steps: on a busy machine a second thread makes it very slow.
    """
    config = fig4.get_config()
    config.float64 = float64
    command_line.use_precision(config)
    experiment = build(config)
    runs = {COMPILED: compiled_run(experiment, (), num_steps)}
    runs[NOTEBOOK] = notebook_run(experiment, config, num_steps)
    counts = {MATMUL: _NUM_MATMULS}  # steps of a run, where they are not num_steps
    series_of = {name: run() for name, run in runs.items()}
    if importlib.util.find_spec("torch"):
        weights = np.asarray(series_of[COMPILED]["class_weights"])[: -(-num_steps // 4)]
        for num_threads, name in PYTORCH.items():
            runs[name] = pytorch_run(experiment, config, weights, num_threads)
            counts[name] = len(weights)
            series_of[name] = runs[name]()
    check_agreement(series_of, rtol=1e-9 if float64 else 1e-3)
    for probes, names in (probe_sets(config) if float64 else {}).items():
        runs[f"with {probes}"] = compiled_run(experiment, names, num_steps)
        runs[f"with {probes}"]()
    matrix = jax.random.normal(jax.random.key(0), (_MATMUL_SIZE, _MATMUL_SIZE), jnp.ones(()).dtype)
    product = jax.jit(jnp.matmul)
    runs[MATMUL] = lambda: jax.block_until_ready([product(matrix, matrix) for _ in range(_NUM_MATMULS)])
    runs[MATMUL]()
    taken = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - started) / counts.get(name, num_steps))
    return taken


def measure_program(probe_names: Iterable[str], num_steps: int) -> tuple[float, float]:
    """Return the compile time in s and the peak memory in MiB of the program; for a fresh process."""
    config = fig4.get_config()
    command_line.use_precision(config)
    experiment = build(config)
    loop, carries = program(experiment, probe_names)
    started = time.perf_counter()
    compiled = loop.lower(experiment.replica, experiment.state, carries, num_steps).compile()
    seconds = time.perf_counter() - started
    jax.block_until_ready(compiled(experiment.replica, experiment.state, carries))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
    return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)


def rows(float64: bool, taken: Mapping[str, list[float]], config: ConfigDict) -> Iterator[Row]:
    """Derive the rows of one precision from the seconds a step of each run (see `time_runs`).

    `a : b` is the speed of a over that of b; of PyTorch's two, the one with the faster median.
    """
    taken = {name: np.array(values) for name, values in taken.items()}
    row = partial(Row, "float64" if float64 else "float32")
    pytorch = [name for name in PYTORCH.values() if name in taken]
    for name in (COMPILED, NOTEBOOK, *pytorch):
        yield row(name, "steps/s", 1 / taken[name])
    if not pytorch:
        yield row("PyTorch: not installed", "steps/s")
    faster = min((taken[name] for name in pytorch), key=np.median, default=None)
    ratio = () if faster is None else faster / taken[COMPILED]
    yield row("compiled : PyTorch", "times", ratio, (">=", 5 if float64 else 12))
    yield row("compiled : notebook", "times", taken[NOTEBOOK] / taken[COMPILED])

    widths = (2, *config.model.hidden_widths, config.dataset.num_classes)  # a spiral lies in the plane
    flops = step_flops(config.dataset.num_classes * config.dataset.examples_per_class, widths)
    rate = 2 * _MATMUL_SIZE**3 / taken[MATMUL]
    yield row(MATMUL, "Gflop/s", rate / 1e9)
    yield row(f"bound, {flops / 1e3:.0f} kflop/step", "steps/s", rate / flops)
    yield row("compiled : bound", "%", 100 * flops / taken[COMPILED] / rate, (">=", 25))

    for probes in probe_sets(config) if float64 else ():
        cost = taken[f"with {probes}"] - taken[COMPILED]
        yield row(f"with {probes}", "steps/s", 1 / taken[f"with {probes}"])
        yield row(f"cost of {probes}", "us/step", 1e6 * cost)
        target = ("<=", 30) if probes == "all probes" else None
        yield row(f"{probes}, whole run", "s", config.num_steps * cost, target)


def benchmark(path: Path, repeats: int, num_steps: int) -> list[Row]:
    """Measure all rows of the run of Fig. 4 and write them to a JSON file."""
    config, found = fig4.get_config(), []
    with Console(stderr=True).status("measuring: takes minutes"):
        # first, while this process is small: on Linux a child's peak starts from its parent's
        sets = {"no probes": (), "all probes": tuple(config.probes)}
        programs = [
            [in_fresh_process(measure_program, names, num_steps) for names in sets.values()]
            for _ in range(repeats)
        ]
        for label, (seconds, peaks) in zip(sets, np.transpose(programs, (1, 2, 0)), strict=True):
            found.append(Row("float64", f"compile, {label}", "s", seconds, ("<", 10)))
            found.append(Row("float64", f"memory, {label}", "MiB", peaks))
        for float64 in (True, False):
            found += rows(float64, in_fresh_process(time_runs, float64, repeats, num_steps), config)
    content = {"steps": num_steps, "rows": [row.as_json() for row in found]}
    files.write_json(path, header(repeats) | content)
    return found


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Return what a function returns in a new process."""
    context = multiprocessing.get_context("spawn")
    # at an interrupt the child dies in silence
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        return pool.submit(function, *args).result()
