"""Accuracy against width of DCE, DMSE1 and DMSE2 beside their static parents: second paper.

    .venv/bin/python -m experiments.phase_diagram phase_losses

That the gain is largest for small networks is the paper's [text]. The formulas of DMSE1 and DMSE2, the
spiral, widths, learning rates, amplitude, period and number of steps are [ours]: they could not be read.
"""

from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

FIGURE = "losses_width"
# [ours] a squared error has a larger curvature at the start
LEARNING_RATES = {"cross_entropy": 1.0, "dmse1": 0.3, "dmse2": 0.3}
AMPLITUDE, PERIOD = 15.85, 1_259  # [ours], the best validation accuracy of phase_amplitude_period.py

# scale: widths, seeds, steps
_SIZES = {
    "smoke": ((4, 8), 3, 60),
    "small": ((5, 10, 20, 40, 80, 160), 15, 35_000),
    "paper": ((3, 5, 8, 13, 20, 32, 50, 80, 126, 200, 316, 500), 50, 35_000),
}


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
    config.probes = dict(validation=dict(every=num_steps))  # at the first and the last row
    return config


def _axes(scale: str, num_seeds: int):
    widths = _SIZES[scale][0]
    chosen = {
        loss: {"loss.name": loss, "optimizer.learning_rate": LEARNING_RATES[loss]} for loss in LEARNING_RATES
    }
    yield axis("loss_name", chosen, chosen.get)
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("amplitude", (1.0, AMPLITUDE), "schedule.amplitude")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("final", "loss", "accuracy", "validation_accuracy")


def sweep(scale: str):
    """Vary loss, width and seed, static (amplitude 1) and dynamical."""
    yield from _axes(scale, num_seeds=_SIZES[scale][1])


def sweep_control(scale: str):
    """Three seeds once more in float64."""
    yield from _axes(scale, num_seeds=3)
    yield axis("precision", ("double",), lambda _: {"float64": True})
