"""Cost of the tracker, the Lyapunov exponent and the period labels on the run of Fig. 4.

Training alone, with the tracker and with the exponent of every step are run in turn, whole, from the
first step to the last, since the tracker's work depends on what the run does. What compares two of them is
taken within a repeat, then the median.
"""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from analysis import cascades
from dlf.store import files
from dlf.train import init_carries
from experiments import command_line
from experiments.benchmark.report import Row, header
from experiments.build import build, make_loop
from experiments.cascades import cost
from experiments.configs import cascades as config_cascades

_SETS = {"alone": (), "tracker": ("tracker",), "exponent": ("lyapunov",)}


def measure(repeats: int, num_steps: int | None = None) -> list[Row]:
    """Time all, and return the rows; fewer steps only to try it."""
    config = config_cascades.get_config()
    config.num_steps = num_steps or config.num_steps
    command_line.use_precision(config)
    experiment = build(config)
    runs = {}
    for name, probes in _SETS.items():
        loop = make_loop(experiment, probes)
        carries = init_carries({probe: experiment.run.probes[probe] for probe in probes}, experiment.state)
        runs[name] = loop, carries
        jax.block_until_ready(loop(experiment.replica, experiment.state, carries, config.num_steps))
    taken, found = {name: [] for name in runs}, {}
    estimates, gradients, labelling = [], [], []
    for _ in range(repeats):
        estimates.append(cost.estimate(config))
        gradients.append(cost.gradient_seconds(config))
        for name, (loop, carries) in runs.items():
            started = time.perf_counter()
            result = loop(experiment.replica, experiment.state, carries, config.num_steps)
            _, _, found[name] = jax.block_until_ready(result)
            taken[name].append(time.perf_counter() - started)
        loss, growth = (
            np.asarray(found["exponent"]["loss"]),
            np.asarray(found["exponent"]["log_growth"])[:, 0],
        )
        started = time.perf_counter()
        cascades.label(loss, growth)
        labelling.append(time.perf_counter() - started)
    seconds = {name: np.array(values) for name, values in taken.items()}
    matvecs = np.asarray(found["tracker"]["tracked_matvecs"])
    return _rows(seconds, config.num_steps, estimates, np.array(gradients), labelling, matvecs)


def _rows(seconds, num_steps, estimates, gradients, labelling, matvecs):
    alone, tracker = seconds["alone"], seconds["tracker"] - seconds["alone"]
    exponent = (seconds["exponent"] - alone) / alone
    measured = tracker / gradients
    printed = np.array([estimate.gradients for estimate in estimates])
    off = 100 * abs(np.median(printed / measured) - 1)
    row = partial(Row, "float64")
    return [
        row("training alone", "s", alone),
        row("training alone", "us/step", 1e6 * alone / num_steps),
        row("tracker over training alone", "times", tracker / alone),
        row("tracker, whole run", "s", tracker),
        row("its Hessian products a measurement", "1", (np.nanmean(matvecs),)),
        row("tracker, measured", "gradients", measured),
        row("tracker, printed before", "gradients", printed),
        row("|printed : measured - 1|", "%", (off,), ("<=", 20)),
        row("exponent of every step over alone", "times", exponent, ("<=", 4)),
        row(f"labels of {num_steps:,} steps", "s", labelling, ("<", 1)),
    ]


def benchmark(path: Path, repeats: int) -> list[Row]:
    """Measure all rows and write them to a JSON file."""
    with Console(stderr=True).status("measuring: takes minutes"):
        found = measure(repeats)
    files.write_json(path, header(repeats) | {"rows": [row.as_json() for row in found]})
    return found
