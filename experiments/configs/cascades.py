"""The run of Fig. 4 with all that tells when it becomes unstable, why, and when that ends.

    make cascades

The training is that of experiments/configs/fig4.py, to the bit; its probes are others. All of them are
[ours], and so are their settings.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the configuration of the run."""
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = 70_000
    config.steps_per_chunk = 2_000
    config.checkpoints_kept = 35  # all: the second pass starts from them
    config.dataset = dict(
        name="spiral", num_classes=3, examples_per_class=100, num_turns=2.0, noise=0.2, seed=0
    )
    config.model = dict(
        name="mlp", hidden_widths=(100,), activation="relu", initialization="original", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=5_000, hold_step=True)
    config.stop_after = 65_013  # the last switch of class, 13 * 5001: quiet from here on
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(
        tracker=dict(every=25, num=3, tol=1e-3),
        lyapunov=dict(num=1),
        ntk=dict(every=5, num=1, num_examples=50),
        forecast=dict(every=500, num=2, tol=1e-3),
    )
    return config
