"""Accuracy and final sharpness over width and learning rate, dynamical against static loss: first paper.

`python -m experiments.figure phase_width_rate --launcher=local`, 9 minutes on two cores. Network and data
are those of Fig. 4 [code]; amplitude, period, grid and all else of phase_amplitude_period.py are [ours].
"""

import numpy as np

from experiments.configs import phase_amplitude_period
from experiments.configs.phase_amplitude_period import DOUBLE
from experiments.sweep.axes import axis, record

FIGURE, reduce, in_words = "width_rate", phase_amplitude_period.reduce, phase_amplitude_period.in_words
AMPLITUDE, PERIOD = phase_amplitude_period.CHOSEN.values()  # [ours], among the best there
_AT = {"amplitude": AMPLITUDE, "learning_rate": 1.179}
EXPECTED = (
    ("accuracy_gain", _AT | {"width": 5}, -0.010, -0.08, 0.06, "[ours]"),
    ("accuracy_gain", _AT | {"width": 40}, 0.464, 0.36, 0.56, "[ours], P1 [text]: a gain"),
)
# scale: widths, number of learning rates, seeds
_SIZES = {
    "smoke": ((4, 8), 2, 3),
    "small": ((5, 10, 20, 40, 80, 160), 8, 10),
    "paper": ((3, 5, 8, 13, 20, 32, 50, 80, 126, 200, 316, 500), 16, 50),
}


def get_config(scale="small"):
    """Return that of phase_amplitude_period.py with one amplitude and period, and the last sharpness."""
    config = phase_amplitude_period.get_config(scale)
    config.model.hidden_widths = (100,)
    config.schedule.update(amplitude=AMPLITUDE, period=PERIOD)
    config.probes.hessian = dict(every=config.probes.validation.every, num=1, tol=1e-3)
    return config


def sweep(scale, step=1):
    """Vary width, learning rate and seed, under the static loss (amplitude 1) and the dynamical one."""
    widths, num_rates, num_seeds = _SIZES[scale]
    rates = np.logspace(-1, 1.5, num_rates).round(3)
    yield axis("amplitude", (1.0, AMPLITUDE), "schedule.amplitude")
    yield axis("width", widths[step - 1 :: step], lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates[step - 1 :: step], "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("final", "loss", "accuracy", "validation_accuracy", "hessian_eigenvalues")


def sweep_control(scale):
    """Take every other width and learning rate once more in float64."""
    return *sweep(scale, step=2), DOUBLE
