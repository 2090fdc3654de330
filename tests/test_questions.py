"""The open questions: their statistics, from sweeps that are made with known effects, and their parts."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from matplotlib import image

from analysis import figures, operators
from analysis.findings import questions, shifts
from analysis.linear_maps import dense
from dlf import data, losses, models, schedules, train
from dlf.optimizers import make_optimizer
from dlf.store.cells import DIVERGED, DONE
from experiments import figure
from experiments.configs import open_questions

RATES, SEEDS = np.asarray(open_questions._RATES), 12
CONDITIONS = {
    "normalization": ["none", "group"],
    "kernel_scale": [0.5, 1.0, 2.0],
    "whitened": [False, True],
    "warm_up": ["none", "slow"],
}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Bootstrap a little: the intervals are noisier by a tenth, what they hold on the average is the same."""
    monkeypatch.setattr(shifts, "DRAWS", 200)


def sweep(labels, gain, seed=0, noise=0.01, shift=1.0):
    """A sweep over these labels, rate, loss and seed; `gain` of the labels is that of the dynamical loss."""
    rng = np.random.default_rng(seed)
    sizes = [len(of) for of in labels.values()]
    x, accuracy = np.log(RATES), np.zeros((*sizes, len(RATES), 2, SEEDS))
    for at in np.ndindex(*sizes):
        chosen = {name: of[i] for (name, of), i in zip(labels.items(), at, strict=True)}
        for moving in (0, 1):
            curve = 0.8 - 0.1 * (x + 1.2 + moving * np.log(shift)) ** 2 + moving * gain(**chosen)
            accuracy[(*at, slice(None), moving)] = curve[:, None]
    common = 0.02 * rng.normal(size=(*sizes, 1, 1, SEEDS))
    dims = (*labels, "learning_rate", "amplitude", "seed")
    found = {
        name: (dims, accuracy + common + noise * rng.normal(size=accuracy.shape))
        for name in ("test_accuracy", "validation_accuracy")
    }
    found["status"] = dims, np.full(accuracy.shape, DONE)
    coordinates = {"learning_rate": RATES, "amplitude": [1.0, 16.0], "seed": range(SEEDS)}
    return xr.Dataset(found, labels | coordinates).assign_attrs(num_classes=10)


def trials(gain=0.0, num=12, seed=0):
    """Trials of two losses, the accuracy of which depends on the trial."""
    rng = np.random.default_rng(seed)
    labels = {
        "normalization": ["none"],
        "momentum": [0.9, 0.95],
        "decay": [0.0, 0.01],
        "moving": [False, True],
    }
    shape = *map(len, labels.values()), num
    accuracy = 0.5 + 0.3 * rng.random(shape)
    accuracy[..., 1, :] += gain
    dims = *labels, "trial"
    found = {f"{name}_accuracy": (dims, accuracy) for name in ("test", "validation")}
    of = xr.Dataset(found | {"status": (dims, np.full(shape, DONE))}, labels | {"trial": range(num)})
    return of.assign_attrs(num_classes=10)


def again(gain, seed=0):
    """Five candidates of both losses from fresh seeds, the second the best."""
    rng = np.random.default_rng(seed)
    accuracy = 0.7 + 0.05 * (np.arange(5) == 1)[:, None] + np.zeros((1, 2, 5, SEEDS))
    accuracy[:, 1] += gain
    dims = "normalization", "moving", "candidate", "seed"
    noise = 0.01 * rng.normal(size=(2, *accuracy.shape))
    found = {
        f"{name}_accuracy": (dims, accuracy + of)
        for name, of in zip(("test", "validation"), noise, strict=True)
    }
    found["status"] = dims, np.full(accuracy.shape, DONE)
    labels = {"normalization": ["none"], "moving": [False, True], "candidate": range(5), "seed": range(SEEDS)}
    return xr.Dataset(found, labels).assign_attrs(num_classes=10)


