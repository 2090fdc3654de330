"""Fig. 4 of "Tilting the playing field" (arXiv 2102.03793): spiral, one hidden layer.

    make fig4

Gradient descent under a dynamical cross-entropy, in float64, with the Hessian and the NTK
measured along the way. All values are read in the authors' notebook, unless marked [ours].
"""

from ml_collections import ConfigDict

FIGURE = "fig4"

# (variable, step, expected, relative tolerance, source). The authors' values were digitised from
# their printed figure: 5 % while the trajectory is smooth. After the first cascades it is chaotic:
# there the tolerance is three standard deviations over 12 runs whose initial parameters differ by
# 1e-12, measured with `python -m experiments.benchmark spread`. That holds from the fourth period
# on, where 2 of the 12 runs were 8.7 % low. 11 of them ended at an accuracy of at least 0.98.
EXPECTED = (
    ("loss", 2_500, 0.133, 0.05, "P1 [fig]"),
    ("loss", 7_500, 0.130, 0.05, "P1 [fig]"),
    ("loss", 12_500, 0.111, 0.05, "P1 [fig]"),
    ("loss", 17_500, 0.085, 3 * 0.0378, "P1 [fig]"),
    ("loss", 22_500, 0.056, 3 * 0.0904, "P1 [fig]"),
    ("loss", 27_500, 0.032, 3 * 0.1465, "P1 [fig]"),
    ("loss", 32_500, 0.0204, 3 * 0.1040, "P1 [fig]"),
    ("loss", 37_500, 0.0194, 3 * 0.0701, "P1 [fig]"),
    ("loss", 42_500, 0.0141, 3 * 0.1663, "P1 [fig]"),
    ("loss", 47_500, 0.0118, 3 * 0.2315, "P1 [fig]"),
    ("loss", 52_500, 0.0088, 3 * 0.2722, "P1 [fig]"),
    ("loss", 57_500, 0.0064, 3 * 0.3716, "P1 [fig]"),
    ("loss", 62_500, 0.0060, 3 * 0.2762, "P1 [fig]"),
    ("accuracy", 69_999, 0.993, 1 - 0.98 / 0.993, "P1 [fig], >= 0.98"),
)


def get_config() -> ConfigDict:
    """Return the configuration of the figure."""
    config = ConfigDict()
    config.seed = 0
    config.float64 = True
    config.num_steps = 70_000
    config.steps_per_chunk = 2_000  # [ours] steps between two commits
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
        hessian=dict(every=25, num=3, tol=1e-3),  # num and tol [ours]: the authors took one
        ntk=dict(every=1, num=3, num_examples=50),  # num [ours]; the first 50 are all of class 0
    )
    return config
