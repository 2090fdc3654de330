"""Accuracy over amplitude and period of the class weights: the spiral network of the first paper.

`python -m experiments.figure phase_amplitude_period --launcher=local`, 13 minutes on two cores. Network, data
and learning rate are those of Fig. 4 [code]. All else is [ours]: grid and number of seeds, a validation set
that is a new draw of the noise on the same arms, weights of one for the last tenth of the steps, float32. A
seed draws data and first parameters. The static loss (amplitude 1) does not know a period: it is a sweep of
its own.
"""

import numpy as np

from analysis.findings import diagrams
from experiments.configs import fig4
from experiments.sweep.axes import axis, record

FIGURE, reduce, in_words = "amplitude_period", diagrams.reduce, diagrams.in_words
CHOSEN = {"amplitude": 15.85, "period": 1_259}
EXPECTED = (
    ("reference_accuracy_mean", {}, 0.569, 0.40, 0.75, "[ours], P1 [text]: fails"),
    ("accuracy_mean", CHOSEN, 0.991, 0.97, 1.0, "[ours]"),
    ("validation_accuracy_mean", CHOSEN, 0.947, 0.91, 0.98, "[ours]"),
)
# scale: amplitudes, periods, seeds, steps
_SIZES = {"smoke": (2, 2, 3, 60), "small": (10, 10, 10, 35_000), "paper": (20, 20, 50, 35_000)}
FINAL = record("final", "loss", "accuracy", "validation_accuracy")
DOUBLE = axis("precision", ("double",), lambda _: {"float64": True})


def get_config(scale="small"):
    """Return the network of Fig. 4 in float32, its loss static for the last tenth of the steps."""
    num_steps = _SIZES[scale][-1]
    config = fig4.get_config()
    config.float64 = False
    config.num_steps = num_steps + 1  # the last row is measured after `num_steps` updates
    config.stop_after = num_steps * 9 // 10
    config.probes = dict(validation=dict(every=num_steps))  # at the first and the last row
    if scale == "smoke":
        config.dataset.examples_per_class, config.model.hidden_widths = 10, (8,)
    return config


def sweep(scale, step=1):
    """Vary amplitude, period and seed; of amplitudes and periods take every `step`-th."""
    num_amplitudes, num_periods, num_seeds, num_steps = _SIZES[scale]
    amplitudes = np.logspace(0, 2, num_amplitudes + 1)[1:].round(2)  # 1 is the static loss
    longest = np.log10(num_steps / 3.5)  # a full cycle of the three classes before the end
    periods = np.logspace(1.3 if num_steps > 100 else 0.5, longest, num_periods).round().astype(int)
    yield axis("amplitude", amplitudes[step - 1 :: step], "schedule.amplitude")
    yield axis("period", np.unique(periods)[step - 1 :: step], "schedule.period")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield FINAL


def sweep_static(scale):
    """Take the static loss, for the same seeds."""
    seeds = axis("seed", range(_SIZES[scale][2]), "seed", "dataset.seed")
    return axis("amplitude", (1.0,), "schedule.amplitude"), seeds, FINAL


def sweep_control(scale):
    """Take every other amplitude and period once more in float64."""
    return *sweep(scale, step=2), DOUBLE