def curvature():
    """What differs between the conditions: the sharpness by the scale of the kernels alone."""
    labels = CONDITIONS | {"seed": range(2), "conditioning_step": range(3)}
    dims, shape = tuple(labels), tuple(map(len, labels.values()))
    scales = np.asarray(CONDITIONS["kernel_scale"])[None, :, None, None, None, None]
    rng = np.random.default_rng(0)
    found = {name: (dims, np.exp(rng.normal(size=shape))) for name in questions.CURVATURES}
    found["sharpness"] = dims, np.broadcast_to(100.0**scales, shape).copy()
    return xr.Dataset(found | {"status": (dims[:-1], np.full(shape[:-1], DONE))}, labels)


def results(decayed=0.0, sloped=0.0, equal=0.0, transferred=0.0, shift=1.0, seed=0):
    """All sweeps: what decay .01 and a factor of ten of sharpness do, and gains."""
    regularizers = {
        "normalization": ["none", "batch"],
        "decay": [0.0, 1e-3, 1e-2],
        "augmented": [False, True],
    }

    def of_decay(normalization, decay, augmented):
        return decayed * (decay == 1e-2)

    def of_scale(kernel_scale, **_):
        return sloped * 2 * kernel_scale  # log10 of 100^scale

    def moved(**_):
        return transferred

    rng = iter(np.random.default_rng(seed).integers(0, 2**31, 10))
    return {
        "regularizers": sweep(regularizers, of_decay, next(rng)),
        "fixed_product": sweep({"normalization": ["batch"]}, lambda **_: 0.0, next(rng)),
        "conditions": sweep(CONDITIONS, of_scale, next(rng)),
        "curvature": curvature(),
        "trials": trials(seed=next(rng)),
        "measured": again(equal, next(rng)),
        "wide_resnet": sweep({"normalization": ["batch", "group"]}, moved, next(rng), shift=shift),
        "digits": sweep({}, moved, next(rng)),
        "fashion_mnist": sweep({}, moved, next(rng)),
    }


def test_known_effects_are_found_and_nothing_else():
    made = dict(decayed=0.03, sloped=0.01, equal=-0.02, transferred=0.04, shift=1.6)
    found = questions.reduce(results(**made))
    assert found.sizes["effect"] == 7 + 9 + 1 + 4 + 4
    real = {
        "E2 none: decay 0.01": 0.03, "E2 batch: decay 0.01": 0.03, "E3 sharpness, early": 0.01,
        "E4 none: equal budgets": -0.02, "E6 wide resnet, group": 0.04, "E6 digits": 0.04,
    }  # fmt: skip
    for name, effect in real.items():
        of = found.sel(effect=name)
        assert of["verdict"] == (1 if effect > 0 else 2), name
        np.testing.assert_allclose(of["value"], effect, atol=4 * float(of["error"]))
        assert of["low"] - 0.005 <= effect <= of["high"] + 0.005  # the ends are those of 200 draws
    assert found["verdict"].sel(effect="E2 none: decay 0.001") in (0, 3)
    shifted = found.sel(effect="E6 wide resnet, batch: shift")
    assert shifted["is_shift"] == 1 and shifted["verdict"] == 1
    assert shifted["low"] - 0.05 <= 1.6 <= shifted["high"] + 0.05
    assert found["verdict"].sel(effect="E6 digits: shift") == 0
    assert all(axes.get_xlabel() for axes in figures.open_questions(found).axes)


def test_without_an_effect_few_are_called_real():
    wrong = []
    for seed in range(8):
        found = questions.reduce(results(seed=seed))
        wrong += [*found["verdict"].where(found["is_shift"] == 0, drop=True).isin((1, 2)).values]
    # at most what the rate of false discoveries lets through: one of a family of 21, and that seldom
    assert np.sum(wrong) <= 4


def test_tables_tell_what_would_decide_an_open_question():
    found = questions.reduce(results(equal=-0.02))
    (header, *rows), best = questions.in_words(found).values()
    told = dict(zip(header, next(row for row in rows if "E4" in row[1]), strict=True))
    assert told["question"] == "Q3" and told["verdict"] == "less" and told["seeds to decide"] == ""
    is_open = [
        dict(zip(header, row, strict=True))
        for row in rows
        if row[5] == "open" and row[2] and "shift" not in row[1]
    ]
    assert all(int(of["seeds to decide"]) > SEEDS for of in is_open)
    assert best[0][1] == "1" and best[1][0] == "none, static"


