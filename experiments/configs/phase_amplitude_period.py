"""Accuracy over amplitude and period of the class weights: the spiral network of the first paper.

    .venv/bin/python -m experiments.phase_diagram phase_amplitude_period

The network, its data and the learning rate are those of Fig. 4 [code]. All else is [ours]: the grid and
the number of seeds, a validation set that is a new draw of the noise on the same arms, class weights of
one for the last tenth of the steps, and float32. A seed draws the data and the first parameters. The
static loss (amplitude 1) does not know a period: it is a sweep of its own.
"""

import numpy as np
from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

FIGURE = "amplitude_period"

# scale: amplitudes, periods, seeds, steps
_SIZES = {"smoke": (2, 2, 3, 60), "small": (10, 10, 10, 35_000), "paper": (20, 20, 50, 35_000)}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration that the sweeps vary."""
    num_steps = _SIZES[scale][-1]
    config = ConfigDict()
    config.seed = 0
    config.float64 = False
    config.num_steps = num_steps + 1  # the last row is measured after `num_steps` updates
    config.steps_per_chunk = 2_000
    config.checkpoints_kept = 2  # of the newest: one to resume from, one if that is damaged
    config.dataset = dict(
        name="spiral",
        num_classes=3,
        examples_per_class=10 if scale == "smoke" else 100,
        num_turns=2.0,
        noise=0.2,
        seed=0,
    )
    config.model = dict(
        name="mlp",
        hidden_widths=(8,) if scale == "smoke" else (100,),
        activation="relu",
        initialization="original",
        use_bias=True,
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=5_000, hold_step=True)
    config.stop_after = num_steps * 9 // 10
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(validation=dict(every=num_steps))  # at the first and the last row
    return config


def _values(scale: str) -> tuple[np.ndarray, np.ndarray, range]:
    num_amplitudes, num_periods, num_seeds, num_steps = _SIZES[scale]
    amplitudes = np.logspace(0, 2, num_amplitudes + 1)[1:].round(2)  # 1 is the static loss
    longest = np.log10(num_steps / 3.5)  # a full cycle of the three classes before the end
    periods = np.unique(
        np.logspace(1.3 if num_steps > 100 else 0.5, longest, num_periods).round().astype(int)
    )
    return amplitudes, periods, range(num_seeds)


def sweep(scale: str):
    """Vary amplitude, period and seed."""
    amplitudes, periods, seeds = _values(scale)
    yield axis("amplitude", amplitudes, "schedule.amplitude")
    yield axis("period", periods, "schedule.period")
    yield axis("seed", seeds, "seed", "dataset.seed")
    yield record("final", "loss", "accuracy", "validation_accuracy")


def sweep_static(scale: str):
    """The static loss, for the same seeds."""
    yield axis("amplitude", (1.0,), "schedule.amplitude")
    yield axis("seed", _values(scale)[2], "seed", "dataset.seed")
    yield record("final", "loss", "accuracy", "validation_accuracy")


def sweep_control(scale: str):
    """Every other amplitude and period once more in float64."""
    amplitudes, periods, seeds = _values(scale)
    yield axis("amplitude", amplitudes[1::2], "schedule.amplitude")
    yield axis("period", periods[1::2], "schedule.period")
    yield axis("seed", seeds, "seed", "dataset.seed")
    yield axis("precision", ("double",), lambda _: {"float64": True})
    yield record("final", "loss", "accuracy", "validation_accuracy")
