"""Fig. 4 with the authors' updated initialisation: Glorot-normal kernels, biases ~ N(0, 0.01^2).

`python -m experiments.figure fig4_updated`, one minute. Expect an accuracy of .993 at the end.
The initialisation is read in the authors' updated notebook, all other values are those of fig4.py.
"""

from experiments.configs import fig4

FIGURE, reduce = fig4.FIGURE, fig4.reduce
EXPECTED = (("accuracy", 69_999, 0.993, 0.98, 1.0, "P1 [fig]"),)


def get_config():
    """Return the run of Fig. 4 from the updated initialisation."""
    config = fig4.get_config()
    config.model.initialization = "updated"
    return config
