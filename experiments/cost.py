"""What a tracker will cost, told before the run in gradients, and measured after it."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf.types import Probe, TrainState
from experiments.build import Experiment, build

_NUM_MEASUREMENTS = 40  # timed: four audits among them
_REPEATS = 3


class Cost(NamedTuple):
    """The cost of a probe over a run: a gradient is one of F, as a training step takes it."""

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
    """Estimate what a probe costs over a run, from its time at the first parameters.

    The class weights move on as in the run while the parameters stand still, and the probe keeps its
    memory, so that warm starts and audits are in it.
    """
    experiment = build(config)
    chosen = experiment.run.probes[probe]
    measured = _seconds(_measurements(experiment, probe), experiment) / _NUM_MEASUREMENTS
    num_gradients = 50 * _NUM_MEASUREMENTS
    gradient = _seconds(_gradients(experiment, num_gradients), experiment) / num_gradients
    num_measurements = -(-config.num_steps // chosen.every)
    return Cost(num_measurements, measured / gradient, gradient)


def gradient_seconds(config: ConfigDict, num_gradients: int = 2_000) -> float:
    """Return the time of one gradient of F in a compiled loop."""
    experiment = build(config)
    return _seconds(_gradients(experiment, num_gradients), experiment) / num_gradients


def _measurements(experiment: Experiment, name: str) -> Callable:
    every = experiment.run.probes[name].every

    @jax.jit
    def run(replica):
        probe: Probe = experiment.assemble(replica).probes[name]
        first: TrainState = experiment.assemble(replica).state

        def body(index, carry):
            state = first._replace(step=(index * every).astype(first.step.dtype))
            return probe.measure(carry, state)[0]

        return jax.lax.fori_loop(0, _NUM_MEASUREMENTS, body, probe.init(first))

    return run


def _gradients(experiment: Experiment, num: int) -> Callable:
    @jax.jit
    def run(replica):
        assembled = experiment.assemble(replica)
        return jax.lax.fori_loop(0, num, lambda _, state: assembled.step_fn(state)[0], assembled.state)

    return run


def _seconds(run: Callable, experiment: Experiment) -> float:
    """Return the median time of a compiled function, which it has been called before."""
    jax.block_until_ready(run(experiment.replica))
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(run(experiment.replica))
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
