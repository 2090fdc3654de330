"""Accuracy and final sharpness over width and learning rate, dynamical against static loss: first paper.

    .venv/bin/python -m experiments.phase_diagram phase_width_rate

The network and its data are those of Fig. 4 [code]; amplitude and period are [ours], chosen from the
diagram of `phase_amplitude_period.py`, and so are the grid, the seeds, the validation set, class weights of
one for the last tenth of the steps, and float32.
"""

import numpy as np
from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

FIGURE = "width_rate"
AMPLITUDE, PERIOD = 15.85, 1_259  # [ours], the best validation accuracy of phase_amplitude_period.py

# scale: widths, number of learning rates, seeds, steps
_SIZES = {
    "smoke": ((4, 8), 2, 3, 60),
    "small": ((5, 10, 20, 40, 80, 160), 8, 10, 35_000),
    "paper": ((3, 5, 8, 13, 20, 32, 50, 80, 126, 200, 316, 500), 16, 50, 35_000),
}
_RECORD = ("loss", "accuracy", "validation_accuracy", "hessian_eigenvalues")


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
        name="mlp", hidden_widths=(100,), activation="relu", initialization="original", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=AMPLITUDE, period=PERIOD, hold_step=True)
    config.stop_after = num_steps * 9 // 10
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(  # at the first and the last row
        validation=dict(every=num_steps), hessian=dict(every=num_steps, num=1, tol=1e-3)
    )
    return config


def _axes(scale: str, skip: int):
    widths, num_rates, num_seeds, _ = _SIZES[scale]
    rates = np.logspace(-1, 1.5, num_rates).round(3)
    yield axis("amplitude", (1.0, AMPLITUDE), "schedule.amplitude")
    yield axis("width", widths[skip::2] if skip else widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates[skip::2] if skip else rates, "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("final", *_RECORD)


def sweep(scale: str):
    """Vary width, learning rate and seed, under the static loss (amplitude 1) and the dynamical one."""
    yield from _axes(scale, skip=0)


def sweep_control(scale: str):
    """Every other width and learning rate once more in float64."""
    yield from _axes(scale, skip=1)
    yield axis("precision", ("double",), lambda _: {"float64": True})
