"""The run of Fig. 4 beside the same of the linearised network: what of a dynamical loss is lazy?

    make lazy

Data, network, loss, schedule and the learning rate of 1 are those of experiments/configs/fig4.py. The
linearised network f(theta_0) + J (theta - theta_0), the rate of 2, the static twins, seeds and probes are
[ours]. One run of it:

    .venv/bin/python -m experiments.train --config=experiments/configs/lazy_rich.py --workdir=results/lazy_run
"""

from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

# scale: seeds, turns of a class, steps of a turn, hidden width, examples per class, steps between probes
_SIZES = {
    "smoke": (2, 7, 100, 16, 20, 10),
    "small": (10, 14, 5_000, 100, 100, 100),
    "paper": (50, 14, 5_000, 100, 100, 50),
}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration that the sweep varies."""
    _, class_turns, period, width, examples, every = _SIZES[scale]
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = class_turns * period
    config.steps_per_chunk = 2_000
    config.checkpoints_kept = 2  # of the newest: one to resume from, one if that is damaged
    config.dataset = dict(
        name="spiral",
        num_classes=3,
        examples_per_class=examples,
        num_turns=0.5 if scale == "smoke" else 2.0,
        noise=0.2,
        seed=0,
    )
    config.model = dict(
        name="mlp", hidden_widths=(width,), activation="relu", initialization="original", use_bias=True,
        linearized=True,
    )  # fmt: skip
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=period, hold_step=True)
    config.stop_after = (class_turns - 1) * (period + 1)  # the last switch of class: quiet from here on
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(
        stability=dict(every=every, tol=1e-3),
        ntk=dict(every=every, num=1, num_examples=min(50, 3 * examples)),
        validation=dict(every=every),
    )
    return config


def sweep(scale: str):
    """Vary the network (real, linearised), the learning rate, the loss (static, dynamical) and the seed."""
    yield axis("linearized", (False, True), "model.linearized")
    yield axis("learning_rate", (1.0, 2.0), "optimizer.learning_rate")
    yield axis("amplitude", (1.0, 70.0), "schedule.amplitude")
    yield axis("seed", range(_SIZES[scale][0]), "seed", "dataset.seed")
    yield record(
        "series", "loss", "accuracy", "sharpness", "stability_ratio", "ntk_eigenvalues", "validation_accuracy"
    )


def sweep_easier(scale: str):
    """Vary loss and seed of the linearised network on a spiral of one turn, which it can learn."""
    yield axis("num_turns", (1.0,), "dataset.num_turns")
    yield axis("amplitude", (1.0, 70.0), "schedule.amplitude")
    yield axis("seed", range(_SIZES[scale][0]), "seed", "dataset.seed")
    yield record("final", "accuracy", "validation_accuracy")
