"""Loss and sharpness along training under the static cross-entropy: Fig. 1 of the second paper.

    .venv/bin/python -m experiments.phase_diagram phase_static

Three widths, two learning rates, means over 20 seeds [text]. The sizes, the learning rates, the spiral and
the number of steps are [ours]: they could not be read. The sharpness is measured at an odd distance of
steps, so that both parities of an oscillation are met.
"""

from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

FIGURE = "static_width_rate"

# scale: widths, learning rates, seeds, steps, steps between two measurements
_SIZES = {
    "smoke": ((4, 8), (0.3, 1.0), 3, 60, 11),
    "small": ((10, 50, 250), (0.3, 3.0), 20, 20_000, 201),
    "paper": ((10, 50, 250, 1000), (0.1, 0.3, 1.0, 3.0), 20, 70_000, 201),
}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration that the sweeps vary."""
    *_, num_steps, every = _SIZES[scale]
    config = ConfigDict()
    config.seed = 0
    config.float64 = False
    config.num_steps = num_steps
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
    config.schedule = dict(name="constant")
    config.stop_after = 0
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(hessian=dict(every=every, num=1, tol=1e-3))
    return config


def sweep(scale: str):
    """Vary width, learning rate and seed."""
    widths, rates, num_seeds, *_ = _SIZES[scale]
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield record("series", "loss", "accuracy", "hessian_eigenvalues")


def sweep_control(scale: str):
    """Half of the seeds once more in float64, of which the last values are kept."""
    *axes, _, _ = sweep(scale)
    yield from axes
    yield axis("seed", range(_SIZES[scale][2] // 2), "seed", "dataset.seed")
    yield axis("precision", ("double",), lambda _: {"float64": True})
    yield record("final", "accuracy")
