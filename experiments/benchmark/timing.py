"""The one loop that times, and the rows that it fills: beside their targets, as tables and as JSON.

All cases run once more in every repeat, so that a noisy machine hits all alike; what compares two of them
is taken within a repeat, then the median.
"""

import multiprocessing
import operator
import re
import resource
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MATMUL = "matrix product"
_RELATIONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}

Record = dict[str, Any]  # one line of a table, as JSON holds it


def row(case: str, quantity: str, unit: str, values: Any = np.nan, target: tuple | None = None) -> Record:
    """Return what was measured, one value a repeat or NaN: `id` names it, the target is for the median.

    >>> found = row("float32", "memory", "MiB", [3, 1, 2], ("<=", 2.5))
    >>> found["id"], found["median"], found["verdict"]
    ('float32 | memory | MiB', 2.0, 'reached')
    """
    values = [float(value) for value in np.atleast_1d(values) if not np.isnan(value)]
    median, least, most = (float(of(values)) if values else None for of in (np.median, min, max))
    verdict = "not measured" if target else ""
    if values and target:
        verdict = "reached" if _RELATIONS[target[0]](median, target[1]) else "missed"
    found = {"id": f"{case} | {quantity} | {unit}", "case": case, "quantity": quantity, "median": median}
    found |= {"min": least, "max": most, "unit": unit, "target": target}
    return found | {"verdict": verdict, "values": values}


def timed(run: Callable[[], Any], units: int = 1, window: float = 0.0) -> Callable[[], float]:
    """Return a case for `measure`: the seconds that a function takes for each of its units, steps say.

    It is called once, or again until the `window` in seconds is over.
    """

    def seconds() -> float:
        started, count, taken = time.perf_counter(), 0, 0.0
        while not count or taken < window:
            jax.block_until_ready(run())
            count, taken = count + 1, time.perf_counter() - started
        return taken / count / units

    return seconds


def measure(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """Return what each case says in each repeat; before the first, each runs once, which compiles."""
    taken = [[case() for case in cases.values()] for _ in range(1 + repeats)]
    return dict(zip(cases, np.transpose(taken[1:]), strict=True))


def fastest(times: Iterable[np.ndarray]) -> np.ndarray | float:
    """Return the times of the least median, NaN where there are none: no peer is installed."""
    return min(times, key=np.median, default=np.nan)


def matrix_product() -> tuple[Callable[[], Any], int]:
    """Return a large matrix product and its floating-point operations: the best that a machine does."""
    matrix = jax.random.normal(jax.random.key(0), (1024, 1024), jnp.ones(()).dtype)
    return partial(jax.jit(jnp.matmul), matrix, matrix), 2 * 1024**3


def fresh_process() -> ProcessPoolExecutor:
    """Return a pool of one new process, which has nothing of this one's JAX."""
    silence = (signal.SIGINT, signal.SIG_DFL)  # at an interrupt the child dies in silence
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), signal.signal, silence)


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Return what a function returns in a new process."""
    with fresh_process() as pool:
        return pool.submit(function, *args).result()


def peak_memory() -> float:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10  # rusage begins at its parent's


def words(value: Any) -> str:
    """Return a value of a record as tables show it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    parts = value if isinstance(value, list | tuple) else ["" if value is None else value]
    return " ".join(map(str, parts))
