"""The run of Fig. 4 with all that tells when it becomes unstable, why, and when that ends.

    make cascades

The training is that of experiments/configs/fig4.py, to the bit; its probes are others. All probes and their
settings are [ours]. `static` is the same under the static loss, A = 1.
"""

from ml_collections import ConfigDict

# scale: turns of a class, steps of a turn, hidden width, examples per class
_SIZES = {"smoke": (6, 100, 16, 20), "small": (14, 5_000, 100, 100), "paper": (14, 5_000, 100, 100)}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration of the run."""
    num_turns, period, width, examples = _SIZES[scale]
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = num_turns * period
    config.steps_per_chunk = 2 * period // 5
    config.checkpoints_kept = config.num_steps // config.steps_per_chunk  # all: for the second pass
    config.dataset = dict(
        name="spiral",
        num_classes=3,
        examples_per_class=examples,
        num_turns=0.5 if scale == "smoke" else 2.0,
        noise=0.2,
        seed=0,
    )
    config.model = dict(
        name="mlp", hidden_widths=(width,), activation="relu", initialization="original", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=period, hold_step=True)
    config.stop_after = (num_turns - 1) * (period + 1)  # the last switch of class: quiet from here on
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(
        # a multiple of all periods: two measurements lie on one branch
        tracker=dict(every=32, num=3, tol=1e-3),
        stability=dict(every=max(period // 100, 10), tol=1e-3),
        lyapunov=dict(num=1),
        ntk=dict(every=5, num=1, num_examples=50),
        forecast=dict(every=period // 10, num=2, tol=1e-3),
    )
    return config


def static(scale: str = "small") -> ConfigDict:
    """Return the configuration of the same run under the static loss."""
    config = get_config(scale)
    config.schedule.amplitude = 1.0
    names = ("tracker", "stability", "lyapunov")
    config.probes = {name: config.probes[name].to_dict() for name in names}
    return config
