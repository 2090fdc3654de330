"""Class weights against their closed form, a replay of the authors' counter, and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf import schedules

BUILDERS = {
    "constant": lambda num_classes: schedules.constant(num_classes),
    "triangular": lambda num_classes: schedules.triangular(num_classes, amplitude=70.0, period=50),
}


def replay(num_classes, amplitude, period, num_steps):
    """Advance a class and a counter step by step, as the authors' training loop did."""
    rows, emphasised, tau = [], 0, 0
    for _ in range(num_steps):
        slope = 2 * (amplitude - 1) / period
        g = 1 + slope * tau if tau < period / 2 else 2 * amplitude - 1 - slope * tau
        w = np.ones(num_classes)
        w[emphasised] = g
        rows.append(num_classes * w / w.sum())
        tau += 1
        if tau > period:
            tau, emphasised = 0, (emphasised + 1) % num_classes
    return np.array(rows)


@pytest.mark.parametrize("name", schedules.__all__)
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_every_schedule_gives_positive_weights_that_sum_to_the_number_of_classes(x64, name, num_classes):
    steps = jnp.arange(2000, dtype=jnp.int32)
    weights = jax.vmap(BUILDERS[name](num_classes))(steps)
    assert weights.shape == (2000, num_classes)
    assert weights.dtype == (jnp.float64 if x64 else jnp.float32)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(1), num_classes, rtol=1e-12 if x64 else 1e-6)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("period", [2, 7, 50])
def test_with_the_hold_step_it_is_the_authors_counter(float64, num_classes, period):
    schedule = schedules.triangular(num_classes, amplitude=70.0, period=period, hold_step=True)
    weights = jax.vmap(schedule)(jnp.arange(500, dtype=jnp.int32))
    np.testing.assert_allclose(weights, replay(num_classes, 70.0, period, 500), rtol=1e-13)


def test_a_turn_that_an_int32_cannot_count_is_refused(float64):
    schedules.triangular(3, 70.0, 2**31 - 1)
    with pytest.raises(ValueError, match="period must be at least 2 steps"):
        schedules.triangular(3, 70.0, 2**31 - 1, hold_step=True)


def test_the_bits_are_the_same_with_constant_and_with_traced_numbers(x64):
    steps, floating = jnp.arange(2000, dtype=jnp.int32), jnp.ones(()).dtype
    constant = jax.jit(lambda: jax.vmap(schedules.triangular(3, 70.0, 333))(steps))()
    traced = jax.jit(lambda amplitude, period: jax.vmap(schedules.triangular(3, amplitude, period))(steps))
    numbers = jnp.asarray(70.0, floating), jnp.asarray(333, jnp.int32)
    np.testing.assert_array_equal(constant, traced(*numbers))


def test_without_the_hold_step_each_class_lasts_exactly_one_period(float64):
    weights = jax.vmap(schedules.triangular(3, amplitude=5.0, period=10))(jnp.arange(60, dtype=jnp.int32))
    tau = np.arange(60) % 10
    g = np.where(tau < 5, 1 + 8 * tau / 10, 9 - 8 * tau / 10)
    emphasised = np.arange(60) // 10 % 3
    np.testing.assert_allclose(weights[np.arange(60), emphasised], 3 * g / (g + 2), rtol=1e-14)
    np.testing.assert_array_equal(weights[::10], 1)


@pytest.mark.parametrize(("num_classes", "peak", "rest"), [(3, 2.9167, 0.04167), (10, 8.861, 0.1266)])
def test_the_peak_weights_are_the_papers(float64, num_classes, peak, rest):
    weights = schedules.triangular(num_classes, amplitude=70.0, period=5000)(jnp.asarray(2500, jnp.int32))
    np.testing.assert_allclose(weights[:2], [peak, rest], rtol=4e-4)  # printed with four digits


def test_amplitude_one_is_the_static_loss(x64):
    weights = jax.vmap(schedules.triangular(3, amplitude=1.0, period=5000))(jnp.arange(0, 70_000, 7))
    np.testing.assert_array_equal(weights, 1)


def test_float32_weights_follow_float64_to_rounding():
    steps = np.arange(0, 70_000, 13)
    with jax.enable_x64(True):
        exact = np.asarray(jax.vmap(schedules.triangular(3, 70.0, 5000, True))(jnp.asarray(steps, jnp.int32)))
    with jax.enable_x64(False):
        weights = jax.vmap(schedules.triangular(3, 70.0, 5000, True))(jnp.asarray(steps, jnp.int32))
    # g reaches 70 by differences of numbers near 139: a few units in their last place
    np.testing.assert_allclose(weights, exact, rtol=2e-5)


def test_amplitude_and_period_may_be_traced(float64):
    def weights(amplitude, period):
        return schedules.triangular(3, amplitude, period)(jnp.asarray(30, jnp.int32))

    np.testing.assert_array_equal(
        jax.jit(jax.vmap(weights))(jnp.asarray([1.0, 70.0]), jnp.asarray([40, 50])),
        [weights(1.0, 40), weights(70.0, 50)],
    )


