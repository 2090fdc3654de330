"""Distance of the empirical NTK from that of infinite width, over the width, before and while it learns.

    make lazy

The spiral network of experiments/configs/fig4.py under its dynamical loss, with a shorter turn. The papers
have no such figure: widths, rates, seeds and the turn of 1,000 steps are [ours]. `sweep` keeps the learning
rate of the papers' diagrams at every width; `sweep_scaled` lets it fall as 1 / width, from 1 at width 100.
"""

from ml_collections import ConfigDict

from experiments.sweep.axes import axis, record

CYCLES = (1, 5)  # of the dynamical loss, after which the kernels are compared

POWERS = {"main": 0.0, "scaled": 1.0}  # sweep: the power of 1 / width with which the learning rate goes

# scale: widths, seeds, further widths and seeds at the first parameters, steps of a turn, examples
_SIZES = {
    "smoke": ((8, 16), 3, (32, 64), 20, 20, 15),
    "small": ((30, 100, 300, 1000, 3000), 10, (10000,), 100, 1_000, 100),
    "paper": ((30, 100, 300, 1000, 3000, 10000), 20, (30000,), 100, 5_000, 100),
}


def get_config(scale: str = "small") -> ConfigDict:
    """Return the configuration that the sweeps vary."""
    *_, period, num_examples = _SIZES[scale]
    num_classes = 3
    config = ConfigDict()
    config.seed = 0
    config.float64 = False
    config.num_steps = CYCLES[-1] * num_classes * period + 1  # the last kernel is that of the last row
    config.steps_per_chunk = 2_000
    config.checkpoints_kept = 2  # of the newest: one to resume from, one if that is damaged
    config.dataset = dict(
        name="spiral",
        num_classes=num_classes,
        examples_per_class=10 if scale == "smoke" else 100,
        num_turns=2.0,
        noise=0.2,
        seed=0,
    )
    config.model = dict(
        name="mlp", hidden_widths=(100,), activation="relu", initialization="original", use_bias=True
    )
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=70.0, period=period, hold_step=False)
    config.stop_after = config.num_steps
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.probes = dict(kernel=dict(every=num_classes * period, num_examples=num_examples))
    return config


def learning_rate(width: int, power: float) -> float:
    """Return the learning rate of a width: that of `get_config` at a width of 100."""
    return (100 / width) ** power * get_config().optimizer.learning_rate


def _axes(widths, num_seeds, power, **further):
    def of_width(width):
        rate = learning_rate(width, power)
        return {"model.hidden_widths": (width,), "optimizer.learning_rate": rate, **further}

    yield axis("width", widths, of_width)
    yield axis("seed", range(num_seeds), "seed")  # of the first parameters; the data are those of Fig. 4
    yield record("series", "empirical_ntk")


def sweep(scale: str):
    """Vary the width and the first parameters at one learning rate."""
    widths, num_seeds, *_ = _SIZES[scale]
    yield from _axes(widths, num_seeds, POWERS["main"])


def sweep_scaled(scale: str):
    """Vary the width and the first parameters, with a learning rate that falls as 1 / width."""
    widths, num_seeds, *_ = _SIZES[scale]
    yield from _axes(widths, num_seeds, POWERS["scaled"])


def sweep_initial(scale: str):
    """Vary the width and the first parameters more, without training."""
    widths, _, further, num_seeds, *_ = _SIZES[scale]
    yield from _axes((*widths, *further), num_seeds, POWERS["main"], num_steps=1)
