"""The ends of schedules in compiled code, and settings that optax takes and that mean nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.stability import threshold
from dlf.optimizers import make_optimizer


@pytest.mark.parametrize("num_steps", [3, 5, 10, 49, 100, 101])
@pytest.mark.parametrize(
    "schedule",
    [
        dict(name="linear_schedule", init_value=0.5, end_value=0.0),
        dict(name="polynomial_schedule", init_value=0.5, end_value=0.0, power=0.9),
        dict(name="polynomial_schedule", init_value=0.5, end_value=0.01, power=0.5),
        dict(name="cosine_decay_schedule", init_value=0.5),
    ],
    ids=lambda of: of["name"],
)
def test_a_rate_reaches_its_end_exactly_in_a_compiled_loop(x64, schedule, num_steps):
    length = "decay_steps" if schedule["name"].startswith("cosine") else "transition_steps"
    rate = make_optimizer("sgd", schedule | {length: num_steps}).rate
    steps = jnp.arange(2 * num_steps)
    found = jax.jit(lambda: jax.lax.map(lambda step: 2 * rate(step), steps))() / 2
    assert np.all(np.isfinite(found)) and np.all(np.asarray(found) >= 0)
    np.testing.assert_array_equal(found[num_steps:], found.dtype.type(schedule.get("end_value", 0.0)))
    if x64:  # by NumPy
        left = 1 - np.minimum(np.arange(2 * num_steps), num_steps) / num_steps
        shape = (1 + np.cos(np.pi * (1 - left))) / 2 if length == "decay_steps" else left
        end = schedule.get("end_value", 0.0)
        expected = end + (0.5 - end) * shape ** schedule.get("power", 1)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)


def test_the_threshold_at_the_end_of_a_schedule_is_infinite(x64):
    linear = dict(name="linear_schedule", init_value=0.5, end_value=0.0, transition_steps=5)
    optimizer = make_optimizer("sgd", linear)
    found = jax.jit(lambda step: threshold(**optimizer.settings, step=step))(jnp.asarray(7))
    assert np.isposinf(found)


def test_schedules_joined_need_a_boundary_between_each_two():
    part = dict(name="linear_schedule", init_value=0.0, end_value=1.0, transition_steps=5)
    for parts, boundaries in (((part, part), ()), ((part,), (3,))):
        with pytest.raises(ValueError, match="a boundary between each two"):
            make_optimizer("sgd", dict(name="join_schedules", schedules=parts, boundaries=boundaries))


CONSTANT, ZERO = (dict(name="constant_schedule", value=of) for of in (0.1, 0.0))
FALLING = dict(name="linear_schedule", init_value=0.1, end_value=-0.1, transition_steps=1_000)


@pytest.mark.parametrize(
    ("parts", "boundaries", "rates"),
    [
        ((ZERO, CONSTANT), (200,), {0: 0.0, 199: 0.0, 200: 0.1}),
        ((ZERO, CONSTANT, ZERO), (2, 9), {1: 0.0, 2: 0.1, 8: 0.1, 9: 0.0}),
        ((FALLING, CONSTANT), (400,), {0: 0.1, 200: 0.06, 400: 0.1}),
    ],
    ids=["late", "in between", "negative behind its end"],
)
def test_a_part_of_a_schedule_may_be_zero_or_end_before_it_is_negative(parts, boundaries, rates):
    joined = make_optimizer("sgd", dict(name="join_schedules", schedules=parts, boundaries=boundaries))
    for step, rate in rates.items():
        assert float(joined.rate(step)) == pytest.approx(rate, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (dict(name="linear_schedule", init_value=1.0, end_value=0.1, transition_steps=0), "transition_steps"),
        (dict(name="polynomial_schedule", init_value=1.0, end_value=0.1, power=2, transition_steps=-3), "-3"),
        (dict(name="exponential_decay", init_value=1.0, transition_steps=5, decay_rate=0.0), "decay_rate"),
        (
            dict(name="join_schedules", schedules=(lambda step: 1.0,) * 3, boundaries=(20, 10)),
            "boundaries must be in rising order, got 20, 10",
        ),
        (dict(name="sgdr_schedule", cosine_kwargs=[]), "cosine_kwargs must not be empty"),
        (dict(name="constant_schedule", value=0.0), "0 at every step"),
        (
            dict(name="join_schedules", schedules=(FALLING, CONSTANT), boundaries=(600,)),
            "linear_schedule: the learning rate must be at least 0, and not always that: it is -0.0198",
        ),
    ],
    ids=["linear", "polynomial", "exponential", "joined", "restarts", "zero", "negative"],
)
def test_schedules_that_optax_takes_for_constant_ones_or_skips_are_refused(section, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer("sgd", section)


@pytest.mark.parametrize(
    "of",
    [
        dict(name="clip_by_global_norm", max_norm=-1.0),
        dict(name="clip", max_delta=0.0),
        dict(name="apply_every", k=0),
    ],
)
def test_a_clip_that_would_turn_or_end_the_gradient_is_refused(of):
    with pytest.raises(ValueError, match="must be positive"):
        make_optimizer("sgd", 0.1, before=(of,))