def test_stop_after_is_quiet_from_the_named_step_on(x64):
    moving = schedules.triangular(3, amplitude=70.0, period=50)
    quiet = jax.vmap(schedules.stop_after(moving, 120))(jnp.arange(200, dtype=jnp.int32))
    np.testing.assert_array_equal(quiet[:120], jax.vmap(moving)(jnp.arange(120, dtype=jnp.int32)))
    np.testing.assert_array_equal(quiet[120:], 1)


@pytest.mark.parametrize(
    ("amplitude", "period"), [(0.5, 50), (-1.0, 50), (float("inf"), 50), (70.0, 1), (70.0, 0), (70.0, 3.5)]
)
def test_impossible_settings_are_refused(amplitude, period):
    with pytest.raises(ValueError, match="must be at least"):
        schedules.triangular(3, amplitude=amplitude, period=jnp.asarray(period))


ALL = {
    "constant": schedules.constant(3),
    "triangular": schedules.triangular(3, 70.0, 5000),
    "stopped": schedules.stop_after(schedules.triangular(3, 70.0, 5000), 10_000),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint8, np.asarray, jnp.int8, jnp.uint8])
def test_a_step_of_any_whole_type_is_the_step(x64, name, kind):
    """A period of 5000 does not fit the short types."""
    found, expected = ALL[name](kind(100)), ALL[name](jnp.asarray(100, jnp.int32))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("name", ["triangular", "stopped"])
@pytest.mark.parametrize("step", [30.0, True, -1, 2**31, np.int64(2**32 + 5), np.arange(3), jnp.asarray(2.0)])
def test_what_is_no_step_is_refused_by_name(name, step):
    with pytest.raises(ValueError, match="step must be a whole number"):
        ALL[name](step)


def swinging(step):
    """Sum to 3, but go negative after 777 steps."""
    return jnp.asarray([1.0, 1.0, 1.0]) + (step > 777).astype(float) * jnp.asarray([2.0, -2.0, 0.0])


BAD = {
    "negative": (lambda step: jnp.asarray([2.0, 2.0, -1.0]), "[2.0, 2.0, -1.0] at step 0"),
    "zero": (lambda step: jnp.asarray([1.5, 1.5, 0.0]), "must be positive and sum to their number, 3"),
    "negative later on": (swinging, "must be positive and sum to their number, 3"),
    "of another sum": (lambda step: jnp.full(3, 0.5), "must be positive and sum to their number, 3"),
    "not finite": (lambda step: 1 / jnp.full(3, step, float), "must be positive and sum to their number, 3"),
    "undefined": (lambda step: jnp.full(3, jnp.nan), "must be positive and sum to their number, 3"),
    "complex": (lambda step: jnp.ones(3, complex), "must be a real floating array [3]"),
    "whole numbers": (lambda step: jnp.ones(3, int), "must be a real floating array [3]"),
    "of another number": (schedules.constant(2), "[3] of 32 or 64 bits, one for each class, got float32[2]"),
    "a column": (
        lambda step: jnp.ones((3, 1)),
        "[3] of 32 or 64 bits, one for each class, got float32[3, 1]",
    ),
    "one number": (lambda step: jnp.ones(()), "[3] of 32 or 64 bits, one for each class, got float32[]"),
    "a list": (lambda step: [1.0, 1.0, 1.0], "[3] of 32 or 64 bits, one for each class, got list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_schedule_that_is_none_is_refused_in_one_line(name):
    schedule, message = BAD[name]
    with pytest.raises(ValueError) as error:
        schedules.check_schedule(schedule, 3)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALL)
def test_our_schedules_pass_the_check_whatever_the_length(x64, name):
    for num_steps in (1, 2, 70_000, 2**31 - 1):
        schedules.check_schedule(ALL[name], 3, num_steps)


def test_the_check_looks_no_further_than_the_run_goes():
    schedules.check_schedule(swinging, 3, num_steps=778)
    with pytest.raises(ValueError, match="at step 778"):
        schedules.check_schedule(swinging, 3, num_steps=779)


def test_while_tracing_the_shape_of_weights_is_checked_and_nothing_is_computed():
    @jax.jit
    def build(amplitude, num_classes=3):
        schedules.check_schedule(schedules.triangular(3, amplitude, 10), num_classes)
        return amplitude

    assert build(jnp.asarray(2.0)) == 2
    assert not jax.make_jaxpr(build)(2.0).jaxpr.eqns[0].params["jaxpr"].jaxpr.eqns
    with pytest.raises(ValueError, match=r"\[4\] of 32 or 64 bits, one for each class"):
        jax.jit(lambda amplitude: build.__wrapped__(amplitude, 4))(jnp.asarray(2.0))
