"""Fig. 4 with A = 1: the static loss, which does not learn this data set with this learning rate.

`python -m experiments.figure fig4_static`, one minute. Expect an accuracy of .477 at the end, below .8.
All other values are those of fig4.py.
"""

from experiments.configs import fig4

FIGURE, reduce = fig4.FIGURE, fig4.reduce
# What we found; the paper says that the static loss never learns this.
EXPECTED = (("accuracy", 69_999, 0.477, 0.0, 0.8, "[ours], P1 [text]"),)


def get_config():
    """Return the run of Fig. 4 under the static loss."""
    config = fig4.get_config()
    config.schedule.amplitude = 1.0
    return config
