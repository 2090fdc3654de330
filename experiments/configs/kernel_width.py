"""Distance of the empirical NTK from that of infinite width, over the width, before and while it learns.

`experiments.figure kernel_width --launcher=local`, 7 minutes on two cores. The network of Fig. 4 under its
dynamical loss. The papers have no such figure: widths, rates, seeds and the turn of 1,000 steps are [ours].
`sweep` keeps the learning rate of the papers' diagrams; `sweep_scaled` lets it fall as 1 / width, from 1 at
width 100.
"""

from analysis.findings import kernel_limits
from analysis.infinite_width import infinite_ntk
from analysis.probes.measures import evenly
from dlf.schedules import steps_per_cycle
from experiments.build import draw
from experiments.configs import fig4
from experiments.sweep.axes import axis, record

NEURAL_TANGENTS = True  # is needed
FIGURE, reduce, in_words = "kernel_width", kernel_limits.reduce, kernel_limits.in_words
EXPECTED = (
    ("slope", {"rate": "scaled", "cycles": 1}, -0.67, -0.92, -0.42, "[ours]"),
    ("slope", {"rate": "scaled", "cycles": 5}, -0.56, -0.75, -0.37, "[ours]"),
    ("initial_slope", {}, -0.501, -0.54, -0.46, "[ours], -1/2 in theory"),
)
# scale: widths, seeds, further widths and seeds at the first parameters, steps of a turn, data, kernel size
_SIZES = {
    "smoke": ((8, 16), 3, (32, 64), 20, 20, 10, 15),
    "small": ((30, 100, 300, 1000, 3000), 10, (10000,), 100, 1_000, 100, 100),
    "paper": ((30, 100, 300, 1000, 3000, 10000), 20, (30000,), 100, 5_000, 100, 100),
}


def get_config(scale="small"):
    """Return five cycles in float32, with the kernel before the first and after each."""
    *_, period, examples, num_examples = _SIZES[scale]
    config = fig4.get_config(num_turns=5 * 3, period=period)  # five cycles
    config.float64 = False
    config.num_steps += 1  # the last kernel is that of the last row
    config.stop_after = config.num_steps
    config.dataset.examples_per_class = examples
    config.schedule.hold_step = False
    every = steps_per_cycle(config.dataset.num_classes, period)
    config.probes = dict(kernel=dict(every=every, num_examples=num_examples))
    return config


def sweep(scale, power=0.0, num_seeds=None, further_widths=(), **settings):
    """Vary the width and the first parameters; the learning rate goes as width ** -power."""

    def of_width(width):
        return {"model.hidden_widths": (width,), "optimizer.learning_rate": (100 / width) ** power} | settings

    yield axis("width", (*_SIZES[scale][0], *further_widths), of_width)
    yield axis("seed", range(num_seeds or _SIZES[scale][1]), "seed")  # the data are those of Fig. 4
    yield record("series", "empirical_ntk")


def sweep_scaled(scale):
    """Vary the width and the first parameters; the learning rate goes as 1 / width."""
    return sweep(scale, power=1.0)


def sweep_initial(scale):
    """Vary the width and the first parameters more, without training."""
    return sweep(scale, 0.0, _SIZES[scale][3], _SIZES[scale][2], num_steps=1)


def measure(config, results, folder):
    """Compute the kernel that the network's tends to, at every width of the sweep "initial"."""
    inputs = evenly(draw(config).train.inputs, config.probes.kernel.num_examples)
    network = {key: config.model[key] for key in ("activation", "initialization", "use_bias")}
    widths = results["initial"]["width"].values.tolist()
    return kernel_limits.labelled({width: infinite_ntk((width,), **network)(inputs) for width in widths})
