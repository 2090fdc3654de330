"""The whole path of Fig. 4 in a few seconds: for tests, the tour and the notebook.

    .venv/bin/python -m experiments.figure tiny

All values are [ours]: a small network and short periods, in which the loss still oscillates.
"""

from ml_collections import ConfigDict

FIGURE = "fig4"

# (variable, step, expected, least, most, source)
EXPECTED = (
    ("loss", 50, 0.2721, 0.270, 0.275, "[ours]"),
    ("loss", 151, 0.2023, 0.200, 0.205, "[ours]"),
    ("accuracy", 599, 0.967, 0.95, 1.0, "[ours]"),
)


def get_config() -> ConfigDict:
    """Return the configuration of the figure."""
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = 600
    config.steps_per_chunk = 100  # steps between two commits
    config.checkpoints_kept = 2  # of the newest: one to resume from, one if that is damaged
    config.dataset = dict(
        name="spiral", num_classes=3, examples_per_class=20, num_turns=0.5, noise=0.2, seed=0
    )
    config.model = dict(
        name="mlp", hidden_widths=(16,), activation="relu", initialization="original", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=5.0, period=100, hold_step=True)
    config.stop_after = 505  # the last switch of class, 5 * 101: quiet from here on
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(
        hessian=dict(every=10, num=3, tol=1e-3),
        ntk=dict(every=1, num=3, num_examples=10),
    )
    return config
