"""What do regularisers, conditioning, tuning and other networks change of a dynamical loss? (E2, E3, E4, E6)

`python -m experiments.figure open_questions --launcher=local`; nobody has run it yet. The questions are the
authors' (talk), all values [ours]. This plan was committed before the first confirmatory run.

All compare the static loss (A = 1) with A = 16 in pairs of seeds: data, first parameters and batches are the
same. Network, data and rates are those of the learning-rate shift at half its length: 1,500 steps, the class
weights move for four fifths of them, in four cycles; rates are multiples of its unit for each norm. A gain is
the difference of the test accuracies at the rate where the mean validation accuracy of the live runs is
largest, chosen for each loss (E1's peaks); intervals are 95 % bootstraps over seeds, pairs together, which
choose anew in every draw; dead runs stand apart.
E2 (Q1, norms and regularisers). Weight decay (0, 0.001, 0.01) x signals shifted at random (no, up to 4
points) x norm (none, batch), 12 seeds. Effects: by how much each decay, averaged over the shifting, and the
shifting, averaged over the decays, change the gain; with batch norm also decay with the same product of peak
rate and decay at every rate (0.0002).
E3 (Q2, is the network well conditioned already?). Scale of the first kernels (0.5, 1, 2) x inputs raw or
whitened (ZCA) x warm-up (none, three tenths of the steps) x norm (none, group), 8 seeds. Of static runs of
two seeds at the middle rate: sharpness, sharpness over the eigenvalue behind as many as classes, sharpness
over the mean of all, at 0, 10 and 100 % of the steps, as geometric means. Effects: the nine slopes of the
gain over the logarithm (base ten) of each, with group norm as a second regressor. Conditions are fixed, seeds
are drawn. (Batch norm has no curvature in evaluation before its running statistics have settled.)
E4 (Q3, do other settings need tuning?). 108 trials for each loss and norm (none, batch): momentum (0.8, 0.9,
0.95) x decay (as above) x twelve random rates, of the dynamical loss with twelve random amplitudes and
periods, each of seeds of its own. The five best by validation accuracy run again from 12 fresh seeds. Effect:
the gain of the best of the five, chosen by validation accuracy there, and the test accuracy to expect of the
best of n trials over n.
E6 (does the shift come again?). WRN-10-1 of 1-D convolutions with batch and with group norm on the signals;
200 digits and Fashion-MNIST with the networks of `images`; four rates, 12 seeds. Effects: shift and gain.
What counts. Over all gains, changes of gains and slopes together p-values of effect over bootstrap error at
a false discovery rate of 5 %: more or less; else "none" where the 90 % interval is within half a point (of a
slope: for a factor of ten), else open. A shift counts if its interval lies above 1. tests/test_questions.py
simulates the chain. How many seeds would decide an open one is told beside it. Nothing else is confirmatory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from analysis import operators
from analysis.density import trace
from analysis.findings import questions
from analysis.lanczos import top_eigenpairs
from dlf import data, models
from dlf.train import loss_of
from dlf.types import Probe, Series
from experiments import records
from experiments.configs import images
from experiments.configs.learning_rate_shift import FINAL, PEAK, normalization_axis
from experiments.configs.learning_rate_shift import get_config as shift_config
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.fill import run

FIGURE, reduce, in_words = "open_questions", questions.reduce, questions.in_words
EXPECTED = ()
OVERRIDES = ("dataset.path",)
_HERE = "experiments.configs.open_questions"
# scale: seeds of E2, E4 and E6; of E3; of its curvature; random rates of E4
_SIZES = {"smoke": (2, 2, 1, 2), "small": (12, 8, 2, 12), "paper": (32, 16, 4, 24)}
_NORMS = ("none", "batch")
_RATES, _FEWER_RATES, _IMAGE_RATES = (0.1, 0.2, 0.4, 0.8), (0.15, 0.35, 0.8), (0.025, 0.05, 0.1, 0.2)
_AMPLITUDES = (1.0, 16.0)
_DECAYS = (0.0, 1e-3, 1e-2)
_PRODUCT = 2e-4  # of peak rate and decay, where it is fixed
_MOMENTA = (0.8, 0.9, 0.95)
_BEST = 5  # trials that run again
_NUM_TRACE_MATVECS = 30
_FIRST_TRIAL = 1_000  # of the seeds


def scaled(num_classes, kernel_scale, **settings):
    """Return a network of `dlf.models.myrtle` whose first kernels are `kernel_scale` times as large."""
    model = models.myrtle(num_classes, **settings)

    def init(key, inputs):
        params, model_state = model.init(key, inputs)

        def larger(path, of):
            return kernel_scale * of if path[-1].key == "kernel" else of

        return jax.tree_util.tree_map_with_path(larger, params), model_state

    return model._replace(init=init)


def signals(num_train, num_validation, num_test, seed, whitened):
    """Return signals of MNIST-1D, or these whitened (ZCA) by the covariance of the training set.

    x <- V (S + 0.01 mean(S))^(-1/2) V^T (x - mean),   covariance V diag(S) V^T
    """
    found = data.mnist1d(num_train, num_validation, num_test, seed)
    if not whitened:
        return found
    train = np.asarray(found.train.inputs)[..., 0]
    variances, axes = np.linalg.eigh(np.cov(train.T))
    whiten = axes @ np.diag((variances + 0.01 * variances.mean()) ** -0.5) @ axes.T

    def changed(batch):
        inputs = (np.asarray(batch.inputs)[..., 0] - train.mean(axis=0)) @ whiten
        return batch._replace(inputs=jnp.asarray(inputs[..., None], batch.inputs.dtype))

    tests = {name: changed(of) for name, of in found.test.items()}
    return found._replace(train=changed(found.train), test=tests)


def conditioning(problem, every, tol, batch_size):
    """Measure the sharpness, alone, over the eigenvalue behind as many as classes, and over their mean."""

    def measure(carry, state):
        num_classes = len(problem.schedule(state.step))
        at = state.params, problem.train, state.step
        matvec = operators.hessian(loss_of(problem, state), *at, batch_size=batch_size)
        keys = jax.random.split(jax.random.fold_in(problem.key, state.step))
        pairs = top_eigenpairs(matvec, state.params, num=num_classes + 1, tol=tol, key=keys[0])
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        mean = trace(matvec, state.params, num_matvecs=_NUM_TRACE_MATVECS, key=keys[1]).value / size
        first, behind = pairs.values[0], pairs.values[num_classes]
        return carry, {"sharpness": first, "over_bulk": first / behind, "over_mean": first / mean}

    of = {"sharpness": "nat", "over_bulk": "1", "over_mean": "1"}
    series = {name: Series((), units, "largest eigenvalue of the Hessian") for name, units in of.items()}
    return Probe(every, lambda state: (), measure, series)


def get_config(scale="small"):
    """Return the network of signals with a rate that rises and falls, decay and augmentation."""
    config = shift_config(scale, longer=1)
    with config.unlocked():
        config.optimizer.before = ()
        config.batches.augment = ()
    return config


def get_config_conditions(scale="small"):
    """Return the same with first kernels of another scale, and inputs that may be whitened."""
    config = get_config(scale)
    with config.unlocked():
        config.model.name, config.model.kernel_scale = f"{_HERE}:scaled", 1.0
        config.dataset.name, config.dataset.whitened = f"{_HERE}:signals", False
    return config


def get_config_curvature(scale="small"):
    """Return the same with what tells the conditioning, at the static loss."""
    config = get_config_conditions(scale)
    config.schedule.amplitude, config.optimizer.learning_rate.peak = 1.0, _FEWER_RATES[1]
    every = (config.num_steps - 1) // 10 if scale != "smoke" else config.num_steps - 1
    with config.unlocked():
        config.probes.conditioning = dict(
            name=f"{_HERE}:conditioning", every=every, tol=0.02, batch_size=config.batches.batch_size
        )
    return config


def get_config_wide_resnet(scale="small"):
    """Return a wide residual network of 1-D convolutions on the same signals."""
    config = shift_config(scale, longer=1)
    config.probes.evaluation.recomputed = True  # nothing is, with group norm
    del config.model
    config.model = dict(name="wide_resnet", depth=10, widen_factor=1, normalization="batch")
    return config


get_config_digits, get_config_fashion_mnist = images.digits, images.fashion_mnist


def _before(decay):
    return {"optimizer.before": (dict(name="add_decayed_weights", weight_decay=decay),) if decay else ()}


def _some(scale, values, most=2):
    return values if scale != "smoke" else values[:most]


def _paired(scale, rates, number=0):
    yield axis("learning_rate", _some(scale, rates), PEAK)
    yield axis("amplitude", _AMPLITUDES, "schedule.amplitude")
    yield axis("seed", range(_SIZES[scale][number]), "seed", "dataset.seed")
    yield FINAL


def sweep_regularizers(scale):
    """Vary normalization, decay, augmentation, rate, loss and seed."""

    def augmented(is_so):
        return {"batches.augment": (dict(name="shift", most=4),) if is_so else ()}

    yield normalization_axis(scale, _some(scale, _NORMS[::-1], 1))
    yield axis("decay", _some(scale, _DECAYS), _before)
    yield axis("augmented", (False, True), augmented)
    yield from _paired(scale, _RATES)


def sweep_fixed_product(scale):
    """Vary rate, with a decay that makes their product the same, loss and seed, with batch norm."""

    def decayed(rate):
        return {PEAK: rate} | _before(_PRODUCT / rate)

    yield normalization_axis(scale, _NORMS[1:])
    yield axis("learning_rate", _some(scale, _RATES, 1), decayed)
    yield from list(_paired(scale, ()))[1:]


def _conditions(scale):
    num_rising = {"none": 1, "slow": (get_config(scale).num_steps - 1) * 3 // 10}

    def warmed_up(name):
        return {"optimizer.learning_rate.num_rising": num_rising[name]}

    yield normalization_axis(scale, ("none", "group"))
    yield axis("kernel_scale", _some(scale, (1.0, 2.0, 0.5), 1), "model.kernel_scale")
    yield axis("whitened", _some(scale, (True, False), 1), "dataset.whitened")
    yield axis("warm_up", _some(scale, tuple(num_rising), 1), warmed_up)


def sweep_conditions(scale):
    """Vary normalization, scale of the kernels, whitening, warm-up, rate, loss and seed."""
    yield from _conditions(scale)
    yield from _paired(scale, _FEWER_RATES, 1)


def sweep_curvature(scale):
    """Vary the same conditions and the seed of the static loss, and keep what tells the conditioning."""
    yield from _conditions(scale)
    yield axis("seed", range(_SIZES[scale][2]), "seed", "dataset.seed")
    yield record("series", "sharpness", "over_bulk", "over_mean")


def _trial(stop_after, number):
    """Return a random trial: a rate, an amplitude and a period that divides the moving steps into cycles."""
    rng = np.random.RandomState(number)
    periods = [stop_after // of for of in (10, 20, 40, 80) if stop_after % of == 0]
    return {
        PEAK: float(np.exp(rng.uniform(np.log(0.03), np.log(2.0)))),
        "schedule.amplitude": float(np.exp(rng.uniform(np.log(1.5), np.log(64.0)))),
        "schedule.period": int(rng.choice(periods)),
    }


def sweep_trials(scale):
    """Vary normalization, momentum, decay and loss, and draw the rest at random."""
    stop_after = get_config(scale).stop_after

    def drawn(number):
        seed = _FIRST_TRIAL + number
        return _trial(stop_after, number) | {"seed": seed, "dataset.seed": seed}

    yield normalization_axis(scale, _some(scale, _NORMS, 1))
    yield axis("momentum", _some(scale, _MOMENTA, 1), "optimizer.momentum")
    yield axis("decay", _some(scale, _DECAYS, 1), _before)
    yield axis("moving", (False, True), lambda moves: {"stop_after": stop_after if moves else 0})
    yield axis("trial", range(_SIZES[scale][3]), drawn)
    yield FINAL


def measure(config, results, folder):
    """Run the best trials again from fresh seeds, and keep their accuracies."""
    trials, seeds, found = results["trials"], results["regularizers"]["seed"].values, []
    for name in trials["normalization"].values:
        for moves in trials["moving"].values:
            best = questions.best(trials.sel(normalization=name, moving=moves), _BEST)

            def again(place, name=name, moves=moves, best=best):
                at, stop_after = best[place], config.stop_after if moves else 0
                chosen = {"stop_after": stop_after, "optimizer.momentum": at["momentum"]}
                chosen |= _before(at["decay"]) | _trial(config.stop_after, at["trial"])
                return chosen | normalization_axis("small", (str(name),)).overrides[0]

            declared = axis("candidate", range(len(best)), again), axis("seed", seeds, "seed", "dataset.seed")
            sweep = make_sweep(config, "again", (*declared, FINAL))
            workdir = folder / "again" / f"{name}_{'dynamical' if moves else 'static'}"
            run(sweep, workdir)
            part = records.load(workdir)[["status", "validation_accuracy", "test_accuracy"]]
            found.append(part.expand_dims(normalization=[name], moving=[moves]))
    attributes = {"num_classes": trials.attrs["num_classes"]}
    return xr.combine_by_coords(found, combine_attrs="drop").assign_attrs(attributes)


def sweep_wide_resnet(scale):
    """Vary normalization, rate, loss and seed of a wide residual network."""
    yield axis("normalization", _some(scale, ("group", "batch"), 1), "model.normalization")
    yield from _paired(scale, _RATES)


def _images(scale):
    yield axis("learning_rate", _some(scale, _IMAGE_RATES), "optimizer.learning_rate")
    yield from list(_paired(scale, ()))[1:]


def sweep_digits(scale):
    """Vary rate, loss and seed of the digits."""
    return _images(scale)


def sweep_fashion_mnist(scale):
    """Vary rate, loss and seed of the clothes."""
    return _images(scale)
