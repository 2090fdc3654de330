"""Myrtle5 on CIFAR-10: first the learning rate, from c / λ₀ on, then whether a dynamical loss helps.

    python -m experiments.figure cifar10 --config.dataset.path=DIR [--scale=paper]

For a GPU; nobody has run it yet. Small is the sweep that anyone should begin with: ten epochs over learning
rates, for a static and a dynamical loss. The table has c = ηλ₀ beside each rate, with λ₀ the sharpness at the
first step: another network ends at chance from c = 64 on (read in others' data [code]). Paper is 100
epochs and more seeds. Values that are not of cifar10_myrtle5.py are [ours].
"""

from functools import partial

from analysis.findings import tuned_losses
from experiments.configs import cifar10_myrtle5
from experiments.sweep.axes import axis, record

FIGURE, reduce, in_words = "image_rates", tuned_losses.reduce, tuned_losses.in_words
EXPECTED = ()  # no data of this size were at hand
OVERRIDES = ("dataset.path", "model.dtype")
# scale: epochs, seeds, learning rates, examples, widths
_RATES = tuple(2.0**-k for k in range(10, -1, -1))
_SIZES = {
    "smoke": (4, 3, (0.01, 0.1), 500, (4, 4, 4, 4)),
    "small": (10, 3, _RATES, 45_000, (64, 64, 64, 64)),
    "paper": (100, 12, _RATES, 45_000, (64, 64, 64, 64)),
}
_FINAL = record("final", "loss", "validation_accuracy", "test_accuracy", "test_class_accuracy")


def get_config(scale="small"):
    """Return Myrtle5 at a constant rate, its loss moving in whole cycles for about 80 % of the steps."""
    num_epochs, _, _, num_train, widths = _SIZES[scale]
    config = cifar10_myrtle5.get_config()
    batch_size = min(config.batches.batch_size, num_train // 10)
    num_steps = num_epochs * (num_train // batch_size)
    config.num_steps, config.steps_per_chunk = num_steps + 1, num_steps + 1
    config.dataset.num_train = num_train
    if scale == "smoke":
        config.dataset.update(num_validation=200, num_test=200)
    config.batches.batch_size = batch_size
    config.model.widths = widths
    num_cycles = 4 if scale != "smoke" else 1
    config.schedule.period = num_steps * 4 // 5 // (10 * num_cycles)
    config.stop_after = 10 * num_cycles * config.schedule.period
    config.optimizer.learning_rate = 2.0**-6
    config.probes = dict(evaluation=dict(every=num_steps, batch_size=1_000))
    return config


def along(scale="small", amplitude=1.0):
    """Return one run of the sweep with the sharpness measured along it, from the first step on."""
    config = get_config(scale)
    config.schedule.amplitude = amplitude
    every, batch_size = config.num_steps // 10, config.batches.batch_size
    config.probes.hessian = dict(every=every, num=1, tol=0.01, batch_size=batch_size)
    config.probes.batch_sharpness = dict(every=every, num_batches=8)
    return config


RUNS = {"cifar10_static": along, "cifar10_dynamical": partial(along, amplitude=16.0)}


def sweep_cifar10(scale):
    """Vary learning rate, loss and seed."""
    _, num_seeds, rates, *_ = _SIZES[scale]
    yield axis("learning_rate", rates, "optimizer.learning_rate")
    yield axis("amplitude", (1.0, 16.0), "schedule.amplitude")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield _FINAL
