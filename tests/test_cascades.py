"""Period labels and tables of instabilities on the logistic map, synthetic series, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from analysis import cascades, stability
from analysis.cascades import CHAOS, GROWING, IRREGULAR, UNDEFINED
from dlf import optimizers, schedules, train
from experiments import build
from experiments.configs import fig4

N = np.arange(4_096)


def descend(rate, num_steps=4_096, transient=20_000):
    """Gradient descent on x^2/2 - x^3/3, the logistic map with r = 1 + rate, and its log growth."""
    sgd = optimizers.make_optimizer("sgd", rate)
    step_fn = train.make_step(lambda x, batch, step: x**2 / 2 - x**3 / 3, lambda step: None, sgd)

    def advance(state):
        return step_fn(state)[0]

    state = train.init_state(jnp.asarray(0.3), sgd)
    state = jax.lax.fori_loop(0, transient, lambda _, s: advance(s), state)
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=num_steps, key=jax.random.key(0))
    xs = jax.lax.scan(lambda s, _: (advance(s), s.params), state, length=num_steps)[1]
    return np.asarray(xs), np.asarray(growth)[:, 0]


@pytest.mark.parametrize(
    "rate, expected",
    [
        (1.9, 1),
        (2.1, 2),  # from 2
        (2.47, 4),  # from sqrt 6 = 2.4495
        (2.55, 8),  # from 2.544090
        (2.566, 16),  # from 2.564407
        (2.75, CHAOS),
        (3.0, CHAOS),
        (np.sqrt(8) + 0.005, IRREGULAR),  # the period-3 window: no chaos, no power of two
    ],
)
def test_the_logistic_map_has_its_periods(float64, rate, expected):
    xs, growth = descend(rate)
    windows = cascades.label(xs, growth)
    assert set(windows.labels.tolist()) == {expected}
    if expected != CHAOS:
        assert (windows.exponent < 0).all()


def test_chaos_in_bands_is_told_from_a_noisy_period_by_the_exponent(float64):
    xs, growth = descend(2.6)  # just beyond the accumulation at 2.569946: two bands
    assert set(cascades.label(xs, growth).labels.tolist()) == {CHAOS}
    noisy = 1.0 + 0.1 * (-1.0) ** N + 0.03 * np.random.default_rng(0).normal(size=len(N))
    assert set(cascades.label(noisy, np.full(len(N), -0.1)).labels.tolist()) == {2}


@pytest.mark.parametrize("period", [2, 4, 8, 16])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drift_noise_and_crossing_branches_change_no_period(period, dtype):
    rng = np.random.default_rng(period)
    branches = rng.normal(size=period)
    slopes = rng.normal(size=period) / len(N)  # of the order of their distance, so that they cross
    k = N % period
    series = 3.0 + 0.3 * (branches[k] + slopes[k] * N) + 2e-4 * N + 0.005 * rng.normal(size=len(N))
    labels = cascades.label(series.astype(dtype)).labels
    assert np.mean(labels == period) > 0.95


def test_two_branches_that_meet_and_part_stay_a_two_cycle_or_period_one():
    series = 1.0 + 0.1 * (N - 2_048) / 2_048 * (-1.0) ** N
    labels = cascades.label(series).labels
    assert set(labels[:31].tolist()) == {2} and set(labels[33:].tolist()) == {2}


def test_smooth_drifts_have_period_one():
    for series in (np.exp(-N / 300.0), np.sin(N / 200.0), 1e-3 * N.astype(float) ** 2):
        assert set(cascades.label(series).labels.tolist()) == {1}


def test_an_alternation_that_grows_is_an_onset_from_its_first_window():
    size = np.clip(1e-9 * np.exp(0.02 * (N - 1_000)), 1e-9, 0.1)
    windows = cascades.label(1.0 + size * (-1.0) ** N)
    found = windows.labels.tolist()
    first = found.index(GROWING)
    assert 960 <= windows.first_step[first] <= 1_088
    assert found[:first] == [1] * first and found[-1] == 2
    (part,) = cascades.find(windows)
    assert part.start == first
    # an alternation that grows and never becomes visible is none
    assert set(cascades.label(1.0 + 1e-6 * size * (-1.0) ** N).labels.tolist()) == {1}


def test_white_noise_is_irregular_and_no_period():
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=len(N))
    assert np.mean(cascades.label(noise).labels == IRREGULAR) > 0.9


@pytest.mark.parametrize("period", [40, 100, 200, 500])
def test_a_schedule_that_moves_a_network_that_does_not_is_no_instability(period):
    gamma = jax.vmap(schedules.triangular(3, amplitude=70.0, period=period))(jnp.arange(1_500))
    windows = cascades.label(np.asarray(0.2 + 0.1 * gamma[:, 0]))
    assert set(windows.labels.tolist()) == {1} and cascades.find(windows) == []


def test_a_curved_drift_hides_no_cycle():
    for series, period in (
        (np.exp(-N / 100.0) * (1 + 0.01 * (-1.0) ** N), 2),
        (np.exp(-N / 200.0) * (1 + 0.003 * (-1.0) ** N), 2),
        (1 + 0.3 * np.sin(N / 60.0) + 0.05 * np.cos(np.pi * N / 2) + 0.1 * (-1.0) ** N, 4),
    ):
        assert set(cascades.label(series[:1_024]).labels.tolist()) == {period}


@pytest.mark.parametrize("period", [3, 5, 7, 10, 12])
def test_a_rotation_is_irregular(period):
    assert set(cascades.label(1 + 0.9 * np.cos(2 * np.pi * N / period)).labels.tolist()) == {IRREGULAR}


def test_short_bursts_are_not_period_one_and_relative_growth_is_no_onset():
    bursts = 1 + 30.0 * (N % 64 < 12) * (0.5 + 0.5 * (-1.0) ** N)
    assert set(cascades.label(bursts).labels.tolist()) == {IRREGULAR}
    level = np.exp(N[:1_024] / 60.0) * (1 + 0.05 * (-1.0) ** N[:1_024])
    assert set(cascades.label(level).labels.tolist()) == {2}


@pytest.mark.parametrize(("dtype", "exponents"), [(np.float32, (-100, 100)), (np.float64, (-900, 900))])
def test_labels_do_not_depend_on_the_unit_of_the_series(dtype, exponents):
    rate = np.where(N < 1_024, 0.0, 1e-3 * np.exp(np.minimum((N - 1_024) / 64, 6)))
    series = (1 + rate * (-1.0) ** N + 0.1 * np.sin(N / 500)).astype(dtype)
    expected = cascades.label(series)
    assert {1, 2, GROWING} <= set(expected.labels.tolist())
    for exponent in exponents:  # squares leave the range of the dtype
        found = cascades.label(np.ldexp(series, exponent))
        for name in ("labels", "growth"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for name in ("amplitude", "spread"):
            np.testing.assert_array_equal(getattr(found, name), np.ldexp(getattr(expected, name), exponent))


def test_a_single_jump_is_no_onset():
    assert set(cascades.label(1.0 + (N >= 1_000)).labels.tolist()) == {1}


def test_growth_that_ends_in_divergence_is_measured_whole():
    size = 1e-9 * np.exp(0.02 * np.arange(1_024))
    series = 1.0 + size * (-1.0) ** np.arange(1_024)
    series[1_000:] = np.nan
    run = a_run(series)
    windows = cascades.label(series)
    none = xr.DataArray(np.zeros(0), [("step", np.zeros(0, int))])
    (row,) = cascades.table(run, windows, none, threshold=2.0, steps_per_turn=500)
    assert row.deepest == "growing"
    # from ten times what it was, to a hundredth of the loss
    assert row.growth == pytest.approx(0.02 * row.growth_steps, rel=0.05) and row.growth > 3


def test_bad_series():
    assert set(cascades.label(np.full(256, 3.0)).labels.tolist()) == {1}
    assert set(cascades.label(np.zeros(256)).labels.tolist()) == {1}
    broken = 1.0 + 0.1 * (-1.0) ** N
    broken[200] = np.nan
    windows = cascades.label(broken)
    assert windows.labels[3] == UNDEFINED and set(np.delete(windows.labels, 3).tolist()) == {2}
    with pytest.raises(ValueError, match=r"at least a window, 64 steps, got \(63,\)"):
        cascades.label(np.zeros(63))
    with pytest.raises(ValueError, match="multiple of 16"):
        cascades.label(np.zeros(500), window=100)
    with pytest.raises(ValueError, match=r"log growth for each of 128 steps, got \(5,\)"):
        cascades.label(np.zeros(128), np.zeros(5))
    with pytest.raises(ValueError, match="real numbers of 32 or 64 bits, got int64"):
        cascades.label(np.zeros(128, int))
    growth = np.full(128, -np.inf)  # of a tangent that a step maps to zero
    assert set(cascades.label(np.ones(128), growth).labels.tolist()) == {1}


def a_run(loss, **series):
    num = len(loss)
    weights = np.tile([1.5, 1.0, 0.5], (num, 1))
    return xr.Dataset(
        {
            "loss": ("step", loss),
            "accuracy": ("step", np.where(np.arange(num) < 1_200, 0.5, 0.9)),
            "class_weights": (("step", "class"), weights),
            "ntk_eigenvalues": (
                ("ntk_step", "rank"),
                np.where(np.arange(0, num, 4) < 1_200, 8.0, 4.0)[:, None],
            ),
        },
        {"step": np.arange(num), "ntk_step": np.arange(0, num, 4), "rank": [0]},
    )


def test_the_table_of_one_instability_holds_what_was_put_in():
    """An alternation that follows |1 - eta lambda| exactly, from a floor, and is put out half-way."""
    rate, steps = 0.5, np.arange(2_048)
    sharpness = np.where(steps < 1_000, 3.9, 4.1) + 0.3 * (-1.0) ** steps  # alternates about 2 / eta
    mean = np.where(steps < 1_000, 3.9, 4.1)
    size = 1e-8 * np.exp(np.cumsum(np.where(steps >= 1_000, np.log(np.abs(1 - rate * mean)), 0)))
    size = np.where(steps < 1_400, np.minimum(size, 0.02), 0)
    run = a_run(1.0 + size * (-1.0) ** steps)
    windows = cascades.label(run["loss"].values)
    known = xr.DataArray(sharpness, [("step", steps)])
    (row,) = cascades.table(run, windows, known, threshold=4.0, steps_per_turn=500, learning_rate=rate)
    assert 1_000 < row.onset < 1_080 and 1_400 <= row.end <= 1_472
    assert row.phase == pytest.approx(row.onset % 500 / 500) and row.emphasised == 0
    assert row.sharpness == pytest.approx(4.1) and row.crossing == 1_000
    assert row.deepest == "period 2"
    assert row.growth == pytest.approx(row.budget, abs=0.1)  # the growth that its sharpness allows
    assert row.ntk_drop == 0.5
    assert (row.accuracy_before, row.accuracy_after) == pytest.approx((0.5, 0.9))
    (row,) = cascades.table(run, windows, known[:0], threshold=4.0, steps_per_turn=500)
    assert np.isnan(row.sharpness) and np.isnan(row.budget) and row.crossing == -1


def test_a_quiet_run_has_no_instability():
    run = a_run(np.exp(-N / 300.0))
    windows = cascades.label(run["loss"].values)
    none = xr.DataArray(np.zeros(0), [("step", np.zeros(0, int))])
    assert cascades.table(run, windows, none, threshold=2.0, steps_per_turn=500) == []
    assert cascades.onsets(run["loss"].values, windows) == []


def test_the_run_of_fig_4_is_unstable_at_the_ends_of_its_first_turns_and_smooth_at_its_end(float64):
    """By features: the trajectory of a chaotic run is another one on another machine."""
    config = fig4.get_config()
    experiment = build.build(config)
    loop = build.make_loop(experiment, ())
    _, _, series = loop(experiment.replica, experiment.state, {}, config.num_steps)
    loss = np.asarray(series["loss"])
    windows = cascades.label(loss, weights=np.asarray(series["class_weights"]))
    turn = config.schedule.period + 1
    onsets = np.array(cascades.onsets(loss, windows)) / turn
    for number in range(5):
        in_turn = onsets[(onsets >= number) & (onsets < number + 1)]
        assert len(in_turn) == 1 and in_turn[0] > number + 0.6
    assert onsets.max() < 11
    assert set(windows.labels[windows.first_step > 12 * turn].tolist()) == {1}
    depths = {cascades.GROWING, 2, 4, 8}
    assert depths <= set(windows.labels.tolist()) and cascades.CATAPULT not in windows.labels
