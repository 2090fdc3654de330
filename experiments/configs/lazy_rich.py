"""The run of Fig. 4 beside the same of the linearised network: what of a dynamical loss is lazy?

`experiments.figure lazy_rich --launcher=local`, 8 minutes on two cores. Data, network, loss, schedule and the
learning rate of 1 are those of Fig. 4. The linearised network f(theta_0) + J (theta - theta_0), the rate of
2, static twins, seeds and probes are [ours].

    .venv/bin/python -m experiments.train --config=experiments/configs/lazy_rich.py --workdir=results/lazy_run
"""

from analysis.findings import survival
from analysis.infinite_width import flow_differences
from dlf.train import frozen
from experiments.build import build
from experiments.configs import fig4
from experiments.sweep.axes import axis, record

NEURAL_TANGENTS = True  # is needed
FIGURE, reduce, in_words = "lazy_rich", survival.reduce, survival.in_words
EXPECTED = (
    ("accuracy_gain", {"learning_rate": 1.0, "linearized": True}, -0.049, -0.067, -0.031, "[ours]"),
    ("flow_difference", {"flow_rate": 0.02}, 5.4e-5, 4e-5, 7e-5, "[ours], 0 in the limit"),
    ("accuracy_gain", {"learning_rate": 1.0, "linearized": False}, 0.23, 0.02, 0.44, "[ours]"),
)
# scale: seeds, turns of a class, steps of a turn, hidden width, examples per class, windings, steps a probe
_SIZES = {
    "smoke": (2, 7, 100, 16, 20, 0.5, 10),
    "small": (10, 14, 5_000, 100, 100, 2.0, 100),
    "paper": (50, 14, 5_000, 100, 100, 2.0, 50),
}


def get_config(scale="small"):
    """Return the linearised network under the loss of Fig. 4, with sharpness, NTK and validation."""
    _, num_turns, period, width, examples, num_windings, every = _SIZES[scale]
    config = fig4.get_config(num_turns, period)
    config.dataset.update(examples_per_class=examples, num_turns=num_windings)
    config.model.update(hidden_widths=(width,), linearized=True)
    config.probes = dict(
        stability=dict(every=every, tol=1e-3),
        ntk=dict(every=every, num=1, num_examples=50),
        validation=dict(every=every),
    )
    return config


def sweep(scale):
    """Vary the network (real, linearised), the learning rate, the loss (static, dynamical) and the seed."""
    yield axis("linearized", (False, True), "model.linearized")
    yield axis("learning_rate", (1.0, 2.0), "optimizer.learning_rate")
    yield axis("amplitude", (1.0, 70.0), "schedule.amplitude")
    yield axis("seed", range(_SIZES[scale][0]), "seed", "dataset.seed")
    series = "loss", "accuracy", "sharpness", "stability_ratio", "ntk_eigenvalues", "validation_accuracy"
    yield record("series", *series)


def sweep_easier(scale):
    """Vary loss and seed of the linearised network on a spiral of one turn, which it can learn."""
    yield axis("num_turns", (1.0,), "dataset.num_turns")
    _, _, *twins, _ = sweep(scale)
    yield from (*twins, record("final", "accuracy", "validation_accuracy"))


def measure(config, results, folder):
    """Train the linearised network under the static squared loss, which has a closed form."""
    experiment = build(config)
    apply_fn, params = frozen(experiment.problem, experiment.state), experiment.state.params
    return flow_differences(apply_fn, params, experiment.replica.train, config.dataset.num_classes)
