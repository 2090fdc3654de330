"""What a tracker will cost, told before the run in gradients, and measured after it."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf.train import init_carries
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

    @property
    def seconds(self) -> float:
        """All measurements, in seconds."""
        return self.gradients * self.seconds_per_gradient

    def __str__(self) -> str:
        return (
            f"{self.num_measurements:,} measurements of about {self.gradients_per_measurement:.0f} gradients "
            f"each: {self.gradients:,.0f} gradients, {self.seconds:.0f} s"
        )


def estimate(config: ConfigDict, probe: str = "tracker") -> Cost:
    """Estimate what a probe costs over a run, from its first measurements: trained with it and without it."""
    experiment = build(config)
    every = experiment.run.probes[probe].every
    num_steps = min(_NUM_MEASUREMENTS * every, config.num_steps)
    alone, together = (_seconds(experiment, names, num_steps) for names in ((), (probe,)))
    gradient, each = alone / num_steps, (together - alone) / -(-num_steps // every)
    return Cost(-(-config.num_steps // every), each / gradient, gradient)


def program(experiment: Experiment, names: Iterable[str] = ()) -> tuple[Callable, tuple]:
    """Return the compiled loop with some of the probes, and its arguments up to the number of steps."""
    carries = init_carries({name: experiment.run.probes[name] for name in names}, experiment.state)
    return make_loop(experiment, names), (experiment.replica, experiment.state, carries)


def _seconds(experiment: Experiment, names: tuple[str, ...], num_steps: int) -> float:
    """Return the median time of the first steps with some of the probes, compiled before."""
    (loop, arguments), taken = program(experiment, names), []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(loop(*arguments, num_steps))
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))
