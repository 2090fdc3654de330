"""What moves in an optimizer's state and what is a setting: wrapped, an optimizer is as stable as plain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import stability
from analysis.linear_maps import block, dense, preconditioned, select
from analysis.stability.tangents import flat_step
from dlf import train
from dlf.optimizers import adam_preconditioner, rmsprop_preconditioner
from dlf.types import TrainState

KEY = jax.random.key(0)
PARAMS = {"a": (1.0, 2.0), "b": (0.5,)}
TRAINED, FROZEN = {"a": True, "b": False}, {"a": False, "b": True}
INJECTED = optax.inject_hyperparams


def run(optimizer, params=PARAMS):
    """Return one training step of a loss with curved directions, and the state before the first."""

    def loss(p, batch, step):
        x = jnp.concatenate(jax.tree.leaves(p))
        return jnp.sum(jnp.asarray([11.0, 5.0, 0.7]) * x**2) / 2 + x[0] * x[1] ** 2 / 10 + x[2] ** 4 / 50

    step_fn = train.make_step(loss, lambda step: None, optimizer)
    state = train.init_state({k: jnp.asarray(v) for k, v in params.items()}, optimizer)
    return lambda state: step_fn(state)[0], state


def updated(optimizer, params=PARAMS):
    """Return the state of an optimizer after one update."""
    params = {k: jnp.asarray(v) for k, v in params.items()}
    return optimizer.update({k: 3 * v for k, v in params.items()}, optimizer.init(params), params)[1]


def all_true(inner):
    return optax.masked(inner, {"a": True, "b": True})


# a plain optimizer, and ones that do the same
SAME = {
    "injected sgd": (optax.sgd(0.1), lambda: INJECTED(optax.sgd)(0.1)),
    "injected momentum": (optax.sgd(0.1, 0.5), lambda: INJECTED(optax.sgd)(0.1, momentum=0.5)),
    "injected adam": (optax.adam(0.1), lambda: INJECTED(optax.adam)(0.1)),
    "injected schedule": (optax.adam(0.1), lambda: INJECTED(optax.adam)(lambda count: 0.1)),
    "injected within a mask": (optax.adam(0.1), lambda: all_true(INJECTED(optax.adam)(0.1))),
    "a mask within injected": (
        optax.adam(0.1),
        lambda: INJECTED(lambda rate: all_true(optax.adam(rate)))(0.1),
    ),
    "multi_transform": (
        optax.adam(0.1),
        lambda: optax.multi_transform({"x": optax.adam(0.1)}, {"a": "x", "b": "x"}),
    ),
    "schedule": (optax.adam(0.1), lambda: optax.adam(optax.constant_schedule(0.1))),
    "not finite": (optax.adam(0.1), lambda: optax.apply_if_finite(optax.adam(0.1), 3)),
    "noise": (
        optax.sgd(0.1),
        lambda: optax.chain(optax.add_noise(0.0, 0.55, key=jax.random.key(1)), optax.sgd(0.1)),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_step_of_a_wrapped_optimizer_has_the_derivative_of_the_plain_one(standard, name):
    plain, wrapped = SAME[name]
    found = []
    for optimizer in (plain, wrapped()):
        step, flat = flat_step(*run(optimizer))
        found.append(jax.jit(jax.jacfwd(step))(flat))
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_so_its_multipliers_and_exponents_are_those_of_the_plain_one(standard):
    found = []
    for optimizer in (optax.sgd(0.2, 0.5), INJECTED(optax.sgd)(0.2, momentum=0.5)):
        advance, state = run(optimizer)
        flip = stability.step_multipliers(advance, state, key=KEY).flip
        cycle = stability.floquet_multipliers(advance, state, num_steps=2, num=3, key=KEY)
        _, growth = stability.lyapunov_exponents(advance, state, num_steps=3, num=2, key=KEY)
        found.append((flip, np.abs(cycle.multipliers), growth))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_noise_moves_no_multiplier_and_its_run_has_an_exponent(standard):
    optimizer = optax.noisy_sgd(0.1, key=jax.random.key(3))
    step_fn = train.make_step(lambda w, batch, step: jnp.sum(w**2), lambda step: None, optimizer)
    state = train.init_state(jnp.ones(3), optimizer)

    def advance(state):
        return step_fn(state)[0]

    assert stability.step_multipliers(advance, state, num=2, key=KEY).flip == pytest.approx(0.8)
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=5, num=3, key=KEY)
    np.testing.assert_allclose(growth, np.log(0.8), rtol=1e-9)


def test_a_state_of_a_users_own_moves_by_its_floats_alone(standard):
    """Masks, counters, keys of both kinds; the batch statistics of a model move."""
    other = {"mask": jnp.asarray([True, False]), "key": KEY, "raw": jax.random.PRNGKey(0), "count": 3}
    other["trace"] = jnp.zeros(2)
    state = TrainState(jnp.asarray(0), jnp.ones(2), {"mean": jnp.zeros(3), "n": jnp.asarray(4)}, other)
    found = stability.moves(state)
    assert found.params and found.model_state == {"mean": True, "n": False} and not found.step
    assert found.opt_state == dict.fromkeys(other, False) | {"trace": True}
    assert stability.first_tangents(state, 7, key=KEY).shape == (7, 7)


def test_the_sums_of_rates_of_a_schedule_free_optimizer_are_settings(standard):
    _, state = run(optax.contrib.schedule_free_sgd(0.1))
    assert stability.first_tangents(state, 6, key=KEY).shape == (6, 6)  # parameters and z


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        lambda: all_true(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        lambda: optax.chain(optax.apply_every(2), optax.sgd(0.1)),
        lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
    ],
)
def test_an_optimizer_that_moves_at_some_steps_only_is_refused_by_name(standard, optimizer):
    advance, state = run(optimizer())
    for measured in (
        lambda: stability.step_multipliers(advance, state, key=KEY),
        lambda: stability.floquet_multipliers(advance, state, num_steps=2, key=KEY),
        lambda: stability.first_tangents(state, 1, key=KEY),
    ):
        with pytest.raises(ValueError, match=r"(MultiStepsState|ApplyEvery|SAMState): .*not all alike"):
            measured()


def frozen(inner, how):
    if how == "masked":
        return optax.chain(optax.masked(inner, TRAINED), optax.masked(optax.set_to_zero(), FROZEN))
    return optax.multi_transform({"x": inner, "still": optax.set_to_zero()}, {"a": "x", "b": "still"})


@pytest.mark.parametrize("how", ["masked", "multi_transform"])
@pytest.mark.parametrize("name", ["adam", "rmsprop", "injected"])
def test_where_a_layer_is_frozen_the_effective_hessian_is_that_of_the_trained_one(standard, how, name):
    inner = {"adam": optax.adam, "rmsprop": optax.rmsprop, "injected": INJECTED(optax.adam)}[name](0.1)
    matrix = jnp.asarray(np.diag([3.0, 2.0, 1.0]) + 0.3)

    def matvec(v):
        x = matrix @ jnp.concatenate([v["a"], v["b"]])
        return {"a": x[:2], "b": x[2:]}

    alone, state = updated(inner, {"a": PARAMS["a"]}), updated(frozen(inner, how))
    params = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    kind, settings = name if name == "rmsprop" else "adam", dict(learning_rate=0.1)
    effective = stability.effective_hessian(matvec, state, kind, **settings)
    scale = stability.preconditioner(alone, kind, **settings)["a"]
    right = matrix[:2, :2] / jnp.sqrt(jnp.outer(scale, scale))
    whole = dense(effective, params)
    np.testing.assert_allclose(whole[:2, :2], right, rtol=1e-9)
    assert not whole[2].any() and not whole[:, 2].any()  # it does not move
    part = dense(block(effective, params), select(params, "a"))
    np.testing.assert_allclose(part, right, rtol=1e-9)


def test_a_mask_may_take_out_a_whole_layer_by_its_name(standard):
    params = {"a": jnp.ones(2), "b": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    optimizer = optax.masked(optax.rmsprop(0.1, initial_scale=16.0), TRAINED)
    scale = stability.preconditioner(optimizer.init(params), "rmsprop", learning_rate=0.1)
    found = preconditioned(lambda v: v, scale)(params)
    np.testing.assert_allclose(found["a"], 0.25, rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["b"]))


def test_injected_settings_are_those_of_the_state_whatever_is_given(standard):
    plain, injected = (
        updated(optax.adam(0.1, b2=0.9, eps=0.5)),
        updated(INJECTED(optax.adam)(0.1, b2=0.9, eps=0.5)),
    )
    right = adam_preconditioner(plain, b2=0.9, eps=0.5)
    for found in (adam_preconditioner(injected), adam_preconditioner(injected, b2=0.1)):
        np.testing.assert_allclose(found["a"], right["a"], rtol=1e-9)


def test_two_adams_have_no_one_preconditioner():
    optimizer = optax.multi_transform({"x": optax.adam(0.1), "y": optax.adam(0.2)}, {"a": "x", "b": "y"})
    state = optimizer.init({k: jnp.asarray(v) for k, v in PARAMS.items()})
    with pytest.raises(ValueError, match="that of one Adam, found 2"):
        adam_preconditioner(state)


@pytest.mark.parametrize("other", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.rmsprop(0.1)])
def test_what_another_transformation_moves_is_not_taken_for_frozen(standard, other):
    groups = {"x": optax.adam(0.1), "y": other}
    for optimizer in (optax.multi_transform(groups, {"a": "x", "b": "y"}),
                      optax.chain(optax.multi_transform(groups, {"a": "x", "b": "y"}))):  # fmt: skip
        state = updated(optimizer)
        with pytest.raises(ValueError, match="the parameters 'y' are moved otherwise: there is no one Adam"):
            adam_preconditioner(state)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_before_the_first_update_the_preconditioner_is_not_a_number(x64, name):
    find = {"adam": adam_preconditioner, "rmsprop": rmsprop_preconditioner}[name]
    optimizer = getattr(optax, name)(0.1)
    params = {"a": jnp.asarray([1.0, 2.0]), "dead": jnp.zeros(2)}
    state = optimizer.init(params)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(jax.jit(find)(state)))
    with pytest.raises(ValueError, match="needs at least one update"):
        find(state)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update({"a": jnp.asarray([3.0, 0.0]), "dead": jnp.zeros(2)}, state, params)
    with jax.debug_nans(True):
        found, traced = find(state), jax.jit(find)(state)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(traced), strict=True):
        assert jnp.isfinite(leaf).all() and leaf.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(leaf, other, rtol=1e-6)


def test_an_initial_scale_is_a_preconditioner_from_the_start(standard):
    state = optax.rmsprop(0.1, initial_scale=0.25, eps=0.0).init(jnp.ones(2))
    assert rmsprop_preconditioner(state, eps=0.0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["sgd", "adam", "ema", "rmsprop"])
def test_where_a_rate_is_zero_nothing_is_unstable(x64, name):
    settings = dict(decay=0.9) if name == "ema" else {}
    zeros = (lambda step: 0.0, lambda step: np.float64(0.0), lambda step: np.zeros(()), lambda step: 0 * step)
    for schedule in (optax.linear_schedule(0.0, 0.1, 10), *zeros):
        assert stability.threshold(name, schedule, step=0, **settings) == np.inf
    assert jax.jit(lambda rate: stability.threshold(name, rate, **settings))(jnp.zeros(())) == np.inf
    with pytest.raises(ValueError, match="must be positive"):
        stability.threshold(name, 0.0, **settings)
