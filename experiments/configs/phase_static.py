"""Loss and sharpness along training under the static cross-entropy: Fig. 1 of the second paper.

`python -m experiments.figure phase_static --launcher=local`, 2 minutes on two cores. Three widths, two
learning rates, means over 20 seeds [text]. Sizes, rates, spiral and steps are [ours]: they could not be read.
The sharpness is measured at an odd distance of steps, so that both parities of an oscillation are met.
"""

from experiments.configs import phase_amplitude_period
from experiments.sweep.axes import axis, record

FIGURE = "static_width_rate"
reduce, in_words = phase_amplitude_period.reduce, phase_amplitude_period.in_words
_SLOW, _FAST = ({"width": 50, "learning_rate": rate, "step": 19_899} for rate in (0.3, 3.0))
EXPECTED = (  # in nat; the thresholds are 6.67 and 0.667
    ("sharpness_mean", _SLOW, 9.12, 8.0, 10.3, "[ours], P2 [text]: up to 2 / rate"),
    ("sharpness_mean", _FAST, 0.266, 0.0, 0.5, "[ours]"),
)
# scale: widths, learning rates, seeds, steps, steps between two measurements
_SIZES = {
    "smoke": ((4, 8), (0.3, 1.0), 3, 60, 11),
    "small": ((10, 50, 250), (0.3, 3.0), 20, 20_000, 201),
    "paper": ((10, 50, 250, 1000), (0.1, 0.3, 1.0, 3.0), 20, 70_000, 201),
}


def get_config(scale="small"):
    """Return the network of Fig. 4 in float32 under the static loss, with its sharpness."""
    config = phase_amplitude_period.get_config(scale)
    config.num_steps, config.stop_after = _SIZES[scale][3], 0
    config.model.hidden_widths = (100,)
    config.schedule = dict(name="constant")
    config.probes = dict(hessian=dict(every=_SIZES[scale][4], num=1, tol=1e-3))
    return config


def sweep(scale, part=1):
    """Vary width, learning rate and seed; of the seeds take one `part`-th."""
    widths, rates, num_seeds, *_ = _SIZES[scale]
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("seed", range(num_seeds // part), "seed", "dataset.seed")
    yield record("series", "loss", "accuracy", "hessian_eigenvalues")


def sweep_control(scale):
    """Take half of the seeds once more in float64, of which the last values are kept."""
    return *sweep(scale, part=2), phase_amplitude_period.DOUBLE, record("final", "accuracy")
