"""The statistics of shifts of the learning rate, against sweeps that are made with known effects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax import lax
from matplotlib import image

from analysis import figures
from analysis.findings import shifts
from dlf import schedules
from dlf.store.cells import DIVERGED, DONE
from experiments import build
from experiments.configs import learning_rate_shift

RATES = np.asarray(learning_rate_shift._RATES)
NORMS, AMPLITUDES = ("none", "batch"), (1.0, 16.0)


def curve(log_rate):
    """An accuracy that rises over the learning rate, and falls beyond a maximum."""
    return 0.9 - 0.1 * (log_rate + 0.9) ** 2


def made(seed, shift=1.0, gain=0.0, num_seeds=32, dead=0.0):
    """A sweep whose dynamical loss has these effects under every normalization."""
    rng = np.random.default_rng(seed)
    shape = len(NORMS), len(RATES), len(AMPLITUDES), num_seeds
    of_seed = 0.02 * rng.normal(size=(len(NORMS), 1, 1, num_seeds))  # what a pair has in common
    found = np.zeros(shape)
    for number, amplitude in enumerate(AMPLITUDES):
        moved = np.log(RATES) + (np.log(shift) if amplitude > 1 else 0)
        found[:, :, number] = curve(moved)[None, :, None] + (gain if amplitude > 1 else 0)
    test, validation = (np.clip(found + of_seed + 0.01 * rng.normal(size=shape), 0.1, 1) for _ in range(2))
    status = np.where(rng.random(shape) < dead * (np.arange(len(RATES)) > 5)[:, None, None], DIVERGED, DONE)
    dims = "normalization", "learning_rate", "amplitude", "seed"
    classes = np.repeat(test[..., None], 3, axis=-1)
    return xr.Dataset(
        {
            "test_accuracy": (dims, test),
            "validation_accuracy": (dims, validation),
            "status": (dims, status),
            "test_class_accuracy": ((*dims, "class"), classes),
        },
        {
            "normalization": list(NORMS),
            "learning_rate": RATES,
            "amplitude": list(AMPLITUDES),
            "seed": range(num_seeds),
        },
    ).assign_attrs(num_classes=10)


@pytest.fixture
def few_draws(monkeypatch):
    """Bootstrap a little: the intervals are noisier by a tenth, what they hold on the average is the same."""
    monkeypatch.setattr(shifts, "DRAWS", 200)


@pytest.fixture(autouse=True)
def few_nulls(monkeypatch):
    monkeypatch.setattr(shifts, "_NUM_NULLS", 2)


@pytest.mark.parametrize("shift", [0.7, 1.0, 1.5, 2.2])
def test_a_known_shift_is_found_within_its_interval(shift):
    found = shifts.reduce({"main": made(0, shift=shift)}).sel(amplitude=16.0)
    np.testing.assert_allclose(found["shift"], shift, rtol=0.07)  # four times its spread over made sweeps
    assert (found["shift_low"] <= shift + 0.02).all() and (shift - 0.02 <= found["shift_high"]).all()


def test_intervals_of_the_shift_hold_it_as_often_as_they_say(few_draws):
    covered = []
    for seed in range(20):
        found = shifts.reduce({"main": made(seed, shift=1.5)}).sel(amplitude=16.0)
        covered += [*((found["shift_low"] <= 1.5) & (found["shift_high"] >= 1.5)).values]
    assert np.mean(covered) >= 0.85  # of 40, for 0.95 with a binomial error of 0.03


def test_without_an_effect_none_is_found_more_often_than_the_rate_of_false_discoveries(few_draws):
    """The static loss against itself, in forty sweeps."""
    verdicts, above = [], []
    for seed in range(40):
        found = shifts.reduce({"main": made(seed)}).sel(amplitude=16.0)
        verdicts += [*found["verdict"].values]
        above += [*((found["shift_low"] > 1) | (found["shift_high"] < 1)).values]
    wrong = np.isin(verdicts, (1, 2)).mean()
    assert wrong <= 0.05 + 2 * (0.05 * 0.95 / len(verdicts)) ** 0.5
    assert np.mean(above) <= 0.05 + 3 * (0.05 * 0.95 / len(above)) ** 0.5


def test_a_gain_of_a_point_is_found_and_a_shift_alone_is_none(few_draws):
    verdicts = {name: [] for name in ("gain", "shift")}
    for seed in range(10):
        for name, effect in (("gain", dict(gain=0.012)), ("shift", dict(shift=1.5))):
            found = shifts.reduce({"main": made(seed, **effect)}).sel(amplitude=16.0)
            verdicts[name] += [*found["verdict"].values]
    assert np.mean(np.asarray(verdicts["gain"]) == 1) > 0.8
    assert np.mean(np.asarray(verdicts["shift"]) == 1) <= 0.1


def test_controls_without_an_effect_are_called_real_as_often_as_the_level_says(monkeypatch):
    """Also where there is one: the losses of a pair are shuffled, or static runs set against each other."""
    monkeypatch.setattr(shifts, "_NUM_NULLS", 100)
    found = [
        shifts.nulls(made(seed, gain=gain).sel(normalization="none")) for seed, gain in ((0, 0.0), (1, 0.02))
    ]
    for kind in ("shuffled", "static"):
        share = np.mean([of[kind] for of in found])
        assert share <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5, kind
    assert shifts._p_value(*shifts._arrays(made(1, gain=0.02).sel(normalization="none"))) < 0.001


def test_dead_runs_stand_apart_and_a_rate_where_most_are_dead_is_left_out():
    sweep = made(0, shift=1.5, dead=0.9)
    found = shifts.reduce({"main": sweep}).sel(amplitude=16.0)
    assert (found["dead"].isel(learning_rate=-1) > 0.5).all() and (
        found["dead"].isel(learning_rate=0) == 0
    ).all()
    np.testing.assert_allclose(found["shift"], 1.5, rtol=0.07)  # as above
    everything = sweep.assign(status=sweep["status"] * 0 + DIVERGED)
    assert shifts.reduce({"main": everything}).sel(amplitude=16.0)["shift"].isnull().all()


def test_controls_and_the_law_are_read_off_sweeps_with_known_answers():
    main = made(0, shift=1.5)
    controls = main.sel(amplitude=1.0, drop=True).isel(learning_rate=[1, 3]).expand_dims(control=["shuffled"])
    ratio = {1.0: 2.0, 16.0: 3.0}
    values = [[[[ratio[a]] * 4] * 2 for a in AMPLITUDES] for _ in NORMS]
    dims = "normalization", "amplitude", "seed", "hessian_step"
    sharpness = xr.Dataset(
        {
            "hessian_eigenvalues": ((*dims, "rank"), np.asarray(values)[..., None]),
            "status": (dims[:3], np.full((2, 2, 2), DONE)),
        },
        {
            "normalization": list(NORMS),
            "amplitude": list(AMPLITUDES),
            "seed": range(2),
            "hessian_step": range(4),
        },
    )
    found = learning_rate_shift.reduce({"main": main, "controls": controls, "sharpness": sharpness})
    gain = found["control_gain"].sel(control="shuffled", normalization="none")
    expected = [curve(np.log(RATES[i])) - curve(np.log(1.5 * RATES[i])) for i in (1, 3)]
    np.testing.assert_allclose(gain, expected, atol=0.01)
    moved = found["control_gain"].sel(control="static at s eta", normalization="none")
    np.testing.assert_allclose(moved, 0, atol=0.012)
    assert (found["sharpness_ratio"].sel(amplitude=16.0) == pytest.approx(1.5)).all()
    assert found["law_holds"].sel(amplitude=16.0).all()
    tables = shifts.in_words(found)
    assert len(tables["shifts"]) == len(tables["gains"]) == 3 and len(tables["controls"]) == 5
    for name in learning_rate_shift.FIGURE:
        assert getattr(figures, name)(found).axes


def test_the_figure_runs_reduces_and_draws(smoke):
    folder = smoke("learning_rate_shift")
    found = xr.load_dataset(folder / "learning_rate_shift.nc", engine="scipy")
    assert found["accuracy"].dims == ("normalization", "amplitude", "learning_rate")
    assert found["accuracy"].sel(amplitude=1.0).notnull().all()
    assert [*found["control"].values] == ["shuffled", "cycling", "static at s eta"]
    assert (found["sharpness_ratio"].sel(amplitude=1.0) == 1).all() and "shift s" in (
        folder / "out.txt"
    ).read_text()
    for name in learning_rate_shift.FIGURE:
        assert image.imread(folder / f"{name}.png").std() > 0.05


def test_rates_rise_fall_and_swing():
    rate = learning_rate_shift.rising_and_falling(2.0, 10, 110)
    assert [float(rate(step)) for step in (0.0, 5.0, 10.0, 60.0, 110.0)] == [0, 1, 2, 1, 0]
    swinging = learning_rate_shift.rising_and_falling(2.0, 10, 110, period=20, num_swinging=80)
    assert float(swinging(60.0)) == pytest.approx(2 / 3) and float(swinging(70.0)) == pytest.approx(
        0.8 * 4 / 3
    )
    assert float(swinging(90.0)) == pytest.approx(0.4)  # no longer


def test_shuffled_weights_are_the_same_ones_in_another_order(float64):
    moving = schedules.triangular(3, 16.0, 10)
    shuffled = learning_rate_shift.shuffled(3, 16.0, 10, 60)
    rows = [np.stack([of(jnp.asarray(step)) for step in range(60)]) for of in (moving, shuffled)]
    assert sorted(map(tuple, rows[0])) == sorted(map(tuple, rows[1])) and not np.array_equal(*rows)


def test_a_run_of_the_figure_is_that_of_a_plain_loop(float64):
    """The first 100 steps of A = 16 without norm, in plain JAX: network, class weights, rate, momentum."""
    config = learning_rate_shift.get_config()
    config.float64, config.schedule.amplitude = True, 16.0
    experiment = build.build(config)
    loop, arguments = build.ready_loop(experiment)
    found = loop(*arguments, 100)[2]["loss"]

    def loss(params, batch, weights):
        x = batch.inputs
        for depth in range(3):
            layer = params[f"Conv_{depth}"]
            x = lax.conv_general_dilated(
                x, layer["kernel"], (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            x = jnp.maximum(x + layer["bias"][None, None], 0)
        logits = x.reshape(len(x), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
        each = -jax.nn.log_softmax(logits)[jnp.arange(len(x)), batch.labels]
        return jnp.mean(weights[batch.labels] * each)

    @jax.jit
    def step(params, trace, number):
        turn, tau = number // 60 % 10, (number % 60).astype(float)
        g = 1 + 15 * (1 - jnp.abs(2 * tau / 60 - 1))
        weights = jnp.where(jnp.arange(10, dtype=turn.dtype) == turn, g, 1.0) * 10 / (g + 9)
        value, grads = jax.value_and_grad(loss)(params, experiment.problem.batch_fn(number), weights)
        trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, grads)
        rate = 0.1 * number.astype(float) / 300
        return value, jax.tree.map(lambda p, m: p - rate * m, params, trace), trace

    params = experiment.replica.params
    trace, values = jax.tree.map(jnp.zeros_like, params), []
    for number in range(100):
        value, params, trace = step(params, trace, jnp.asarray(number, jnp.int32))
        values.append(float(value))
    np.testing.assert_allclose(found, values, rtol=1e-9)
