"""Sharpness at the onset of the first instability over width and learning rate.

`experiments.figure cascade_rates --launcher=local`, 76 minutes on a quarter of one core. The first paper
says that the threshold depends on the learning rate and not on the width [text]. Widths, rates, seeds, and
three turns of the run of Fig. 4 are [ours].
"""

from analysis.findings import first_onsets
from experiments.configs import fig4
from experiments.sweep.axes import axis, record

FIGURE, reduce, in_words = "threshold_rate", first_onsets.reduce, first_onsets.in_words
EXPECTED = (
    ("least_ratio", {}, 0.848, 0.8, 0.92, "[ours], P1 [text]: 1"),
    ("largest_ratio", {}, 1.011, 0.95, 1.07, "[ours], P1 [text]: 1"),
    ("largest_visible_ratio", {}, 1.159, 1.04, 1.3, "[ours], P1 [text]: 1"),
    ("least_visible_ratio", {}, 1.014, 0.96, 1.06, "[ours], P1 [text]: 1"),
)
# scale: widths, learning rates, seeds, steps of a turn, steps between two measurements, examples per class
_SIZES = {
    "smoke": ((4, 8), (0.5, 1.0), 2, 100, 10, 10),
    "small": ((30, 100, 300, 1000), (0.25, 0.5, 1.0, 2.0, 4.0), 10, 5_000, 50, 100),
    "paper": ((30, 100, 300, 1000, 3000), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0), 20, 5_000, 25, 100),
}


def get_config(scale="small"):
    """Return three turns of the run of Fig. 4, with the stability ratio along them."""
    *_, period, every, examples = _SIZES[scale]
    config = fig4.get_config(num_turns=3, period=period)
    config.steps_per_chunk, config.stop_after = 1_000, config.num_steps
    config.dataset.examples_per_class = examples
    config.probes = dict(stability=dict(every=every, tol=1e-3))
    return config


def sweep(scale):
    """Vary width, learning rate and seed, which draws data and first parameters."""
    widths, rates, num_seeds, *_ = _SIZES[scale]
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("series", "loss", "class_weights", "sharpness", "stability_ratio")
