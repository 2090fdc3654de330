"""Accuracy against width of DCE, DMSE1 and DMSE2 beside their static parents: second paper.

`python -m experiments.figure phase_losses --launcher=local`, 5 minutes on two cores. That the gain is largest
for small networks is the paper's [text]. The formulas of DMSE1 and DMSE2, the spiral, widths, rates,
amplitude, period and steps are [ours]: they could not be read.
"""

from experiments.configs import phase_width_rate
from experiments.configs.phase_amplitude_period import DOUBLE, FINAL
from experiments.sweep.axes import axis

FIGURE, reduce, in_words = "losses_width", phase_width_rate.reduce, phase_width_rate.in_words
# [ours] a squared error has a larger curvature at the start
LEARNING_RATES = {"cross_entropy": 1.0, "dmse1": 0.3, "dmse2": 0.3}
_AT = {"amplitude": phase_width_rate.AMPLITUDE, "width": 40}
EXPECTED = (
    ("accuracy_gain", _AT | {"loss_name": "dmse1"}, 0.106, 0.02, 0.19, "[ours], P2 [text]: a gain"),
    ("accuracy_gain", _AT | {"loss_name": "dmse2"}, 0.254, 0.19, 0.32, "[ours], P2 [text]: a gain"),
    ("accuracy_gain", _AT | {"loss_name": "cross_entropy"}, 0.418, 0.34, 0.50, "[ours], P2 [text]: a gain"),
)
# scale: widths, seeds
_SIZES = {
    "smoke": ((4, 8), 3),
    "small": ((5, 10, 20, 40, 80, 160), 15),
    "paper": ((3, 5, 8, 13, 20, 32, 50, 80, 126, 200, 316, 500), 50),
}


def get_config(scale="small"):
    """Return that of phase_width_rate.py without its sharpness."""
    config = phase_width_rate.get_config(scale)
    del config.probes.hessian
    return config


def sweep(scale, num_seeds=None):
    """Vary loss, width and seed, static (amplitude 1) and dynamical."""
    widths, all_seeds = _SIZES[scale]
    chosen = {k: {"loss.name": k, "optimizer.learning_rate": rate} for k, rate in LEARNING_RATES.items()}
    yield axis("loss_name", chosen, chosen.get)
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("amplitude", (1.0, phase_width_rate.AMPLITUDE), "schedule.amplitude")
    yield axis("seed", range(num_seeds or all_seeds), "seed", "dataset.seed")
    yield FINAL


def sweep_control(scale):
    """Take three seeds once more in float64."""
    return *sweep(scale, num_seeds=3), DOUBLE
