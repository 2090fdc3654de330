"""Rules of the learning rate against known curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf.optimizers import make_optimizer
from dlf.recording import missing
from dlf.steps import descend
from dlf.train import init_carries, init_state, make_loop, make_step
from dlf.types import Probe, Series

CURVATURES = np.asarray([10.0, 1.0])
FIRST = np.asarray([1.0, -2.0])


def quadratic(params, batch, step):
    return jnp.sum(jnp.asarray(CURVATURES, params.dtype) * params**2) / 2


def told(name, rows):
    """A probe that measures what it is told, step by step, and then nothing."""
    rows = jnp.asarray(rows)
    rows = jnp.concatenate([rows, missing((1, *rows.shape[1:]), rows.dtype)])

    def measure(carry, state):
        return carry, {name: rows[jnp.minimum(state.step, len(rows) - 1)]}

    dims = tuple(f"axis_{i}" for i in range(rows.ndim - 1))
    return {"told": Probe(1, lambda state: (), measure, {name: Series(dims, "nat", name)})}


def follow(rule, probes={}, num_steps=6, name="sgd", learning_rate=1.0, step_of=make_step, **settings):
    """The series of a run on the quadratic loss, with the parameters before every step."""
    optimizer = make_optimizer(name, learning_rate, rule=rule, **settings)
    state = init_state(jnp.asarray(FIRST), optimizer)
    loop = make_loop(step_of(quadratic, lambda step: None, optimizer), probes)
    carries, rows, params = init_carries(probes, state), [], []
    for _ in range(num_steps):
        params.append(np.asarray(state.params))
        state, carries, series = loop(state, carries, 1)
        rows.append(series["learning_rate"][0])
    return np.asarray(rows), np.asarray(params)


@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [
        ("sgd", {}, 0.2),
        ("sgd", dict(momentum=0.9), 0.38),
        ("sgd", dict(momentum=0.5, nesterov=True), 0.15),
        ("ema", dict(decay=0.5, debias=False), 0.6),
    ],
)
def test_a_cap_is_the_edge_of_stability(x64, name, settings, bound):
    rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]), name=name, **settings)
    np.testing.assert_allclose(rates, bound, rtol=1e-6)


def test_a_cap_keeps_the_last_sound_measurement(x64):
    found = told("step_sharpness", [jnp.nan, -1.0, 10.0, jnp.nan, -3.0, 0.0, jnp.inf, 40.0, 0.5])
    rates, _ = follow(dict(name="cap"), found, num_steps=11)
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.05, 1, 1, 1], rtol=1e-6)


def test_a_cap_never_lifts_the_rate_of_a_schedule(float64):
    warm_up = dict(name="linear_schedule", init_value=0.0, end_value=0.4, transition_steps=4)
    rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]), learning_rate=warm_up)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.2, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"), [("sgd", {}), ("sgd", dict(momentum=0.9)), ("adam", {}), ("lion", {})]
)
def test_a_rule_that_never_binds_has_the_bits_of_none(standard, name, settings):
    given = dict(name=name, learning_rate=0.01, **settings)
    _, free = follow(dict(name="polyak", scale=1e-9), **given)
    _, plain = follow(None, **given)
    np.testing.assert_array_equal(free, plain)


def slopes(params):
    gradient = CURVATURES * params
    return gradient @ gradient, gradient @ (CURVATURES * gradient), CURVATURES @ params**2 / 2


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_cdat_along_a_quadratic(float64, scale):
    rates, params = follow(dict(name="cdat", scale=scale, decay=0.5))
    means = np.zeros(2)
    for rate, at in zip(rates, params, strict=True):
        squared, curved, _ = slopes(at)
        means = (means + np.asarray([squared, curved])) / 2
        assert rate == pytest.approx(min(1, scale * means[0] / means[1]))


def test_cdat_takes_the_curvature_along_the_update_with_its_momentum(float64):
    rates, params = follow(dict(name="cdat", decay=0.0), momentum=0.5)
    update = np.zeros(2)
    for rate, at in zip(rates, params, strict=True):
        gradient = CURVATURES * at
        update = 0.5 * update - gradient
        expected = 2 * max(-gradient @ update, 0) / (update @ (CURVATURES * update))
        assert rate == pytest.approx(min(1, expected))


def test_polyak_on_a_quadratic(float64):
    rates, params = follow(dict(name="polyak", scale=0.5))
    expected = [min(1, 2 * loss / squared) for squared, _, loss in map(slopes, params)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("first", [1e-3, 1.0, 100.0])
def test_the_critical_rate_of_a_quadratic_wherever_the_search_begins(float64, first):
    rates, params = follow(dict(name="critical_rate"), learning_rate=first, num_steps=4)
    expected = [2 * squared / curved for squared, curved, _ in map(slopes, params)]
    begin = np.minimum(expected, first)
    if first == 1.0:  # eight passes: enclosed in a factor of two, then halved
        np.testing.assert_allclose(rates, begin, rtol=0.05)
    assert (rates <= first).all() and rates[-1] == pytest.approx(begin[-1], rel=0.3)


def test_a_critical_rate_is_kept_where_the_loss_is_not_finite(float64):
    def walled(params, batch, step):
        return jnp.where(params[0] < -0.5, jnp.nan, quadratic(params, batch, step))

    rates, _ = follow(
        dict(name="critical_rate"), step_of=lambda loss, *rest: make_step(walled, *rest), num_steps=1
    )
    assert rates[0] == pytest.approx(0.15, rel=0.05)  # 1 - 10 eta = -0.5


def cyclic(step):
    """Two classes in turn, for two steps each."""
    return jnp.where(step // 2 % 2 == 0, jnp.asarray([1.5, 0.5]), jnp.asarray([0.5, 1.5]))


def test_feed_forward_knows_a_cyclic_loss_and_its_control_comes_too_late(float64):
    of_class = jnp.asarray([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    foreseen = np.asarray([6.0, 6.0, 2.0, 2.0])  # lambda_max(1.5 B_0 + 0.5 B_1), then the other way round
    expected = np.minimum(1, foreseen.mean() / foreseen)

    def in_turn(loss, batch_fn, optimizer):
        return descend(
            lambda params, model_state, *rest: (loss(params, *rest), (model_state, None)),
            batch_fn, optimizer, lambda *_: {}, cyclic,
        )  # fmt: skip

    matrices = told("forecast_matrices", of_class[None])
    for shift in (0, 2):
        rule = dict(name="feed_forward", turn=4, shift=shift)
        rates, _ = follow(rule, matrices, learning_rate=0.01, num_steps=8, step_of=in_turn)
        np.testing.assert_allclose(rates, 0.01 * np.tile(np.roll(expected, shift), 2), rtol=1e-12)
    broken = told("forecast_matrices", jnp.full_like(of_class, jnp.nan)[None])
    rates, _ = follow(rule, broken, learning_rate=0.01, num_steps=8, step_of=in_turn)
    assert (rates == 0.01).all()


def test_an_optimizer_that_is_no_tuple_is_taken_as_it_is(standard):
    multi = make_optimizer(lambda learning_rate: optax.MultiSteps(optax.sgd(learning_rate), 2), 0.1)
    state = multi.init(jnp.ones(2))
    updates, _ = multi.update(jnp.ones(2), state, jnp.ones(2))
    assert updates.tolist() == [0, 0]


def test_debugging_for_nan_passes_a_run_with_a_cap(float64):
    with jax.debug_nans(True):
        rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]))
    np.testing.assert_allclose(rates, 0.2, rtol=1e-6)
