"""What a tracker costs over a run, and a second pass of it over listed windows, at every step."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from dlf import store
from dlf.recording import SERIES
from dlf.train import init_carries
from experiments.build import Experiment, build, make_loop, ready_loop
from experiments.command_line import ConfigError

_PROBE = "tracker"
_NUM_MEASUREMENTS = 40  # of which a cost is estimated: four audits among them
_REPEATS = 3
_BLOCK = 16  # steps of one compiled loop


class Cost(NamedTuple):
    """The cost of a probe over a run: a gradient is a training step, which takes one of F."""

    num_measurements: int
    gradients_per_measurement: float
    seconds_per_gradient: float

    @property
    def gradients(self) -> float:
        """All measurements, in gradients."""
        return self.num_measurements * self.gradients_per_measurement

    def __str__(self) -> str:
        each, seconds = self.gradients_per_measurement, self.gradients * self.seconds_per_gradient
        return (
            f"{self.num_measurements:,} measurements of about {each:.0f} gradients each: "
            f"{self.gradients:,.0f} gradients, {seconds:.0f} s"
        )


def estimate_cost(config: ConfigDict) -> Cost:
    """Estimate what the tracker costs over a run from its first measurements: with it and without it."""
    experiment = build(config)
    every = experiment.run.probes[_PROBE].every
    num_steps = min(_NUM_MEASUREMENTS * every, config.num_steps)
    alone, together = (loop_seconds(experiment, chosen, num_steps) for chosen in ((), (_PROBE,)))
    gradient, each = alone / num_steps, (together - alone) / -(-num_steps // every)
    return Cost(-(-config.num_steps // every), each / gradient, gradient)


def loop_seconds(experiment: Experiment, names: Iterable[str], num_steps: int) -> float:
    """Return the median time of `num_steps` steps with some of the probes, after as many that compile."""
    (loop, (replica, *going_on)), taken = ready_loop(experiment, names), []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        *going_on, _ = jax.block_until_ready(loop(replica, *going_on, num_steps))
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def measure_windows(config: ConfigDict, workdir: Path, windows: Iterable[tuple[int, int]]) -> xr.Dataset:
    """Return what the tracker of a run measures at every step of windows [start, stop), and the `loss`.

    Each window starts from the newest sound checkpoint before it, or from the first step, and is rounded to
    whole blocks of 16 steps counted from there; it starts without memory, and numbers identities anew
    (`window` counts the windows). On the machine that made the run the loss has the bits of the run.

    Raises ConfigError for a run without a tracker, or a window that is not inside of it.
    """
    windows = sorted(windows)
    if _PROBE not in config.probes:
        raise ConfigError(f"the run has no probe {_PROBE!r}, only {', '.join(config.probes)}")
    if build(config).run.step_fn.reads:
        raise ConfigError("a run whose rule reads probes has no second pass: track it at every step instead")
    for start, stop in windows:
        if not 0 <= start < stop <= config.num_steps:
            raise ConfigError(f"a window must lie within 0 to {config.num_steps}, got [{start}, {stop})")
    if not windows:
        return xr.Dataset(coords={"step": np.arange(0)})
    experiment = build(config)
    at_every_step = config.copy_and_resolve_references()
    with at_every_step.unlocked():
        at_every_step.probes = {_PROBE: {**config.probes[_PROBE].to_dict(), "every": 1}}
    tracked = build(at_every_step)
    advance, measure = make_loop(experiment, ()), make_loop(tracked)
    described = tracked.run.probes[_PROBE].series | {"loss": SERIES["loss"]}
    parts = []
    for number, (start, stop) in enumerate(windows):
        like = experiment.state, init_carries(experiment.run.probes, experiment.state)
        step, (state, _) = store.checkpoint_before(workdir, start, like) or (0, like)
        for _ in range(step, start - _BLOCK + 1, _BLOCK):
            state, _, _ = advance(experiment.replica, state, {}, _BLOCK)
        carries = init_carries(tracked.run.probes, state)
        for first in range(int(state.step), stop, _BLOCK):
            state, carries, series = measure(tracked.replica, state, carries, _BLOCK)
            part = {name: (("step", *of.dims), np.asarray(series[name])) for name, of in described.items()}
            part["window"] = ("step", np.full(_BLOCK, number))
            parts.append(xr.Dataset(part, {"step": np.arange(first, first + _BLOCK)}))
    found = xr.concat(parts, "step").drop_duplicates("step").sortby("step")
    return found.sel(step=slice(0, config.num_steps - 1))
