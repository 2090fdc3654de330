"""What makes up the curvature of the run of Fig. 4, along its second turn, and of an image network.

`make curvature`, 3 minutes. The stochastic trace is to agree with the dense one within the standard error.
All is [ours].
"""

from analysis import composition
from analysis.stability import threshold
from experiments.build import build, make_loop
from experiments.configs import fig4

RUNS = {}  # what is trained is measured as it goes
FIGURE, get_config, in_words = "curvature", fig4.get_config, composition.in_words
EXPECTED = (
    ("sharpness", 5_000, 2.904, 2.8, 3.0, "[ours]"),
    ("trace_deviation", {"part": "Hessian"}, 0, -3, 3, "standard errors"),
)


def along(config, num_points=100, **settings):
    """Train for one period, and measure what makes up the curvature at points of the next one.

    `settings` are those of `analysis.composition.along`.
    """
    experiment, period = build(config), config.schedule.period
    loop = make_loop(experiment, probe_names=())

    def advance(state, num_steps=period // num_points):
        return loop(experiment.replica, state, {}, num_steps)[0]

    first = advance(experiment.state, period)
    found = composition.along(experiment.problem, first, advance, num_points, **settings)
    return found.assign_attrs(threshold=float(threshold(**config.optimizer)))


def measure(config, results, folder):
    """Measure the run along its second turn, and the image network."""
    return along(config).merge(composition.of_images(), combine_attrs="no_conflicts")


def reduce(results):
    """Return what was measured, as it is."""
    return results["measured"]
