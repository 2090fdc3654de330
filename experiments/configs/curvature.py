"""What makes up the curvature of the run of Fig. 4, along its second turn, and of an image network.

`make curvature`, 3 minutes. The stochastic trace is to agree with the dense one within the standard error.
All is [ours].
"""

from analysis import composition
from experiments import measurements
from experiments.configs import fig4

RUNS = {}  # what is trained is measured as it goes
FIGURE, get_config, measure = "curvature", fig4.get_config, measurements.curvatures
in_words = composition.in_words
EXPECTED = (
    ("sharpness", 5_000, 2.904, 2.8, 3.0, "[ours]"),
    ("trace_deviation", {"part": "Hessian"}, 0, -3, 3, "standard errors"),
)


def reduce(results):
    """Return what was measured."""
    return results["measured"]
