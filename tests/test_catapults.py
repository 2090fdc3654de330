"""Instabilities that labels of an alternation cannot see, and onsets that do not depend on rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from scipy.signal import find_peaks

from analysis import cascades, operators
from analysis.cascades import CATAPULT
from analysis.findings import first_onsets, survival
from analysis.lanczos import top_eigenpairs
from dlf import data, losses, models, schedules, train
from dlf.types import Batch

N = np.arange(2_048)
STATIC = np.ones((len(N), 1))
UNKNOWN = xr.DataArray(np.zeros(0), [("step", np.zeros(0, int))])


def two_layers(rate, first):
    """Return loss and largest Hessian eigenvalue along gradient descent of (u v)^2 / 2."""
    u, v = first
    loss, sharpness = np.zeros(len(N)), np.zeros(len(N))
    for step in N:
        error = u * v
        loss[step] = error**2 / 2
        sharpness[step] = np.linalg.eigvalsh([[v * v, u * v + error], [u * v + error, u * u]])[-1]
        u, v = u - rate * error * v, v - rate * error * u
    return loss, sharpness


def a_run(loss, weights):
    num = len(loss)
    series = {"loss": loss, "accuracy": np.zeros(num)}
    data = {name: ("step", values) for name, values in series.items()}
    return xr.Dataset(data | {"class_weights": (("step", "class"), weights)}, {"step": np.arange(num)})


def test_a_catapult_is_an_instability_of_its_own_with_the_growth_that_its_sharpness_allows():
    rate = 1.0
    loss, sharpness = two_layers(rate, (1.44, 1e-3))  # just above the threshold
    assert loss.max() > 1_000 * loss[0] and loss[-1] < 1e-3 * loss.max()
    assert set(cascades.label(loss).labels.tolist()) == {1}  # there is nothing to see
    windows = cascades.label(loss, weights=STATIC)
    assert set(windows.labels.tolist()) == {1, CATAPULT}
    (row,) = cascades.table(
        a_run(loss, STATIC), windows, xr.DataArray(sharpness, [("step", N)]), threshold=2 / rate,
        steps_per_turn=500, learning_rate=rate,
    )  # fmt: skip
    assert row.deepest == "catapult" and row.visible == -1 and cascades.onsets(loss, windows) == [row.onset]
    peak = int(np.argmax(loss))
    assert loss[row.onset] > 2 * loss[0] > loss[row.onset - 1] and row.onset + row.growth_steps == peak
    assert row.onset < peak < row.end and loss[row.end] < 3 * loss[0]
    assert row.growth == pytest.approx(np.log(loss[peak] / loss[row.onset]) / 2)
    assert row.growth == pytest.approx(row.budget, rel=0.15)
    assert row.sharpness > 2 / rate and row.crossing >= 0


def test_a_regression_that_starts_above_its_threshold_is_thrown_out_and_again_at_the_edge(float64):
    x = jnp.linspace(-1, 1, 40)[:, None]
    batch = Batch(x, jnp.sin(3 * x[:, 0]))

    def half_squared(outputs, targets, weights):
        return weights[0] * (outputs[:, 0] - targets) ** 2 / 2

    net = models.mlp(1, (30,), activation="tanh", initialization="original", use_bias=True)
    loss_fn = losses.make_loss(models.apply_fn(net), half_squared, schedules.constant(1))
    params, _ = net.init(jax.random.key(3), x)
    matvec = operators.hessian(loss_fn, params, batch, 0)
    sharpness = top_eigenpairs(matvec, like=params, num=1, tol=1e-6, key=jax.random.key(1)).values[0]
    sgd = optax.sgd(2.4 / sharpness)  # 1.2 times what is stable
    step_fn = train.make_step(loss_fn, data.full_batch(batch), sgd)
    loss = np.asarray(train.make_loop(step_fn)(train.init_state(params, sgd), {}, 3_840)[2]["loss"])
    assert loss.max() > 8 * loss[0] and loss.argmax() < 64 and loss[64:].max() < loss[0] / 2
    weights = np.ones((len(loss), 1))
    rows = cascades.table(
        a_run(loss, weights), cascades.label(loss, weights=weights), UNKNOWN, threshold=0.8 * sharpness,
        steps_per_turn=500,
    )  # fmt: skip
    peaks = find_peaks(np.log(loss), prominence=2)[0]  # each several times what was before
    assert len(peaks) == len(rows) > 3 and {row.deepest for row in rows} == {"catapult"}
    assert all(row.onset < peak < row.onset + 64 for row, peak in zip(rows, peaks, strict=True))


def test_a_catapult_that_goes_on_alternating_is_deeper():
    alternating = np.where(N > 700, 1 + 0.2 * (-1.0) ** N, 1) * np.exp(np.clip((N - 300) / 100, 0, 3))
    windows = cascades.label(alternating, weights=STATIC)
    rows = cascades.table(a_run(alternating, STATIC), windows, UNKNOWN, threshold=2.0, steps_per_turn=500)
    assert rows[0].deepest == "period 2" and 350 < rows[0].onset < 400  # not where it begins to alternate
    assert 640 <= rows[0].visible <= 712


@pytest.mark.parametrize("amplitude, period", [(70.0, 40), (70.0, 500), (1e6, 200), (3.0, 2_000)])
def test_no_schedule_makes_a_network_that_descends_a_catapult(amplitude, period):
    gamma = np.asarray(jax.vmap(schedules.triangular(3, amplitude=amplitude, period=period))(jnp.asarray(N)))
    rng = np.random.default_rng(period)
    for speed in (0.0, 1e-4, 3e-3):
        class_losses = rng.uniform(0.01, 1, 3) * np.exp(-speed * np.outer(N, rng.uniform(0, 1, 3)))
        loss = np.sum(gamma * class_losses, axis=1)
        assert loss.max() > 1.1 * loss.min()
        assert CATAPULT not in cascades.label(loss, weights=gamma).labels


def test_a_catapult_shows_under_a_schedule_that_moves(float64):
    gamma = np.asarray(jax.vmap(schedules.triangular(2, amplitude=20.0, period=600))(jnp.asarray(N)))
    burst = 1 + 500 * np.exp(-(((N - 1_400) / 40.0) ** 2))
    windows = cascades.label(gamma @ [0.1, 0.2] * burst, weights=gamma)
    at = windows.first_step[windows.labels == CATAPULT]
    assert len(at) and 1_216 <= at.min() <= 1_344 and 1_400 < at.max() + 64 < 1_600


def test_what_is_no_catapult():
    rng = np.random.default_rng(0)
    x, velocity, heavy_ball = 1.0, 0.0, []
    for _ in N:  # a loss that momentum takes through zero again and again
        heavy_ball.append(x**2 / 2)
        velocity = 0.9 * velocity - 0.05 * x
        x += velocity
    quiet = {
        "momentum": np.array(heavy_ball),
        "rounding at the end": np.exp(-N / 20.0) + 1e-17 * rng.uniform(size=len(N)),
        "zeros": np.zeros(len(N)),
        "a valley that is left slowly": 1 + 0.3 * np.sin(N / 200),
    }
    for name, loss in quiet.items():
        assert CATAPULT not in cascades.label(loss, weights=STATIC).labels, name
    classes = np.where(N[:, None] // 300 % 2 == [0, 1], 2.0, 0.0)  # weights that are zero in turn
    loss = np.where(N // 300 % 2 == 0, 0.1, 0.9) * 2
    assert CATAPULT not in cascades.label(loss, weights=classes).labels
    noisy = 1 + 0.4 * rng.uniform(-1, 1, len(N))
    assert CATAPULT not in cascades.label(noisy, weights=STATIC, noise=0.5).labels


def test_weights_of_another_number_of_steps_are_refused():
    with pytest.raises(ValueError, match=r"weights \[steps, classes\] of 2048 steps, got \(5, 1\)"):
        cascades.label(1.0 + N, weights=np.ones((5, 1)))


def an_alternation(floor, rate=0.06):
    """Return a loss that alternates from a floor on, and is 1 % of itself at step 1,000."""
    return 1.0 + np.minimum(np.maximum(0.01 * np.exp(rate * (N - 1_000)), floor), 0.05) * (-1.0) ** N


def test_the_visible_onset_does_not_depend_on_the_floor_that_the_early_one_starts_from():
    early, visible = {}, {}
    for floor in (1e-12, 1e-8, 1e-5):
        loss = an_alternation(floor)
        windows = cascades.label(loss)
        (early[floor],), (visible[floor],) = (
            cascades.onsets(loss, windows),
            cascades.visible_onsets(loss, windows),
        )
    assert all(abs(step - 1_000) <= 8 for step in visible.values())  # a block of steps
    assert early[1e-12] + 200 < early[1e-5] < visible[1e-5]
    faint = 1.0 + 0.005 * (-1.0) ** N * (N > 500)
    assert cascades.visible_onsets(faint, cascades.label(faint)) == [-1]


def test_first_onsets_give_the_sharpness_of_both_in_units_of_the_threshold():
    steps = N[::50]
    losses = np.stack([an_alternation(1e-12), an_alternation(1e-5), np.exp(-N / 500.0)])
    sharpness = np.tile(1.5 + 0.5 * steps / 1_000, (3, 1))  # 2 at step 1,000
    dims = ("width", "learning_rate", "seed")
    sweep = xr.Dataset(
        {
            "status": (dims, np.ones((1, 1, 3), int)),
            "loss": ((*dims, "step"), losses[None, None]),
            "sharpness": ((*dims, "stability_step"), sharpness[None, None]),
            "stability_ratio": ((*dims, "stability_step"), sharpness[None, None] / 4),
            "class_weights": ((*dims, "step", "class"), np.ones((1, 1, 3, len(N), 1))),
        },
        {"width": [30], "learning_rate": [0.5], "seed": range(3), "stability_step": steps},
    )
    found = first_onsets.reduce({"main": sweep})
    np.testing.assert_allclose(found["visible_sharpness"][0, 0], [2, 2, np.nan], atol=0.01)
    assert float(found["visible_ratio"].squeeze()) == pytest.approx(0.5, abs=0.01)
    early = found["sharpness"].values[0, 0]
    assert early[0] < early[1] - 0.1 < 1.9 and np.isnan(early[2])
    assert float(found["least_visible_ratio"]) == float(found["visible_ratio"].squeeze())
    words = first_onsets.in_words(found)
    assert [rows[1][1][-3:] for rows in words.values()] == ["(2)", "(2)"]
    # a catapult counts where the sweep has kept the weights
    raised = np.array(losses[2]) * (1 + 1e3 * np.exp(-(((N - 1_000) / 60.0) ** 2)))
    sweep["loss"][0, 0, 2] = raised
    assert np.isfinite(first_onsets.reduce({"main": sweep})["onset"].values).all()
    assert np.isnan(first_onsets.reduce({"main": sweep.drop_vars("class_weights")})["onset"].values[0, 0, 2])


def test_catapults_are_part_of_the_unstable_time_where_the_weights_were_kept():
    loss, _ = two_layers(1.0, (1.44, 1e-3))
    steps = N[::50]
    sweep = xr.Dataset(
        {
            "status": ("seed", [1]),
            "loss": (("seed", "step"), loss[None]),
            "class_weights": (("seed", "step", "class"), STATIC[None]),
            "sharpness": (("seed", "stability_step"), np.ones((1, len(steps)))),
            "stability_ratio": (("seed", "stability_step"), np.ones((1, len(steps)))),
            "ntk_eigenvalues": (("seed", "ntk_step", "rank"), np.ones((1, 2, 1))),
        },
        {"step": N, "stability_step": steps},
        dict(turn=100, cycle=300, stop_after=len(N)),
    )
    assert survival.effects(sweep)["instabilities"] == 1
    assert survival.effects(sweep)["unstable"] > 0.02
    assert survival.effects(sweep.drop_vars("class_weights"))["instabilities"] == 0
