"""How far chaotic trajectories spread: the numbers to expect, over runs that start 1e-12 apart."""

from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.benchmark.baselines import program
from experiments.build import build


def spread(config: ConfigDict, expected: tuple, num_runs: int) -> list[dict[str, Any]]:
    """Train from initial parameters that differ by 1e-12 and collect the numbers to expect.

    Run 0 is not perturbed. Each row holds one number of `expected` (as in experiments/configs)
    with its `values`, one a run, and their mean, extremes and relative standard deviation.
    """
    experiment = build(config)
    loop, carries = program(experiment)
    flat, unravel = ravel_pytree(experiment.state.params)
    values = []
    for run in track(range(num_runs), "training", console=Console(stderr=True)):
        noise = jax.random.normal(jax.random.fold_in(experiment.problem.key, run), flat.shape, flat.dtype)
        state = experiment.state._replace(params=unravel(flat + (1e-12 * noise if run else 0)))
        series = loop(experiment.replica, state, carries, config.num_steps)[2]
        values.append([float(series[variable][step]) for variable, step, *_ in expected])
    found = []
    for (variable, step, authors, *_), column in zip(expected, np.transpose(values), strict=True):
        row = {"variable": variable, "step": step, "authors": authors}
        row |= {"min": column.min(), "mean": column.mean(), "max": column.max()}
        found.append(row | {"relative_std": column.std(ddof=1) / column.mean(), "values": column.tolist()})
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """Lay out the rows of `spread`."""
    layout = Table("quantity", "step", "authors", "min", "mean", "max", "rel. std")
    for row in found:
        numbers = (f"{row[key]:.4g}" for key in ("authors", "min", "mean", "max"))
        layout.add_row(row["variable"], f"{row['step']:,}", *numbers, f"{row['relative_std']:.2%}")
    return layout
