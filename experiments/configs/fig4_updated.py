"""Fig. 4 with the authors' updated initialisation: Glorot-normal kernels, biases ~ N(0, 0.01^2).

    .venv/bin/python -m experiments.figure fig4_updated

All values are read in the authors' updated notebook, unless marked [ours].
"""

from ml_collections import ConfigDict

FIGURE = "fig4"

# (variable, step, expected, least, most, source)
EXPECTED = (("accuracy", 69_999, 0.993, 0.98, 1.0, "P1 [fig]"),)


def get_config() -> ConfigDict:
    """Return the configuration of the figure."""
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = 70_000
    config.steps_per_chunk = 2_000  # [ours] steps between two commits
    config.checkpoints_kept = 2  # of the newest: one to resume from, one if that is damaged
    config.dataset = dict(
        name="spiral", num_classes=3, examples_per_class=100, num_turns=2.0, noise=0.2, seed=0
    )
    config.model = dict(
        name="mlp", hidden_widths=(100,), activation="relu", initialization="updated", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=5_000, hold_step=True)
    config.stop_after = 65_013  # the last switch of class, 13 * 5001: quiet from here on
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(
        hessian=dict(every=25, num=3, tol=1e-3),  # num and tol [ours]: the authors took one
        ntk=dict(every=1, num=3, num_examples=50),  # num [ours]; the first 50 are all of class 0
    )
    return config
