"""The whole path of Fig. 4 in ten seconds: for tests, the tour and the notebook.

`python -m experiments.figure tiny`. All values are [ours]: a small network and short periods, in which the
loss still oscillates.
"""

from experiments.configs import fig4

FIGURE, reduce = fig4.FIGURE, fig4.reduce
EXPECTED = (
    ("loss", 50, 0.2721, 0.270, 0.275, "[ours]"),
    ("loss", 151, 0.2023, 0.200, 0.205, "[ours]"),
    ("accuracy", 599, 0.967, 0.95, 1.0, "[ours]"),
)


def get_config():
    """Return six turns of a hundred steps of a small network."""
    config = fig4.get_config(num_turns=6, period=100)
    config.steps_per_chunk = 100
    config.dataset.update(examples_per_class=20, num_turns=0.5)
    config.model.hidden_widths = (16,)
    config.schedule.amplitude = 5.0
    config.probes.hessian.every, config.probes.ntk.num_examples = 10, 10
    return config
