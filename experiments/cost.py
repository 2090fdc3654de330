"""What a tracker will cost, told before the run in gradients, and measured after it."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf.train import init_carries
from dlf.types import Probe
from experiments.build import Experiment, build, make_loop

_NUM_MEASUREMENTS = 40  # four audits among them
_REPEATS = 3


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


def estimate(config: ConfigDict, probe: str = "tracker") -> Cost:
    """Estimate what a probe costs over a run, from its first measurements: trained with it and without it."""
    experiment = build(config)
    probes = {probe: experiment.run.probes[probe]}
    every = probes[probe].every
    num_steps = min(_NUM_MEASUREMENTS * every, config.num_steps)
    alone, together = (loop_seconds(experiment, chosen, num_steps) for chosen in ({}, probes))
    gradient, each = alone / num_steps, (together - alone) / -(-num_steps // every)
    return Cost(-(-config.num_steps // every), each / gradient, gradient)


def gradient_seconds(config: ConfigDict, num_gradients: int = 2_000) -> float:
    """Return the time of a training step alone, in a compiled loop."""
    return loop_seconds(build(config), {}, num_gradients) / num_gradients


def loop_seconds(
    experiment: Experiment, probes: Mapping[str, Probe], num_steps: int, further: bool = False
) -> float:
    """Return the median time of the first steps with some of the probes, or of those `further` on."""
    loop, state = make_loop(experiment, probes), experiment.state
    carries, taken = init_carries(probes, state), []
    for _ in range(1 + _REPEATS):  # the first one compiles
        started = time.perf_counter()
        after = jax.block_until_ready(loop(experiment.replica, state, carries, num_steps))
        taken.append(time.perf_counter() - started)
        state, carries = after[:2] if further else (state, carries)
    return float(np.median(taken[1:]))
