"""Small networks of signals and images under static and dynamical losses: when does a moving loss help?

`python -m experiments.figure images --launcher=local`, 25 to 40 minutes on two cores. MNIST-1D and digits
come with packages, Fashion-MNIST with Debian's dataset-fashion-mnist or --config.dataset.path=DIR.
That dynamical losses improve the accuracy of overparametrised image networks is P2's [text], of CIFAR-10; all
values here are [ours]. A seed draws subsets, first parameters and order of batches, so that both losses are
paired. The class weights move for four fifths of the steps, whole cycles, and are one for the rest. The first
third of the seeds chooses a learning rate for each loss by validation accuracy, the others confirm it.
"""

from functools import partial

from analysis.findings import tuned_losses
from dlf.data.images import FASHION_MEAN, FASHION_STD
from experiments.settings import Config
from experiments.sweep.axes import axis, record

FIGURE, reduce, in_words = ("image_rates", "image_plane"), tuned_losses.reduce, tuned_losses.in_words
EXPECTED = (  # of gains, four standard errors
    ("tuned_accuracy", {"data": "mnist1d", "amplitude": 1.0}, 0.947, 0.93, 0.96, "[ours]"),
    ("tuned_gain", {"data": "digits"}, -0.005, -0.033, 0.023, "[ours]"),
    ("tuned_gain", {"data": "fashion_mnist"}, -0.013, -0.037, 0.011, "[ours]"),
    ("tuned_gain", {"data": "mnist1d"}, 0.003, -0.007, 0.013, "[ours], P2 [text]: a gain"),
)
OVERRIDES = ("dataset.path",)
AMPLITUDE = 16.0
# scale: part of the steps, of the examples, of the measurements along a run; seeds
_PARTS = {"smoke": (0.05, 0.25, 0.2, 3), "small": (1, 1, 1, 12), "paper": (1, 1, 1, 48)}
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_FINAL = record("final", "loss", "validation_accuracy", "test_accuracy", "test_class_accuracy")


def _config(scale, num_steps, period, batch_size, dataset, model):
    of_steps, of_examples, *_ = _PARTS[scale]
    cycles = 4 * of_steps if scale == "smoke" else 1  # one cycle instead of four
    num_steps = int(num_steps * of_steps)
    config = Config()
    config.seed, config.float64 = 0, False
    config.num_steps = num_steps + 1  # the last row is measured after `num_steps` updates
    config.steps_per_chunk, config.checkpoints_kept = num_steps + 1, 1
    config.stop_after = num_steps * 4 // 5
    sizes = {key: int(of * of_examples) if key.startswith("num_") else of for key, of in dataset.items()}
    config.dataset = dict(**sizes, seed=0)
    config.model = dict(name="myrtle", activation="relu", **model)
    config.loss = dict(name="cross_entropy")
    config.schedule = dict(name="triangular", amplitude=AMPLITUDE, period=int(period * cycles))
    config.optimizer = dict(name="sgd", learning_rate=0.1, momentum=0.9)
    config.batches = dict(name="minibatches", batch_size=batch_size)
    config.probes = dict(evaluation=dict(every=num_steps, batch_size=500))
    return config


def mnist1d(scale="small"):
    """Return three 1-D convolutions on 1,000 signals, four cycles of ten classes."""
    dataset = dict(name="mnist1d", num_train=1_000, num_validation=1_000, num_test=1_000)
    return _config(scale, 1_500, 30, 100, dataset, dict(widths=(25, 25, 25)))


def digits(scale="small"):
    """Return three convolutions on 200 digits of 8x8 pixels."""
    dataset = dict(name="digits", num_train=200, num_validation=500, num_test=1_000)
    return _config(scale, 1_000, 20, 50, dataset, dict(widths=(8, 16, 16)))


def fashion_mnist(scale="small"):
    """Return Myrtle5-16 on 5,000 images of clothes of 14x14 pixels."""
    dataset = dict(name="fashion_mnist", num_train=5_000, num_validation=2_000, num_test=10_000)
    model = dict(widths=(16, 16, 16, 16), mean=FASHION_MEAN, std=FASHION_STD)
    return _config(scale, 1_000, 20, 100, dataset | dict(path="", pooled=2), model)


get_config = mnist1d
get_config_digits, get_config_fashion_mnist = digits, fashion_mnist


def _along(get_config, amplitude, scale="small"):
    config = get_config(scale)
    config.schedule.amplitude = amplitude
    every = int(config.num_steps / _PARTS[scale][2] / (10 if get_config is fashion_mnist else 20))
    config.probes.hessian = dict(every=every, num=1, tol=0.01, batch_size=config.batches.batch_size)
    config.probes.batch_sharpness = dict(every=every, num_batches=10)
    return config


RUNS = {
    f"{get_config.__name__}_{loss}": partial(_along, get_config, amplitude)
    for get_config in (mnist1d, digits, fashion_mnist)
    for loss, amplitude in (("static", 1.0), ("dynamical", AMPLITUDE))
}


def _sweep(scale):
    rates = _RATES if scale != "smoke" else (0.02, 0.1)
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("amplitude", (1.0, AMPLITUDE), "schedule.amplitude")
    yield axis("seed", range(_PARTS[scale][-1]), "seed", "dataset.seed")
    yield _FINAL


def sweep_mnist1d(scale):
    """Vary learning rate, loss and seed of the signals."""
    return _sweep(scale)


def sweep_digits(scale):
    """Vary learning rate, loss and seed of the digits."""
    return _sweep(scale)


def sweep_fashion_mnist(scale):
    """Vary learning rate, loss and seed of the clothes."""
    return _sweep(scale)


def sweep_plane(scale):
    """Vary amplitude, period and seed of the signals at one learning rate, all in whole cycles."""
    periods = (8, 15, 30, 60) if scale != "smoke" else (2, 4)
    yield axis("amplitude", (4.0, 16.0, 64.0), "schedule.amplitude")
    yield axis("period", periods, "schedule.period")
    yield axis("seed", range(_PARTS[scale][-1]), "seed", "dataset.seed")
    yield _FINAL
