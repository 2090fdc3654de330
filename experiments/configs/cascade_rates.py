"""Sharpness at the onset of the first instability over width and learning rate.

    make cascades

The first paper says that the threshold depends on the learning rate and not on the width [text]. Widths,
rates, seeds, and three turns of the run of Fig. 4 in float32 are [ours].
"""

from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

# scale: widths, learning rates, seeds, turns of a class, steps of a turn, steps between two measurements
_SIZES = {
    "smoke": ((4, 8), (0.5, 1.0), 2, 3, 100, 10),
    "small": ((30, 100, 300, 1000), (0.25, 0.5, 1.0, 2.0, 4.0), 10, 3, 5_000, 50),
    "paper": ((30, 100, 300, 1000, 3000), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0), 20, 3, 5_000, 25),
}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration that the sweep varies."""
    *_, num_turns, period, every = _SIZES[scale]
    config = ConfigDict()
    config.seed = 0
    config.float64 = False
    config.num_steps = num_turns * period
    config.steps_per_chunk = 1_000
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
    config.schedule = dict(name="triangular", amplitude=70.0, period=period, hold_step=True)
    config.stop_after = config.num_steps
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(stability=dict(every=every, tol=1e-3))
    return config


def sweep(scale: str):
    """Vary width, learning rate and seed."""
    widths, rates, num_seeds, *_ = _SIZES[scale]
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("series", "loss", "sharpness", "stability_ratio")