def test_the_best_of_some_trials_is_that_of_all_draws_of_them():
    made = trials(num=2)
    found = questions.expected_best(made)["expected_best"].sel(normalization="none", moving=False)
    flat = made.sel(normalization="none", moving=False)["test_accuracy"].values.ravel()
    for budget in (1, 2, 3):
        draws = [max(of) for of in itertools.product(flat, repeat=budget)]
        assert float(found.sel(budget=budget)) == pytest.approx(np.mean(draws))


def test_a_dead_trial_is_never_the_best():
    made = trials().sel(normalization="none", moving=True)
    (first,) = questions.best(made, 1)
    made["status"].loc[first] = DIVERGED
    (second,) = questions.best(made, 1)
    assert second != first
    assert float(made["validation_accuracy"].sel(second)) < float(made["validation_accuracy"].sel(first))


def test_whitened_signals_have_no_correlations_and_the_labels_of_the_raw_ones():
    settings = dict(num_train=1_000, num_validation=200, num_test=200, seed=3)
    raw, white = (open_questions.signals(**settings, whitened=of) for of in (False, True))
    covariance = np.cov(np.asarray(white.train.inputs)[..., 0].T)
    before = np.linalg.eigvalsh(np.cov(np.asarray(raw.train.inputs)[..., 0].T))
    expected = before / (before + 0.01 * before.mean())
    np.testing.assert_allclose(
        np.linalg.eigvalsh(covariance), np.sort(expected), rtol=1e-3, atol=1e-3
    )  # float32
    assert (raw.train.labels == white.train.labels).all() and white.test["test"].inputs.shape == (200, 40, 1)
    np.testing.assert_array_equal(raw.train.inputs, data.mnist1d(1_000, 200, 200, 3).train.inputs)


def test_kernels_are_scaled_and_nothing_else():
    settings = dict(widths=(4, 4), activation="relu")
    plain = models.myrtle(3, **settings)
    scaled = open_questions.scaled(3, 2.0, **settings)
    inputs = jnp.ones((1, 8, 1))
    before, after = (model.init(jax.random.key(0), inputs)[0] for model in (plain, scaled))
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_array_equal(a * (2 if path[-1].key == "kernel" else 1), b),
        before,
        after,
    )


def test_conditioning_is_that_of_the_dense_hessian(float64):
    batch = data.spiral(examples_per_class=10).train
    model = models.mlp(3, (8,), "tanh", "original", use_bias=True)
    schedule, sgd = schedules.constant(3), make_optimizer("sgd", 0.1)
    key = jax.random.key(3)
    problem = train.make_problem(model, losses.cross_entropy, schedule, sgd, batch, key=key)
    state = train.init_state(*model.init(key, batch.inputs)[:1], problem.optimizer)
    probe = open_questions.conditioning(problem, every=1, tol=1e-6, batch_size=None)
    _, rows = probe.measure((), state)
    full = dense(
        operators.hessian(train.loss_of(problem, state), state.params, batch, state.step), state.params
    )
    values = np.linalg.eigvalsh(full)[::-1]
    assert float(rows["sharpness"]) == pytest.approx(values[0], rel=1e-6)
    assert float(rows["over_bulk"]) == pytest.approx(values[0] / values[3], rel=1e-5)
    # a trace is estimated: of 51 eigenvalues by 30 products
    assert float(rows["over_mean"]) == pytest.approx(values[0] / values.mean(), rel=0.05)


def test_the_figure_runs_reduces_and_draws(command, made_clothes, tmp_path):
    asked = f"--workdir={tmp_path}", f"--config.dataset.path={made_clothes}"
    status, _, err = command(figure.main, "open_questions", "--scale=smoke", *asked)
    assert status == 0, err
    found = xr.load_dataset(tmp_path / "open_questions.nc", engine="scipy")
    assert np.isfinite(found["value"].sel(effect="E2 batch: shifted signals"))
    assert np.isfinite(found["condition_sharpness"]).all() and found["expected_best"].notnull().all()
    told = json.loads((tmp_path / "open_questions.json").read_text())["tables"]
    assert told["questions"][0][-1] == "seeds to decide" and len(told["questions"]) == 20
    assert image.imread(tmp_path / "open_questions.png").std() > 0.05
