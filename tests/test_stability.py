"""Thresholds, multipliers and exponents on systems that can be solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from analysis import operators, probes, stability
from analysis.linear_maps import dense
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import TrainState

KEY = jax.random.key(0)
RATE = 0.1
OPTIMIZERS = {
    "gradient descent": ("sgd", {}),
    "heavy ball": ("sgd", dict(momentum=0.8)),
    "Nesterov": ("sgd", dict(momentum=0.8, nesterov=True)),
    "EMA momentum": ("ema", dict(decay=0.7, debias=False)),
    # the preconditioner stands still: decay of one, or gradients far below eps
    "RMSProp": ("rmsprop", dict(decay=1.0, initial_scale=0.25, eps=1e-12)),
    "RMSProp with momentum": ("rmsprop", dict(decay=1.0, initial_scale=0.25, eps=1e-12, momentum=0.5)),
    "Adam": ("adam", dict(b1=0.6, b2=0.5, eps=0.5)),
}


def chain(name, settings):
    return optimizers.make_optimizer(name, RATE, **settings)


def advance_of(loss, optimizer):
    step_fn = train.make_step(lambda params, batch, step: loss(params), lambda step: None, optimizer)
    return lambda state: step_fn(state)[0]


def quadratic(curvatures):
    return lambda x: jnp.sum(curvatures * x**2) / 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_quadratic_is_stable_below_the_threshold_and_unstable_above(float64, optimizer, factor):
    name, settings = OPTIMIZERS[optimizer]
    scale = {"rmsprop": 0.5, "adam": 0.5}.get(name, 1.0)  # P
    bound = stability.threshold(name, RATE, **settings)
    loss, chosen = quadratic(factor * bound * scale), chain(name, settings)
    state = train.init_state(jnp.asarray(1e-12), chosen)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        after = jax.lax.fori_loop(0, 2_000, lambda _, s: advance_of(loss, chosen)(s), state)
    grown = abs(float(after.params)) / 1e-12
    assert grown > 1e3 if factor > 1 else grown < 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_at_the_threshold_the_formula_free_multiplier_is_minus_one(float64, optimizer):
    name, settings = OPTIMIZERS[optimizer]
    scale = {"rmsprop": 0.5, "adam": 0.5}.get(name, 1.0)
    bound = stability.threshold(name, RATE, **settings) * scale
    loss, chosen = quadratic(jnp.asarray([bound, -0.5, 1e-3])), chain(name, settings)
    state = train.init_state(jnp.full(3, 1e-12), chosen)
    with jax.numpy_dtype_promotion("standard"):
        advance = jax.jit(advance_of(loss, chosen))
        for _ in range(40):  # the bias correction dies out
            state = advance(state)
            state = state._replace(params=jnp.full(3, 1e-12))
        found = stability.step_multipliers(advance_of(loss, chosen), state, key=KEY)
    assert abs(found.flip - (-1)) < 1e-6
    assert found.converged and found.rotations == ()


def test_the_bias_correction_lowers_adams_threshold_at_first(x64):
    late = stability.threshold("adam", 0.1, b1=0.5)
    assert float(late) == pytest.approx(2 * 1.5 / (0.5 * 0.1))
    for count in (0, 3):
        early = stability.threshold("adam", 0.1, b1=0.5, step=jnp.asarray(count, jnp.int32))
        assert float(early) == pytest.approx(late * (1 - 0.5 ** (count + 1)), rel=1e-6)
    schedule = optax.linear_schedule(1.0, 0.5, 10)
    assert float(stability.threshold("sgd", schedule, step=jnp.asarray(10, jnp.int32))) == 4.0


def test_bad_optimizers_say_what_to_do():
    with pytest.raises(ValueError, match=r"no formula for 'lion'.*step_multipliers needs no formula"):
        stability.threshold("lion", 0.1)
    with pytest.raises(ValueError, match=r"adam with nesterov=True.*step_multipliers"):
        stability.threshold("adam", 0.1, nesterov=True)
    with pytest.raises(ValueError, match="centered=True"):
        stability.threshold("rmsprop", 0.1, centered=True)
    with pytest.raises(TypeError, match=r"sgd.*momentun"):
        stability.threshold("sgd", 0.1, momentun=0.9)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        stability.threshold("sgd", -1.0)
    for momentum in (1.0, 1.5, "x"):
        with pytest.raises(ValueError, match="momentum must be a number from 0 to below 1"):
            stability.threshold("sgd", 0.1, momentum=momentum)
    with pytest.raises(ValueError, match="needs the step"):
        stability.threshold("sgd", optax.constant_schedule(0.1))


def network(optimizer, activation="tanh", width=7):
    batch = data.spiral(examples_per_class=10).train
    model = models.mlp(3, (width,), activation=activation, initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=5.0, period=40)
    problem = train.make_problem(model, losses.cross_entropy, schedule, optimizer, batch, key=KEY)
    return problem, train.init_state(jax.jit(model.init)(KEY, batch.inputs)[0], problem.optimizer)


def advance_by(problem):
    step_fn = train.problem_step(problem)
    return lambda state: step_fn(state)[0]


def dense_hessian(problem, state):
    matvec = operators.hessian(train.loss_of(problem, state), state.params, problem.train, state.step)
    return np.asarray(dense(matvec, state.params))


@pytest.mark.parametrize(
    "optimizer",
    [
        dict(name="sgd", learning_rate=3.0),
        dict(name="sgd", learning_rate=0.5, momentum=0.9),
        dict(name="adamw", learning_rate=0.05, weight_decay=0.1),
    ],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
def test_multipliers_are_those_of_the_dense_jacobian(float64, optimizer):
    problem, state = network(optimizer, width=30)  # 183 parameters: by Arnoldi
    with jax.numpy_dtype_promotion("standard"):
        advance = jax.jit(advance_by(problem))
        for _ in range(3):
            state = advance(state)
        found = stability.step_multipliers(advance_by(problem), state, num=3, key=KEY)
        moving = (state.params, state.opt_state)
        float_leaves = [x for x in jax.tree.leaves(moving) if jnp.isdtype(x.dtype, "real floating")]
        flat, unravel = ravel_pytree(float_leaves)

        def step(vector):
            values = iter(unravel(vector))
            given = jax.tree.map(
                lambda x: next(values) if jnp.isdtype(x.dtype, "real floating") else x, moving
            )
            after = advance_by(problem)(state._replace(params=given[0], opt_state=given[1]))
            leaves = jax.tree.leaves((after.params, after.opt_state))
            return ravel_pytree([x for x in leaves if jnp.isdtype(x.dtype, "real floating")])[0]

        exact = np.linalg.eigvals(np.asarray(jax.jit(jax.jacfwd(step))(flat)))
        exact = exact[np.abs(exact.imag) < 1e-9].real.min()
    assert found.converged
    assert found.flip == pytest.approx(exact, rel=1e-5)


def test_a_step_without_a_derivative_is_named(float64):
    adam = optimizers.make_optimizer("adam", 0.1)
    state = train.init_state(jnp.asarray([1.0, 1.0]), adam)
    with jax.numpy_dtype_promotion("standard"):
        advance = advance_of(quadratic(jnp.asarray([1.0, 0.0])), adam)  # a gradient that is always zero
        with pytest.raises(ValueError, match=r"no finite derivative.*eps_root"):
            stability.step_multipliers(advance, advance(state), key=KEY)


def test_a_rotation_is_reported_apart(float64):
    turn = 1.1 * jnp.asarray([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    found = stability.step_multipliers(
        lambda state: state._replace(params=turn @ state.params),
        TrainState(jnp.asarray(0), jnp.ones(2), (), ()),
        key=KEY,
    )
    assert np.isnan(found.flip)
    assert found.rotations == pytest.approx((1.1 * np.exp(0.4j),))


def test_no_rotation_hides_a_flip_or_another_rotation(float64):
    """By Arnoldi: many inner rotations, two outer ones, and a real multiplier behind them."""

    def block(value):
        return np.array([[value.real, -value.imag], [value.imag, value.real]])

    turning = [0.95 * np.exp(1j * a) for a in np.linspace(1.3, 1.8, 40)]
    blocks = [block(v) for v in (*turning, 1.1 * np.exp(0.3j), 1.3 * np.exp(2.6j))]
    matrix = np.zeros((100, 100))
    for i, b in enumerate(blocks):
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = b
    matrix[84:, 84:] = np.diag([-1.05, *np.linspace(-0.5, 0.5, 15)])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
    matrix = jnp.asarray(q @ matrix @ q.T)
    found = stability.step_multipliers(
        lambda state: state._replace(params=matrix @ state.params),
        TrainState(jnp.asarray(0), jnp.ones(100), (), ()),
        key=KEY,
    )
    assert found.flip == pytest.approx(-1.05, abs=1e-6) and found.converged
    assert found.rotations == pytest.approx((1.3 * np.exp(2.6j), 1.1 * np.exp(0.3j)), abs=1e-6)


def test_a_step_that_forgets_everything_has_no_multiplier_to_report(float64):
    state = TrainState(jnp.asarray(0), jnp.ones(70), (), ())
    found = stability.step_multipliers(lambda s: s._replace(params=0 * s.params), state, num=69, key=KEY)
    assert not found.converged or abs(found.flip) < 1e-6


def test_a_frozen_cycle_of_a_network_is_the_product_of_its_dense_steps(float64):
    optimizer = dict(name="sgd", learning_rate=0.5)
    problem, state = network(optimizer)

    def linearised(moved):
        """Advance a deviation from the frozen state, while the step and with it the loss moves on."""
        deviation = jax.tree.map(jnp.subtract, moved.params, state.params)

        def update(params):
            return advance_by(problem)(state._replace(step=moved.step, params=params)).params

        change = jax.jvp(update, (state.params,), (deviation,))[1]
        return moved._replace(step=moved.step + 1, params=jax.tree.map(jnp.add, state.params, change))

    found = stability.floquet_multipliers(linearised, state, num_steps=12, key=KEY)
    assert found.closure == 0
    product = np.eye(len(dense_hessian(problem, state)))
    for step in range(12):
        at = state._replace(step=jnp.asarray(step, jnp.int32))
        product = (np.eye(len(product)) - 0.5 * dense_hessian(problem, at)) @ product
    expected = np.linalg.eigvals(product)
    expected = expected[np.argsort(-np.abs(expected))][:6]
    np.testing.assert_allclose(np.abs(found.multipliers), np.abs(expected), rtol=1e-6)


def test_floquet_multipliers_are_the_product_along_the_cycle(float64):
    rate, period, num = 0.3, 25, 80  # above 64 numbers: by Arnoldi

    def curvature(step):
        return 5.0 + 4.0 * jnp.cos(2 * jnp.pi * step.astype(float) / period)

    def advance(state):
        scale = jnp.linspace(0.1, 1.0, num)
        slopes = curvature(state.step) * scale * state.params
        return state._replace(step=state.step + 1, params=state.params - rate * slopes)

    state = TrainState(jnp.asarray(0, jnp.int32), jnp.zeros(num), (), ())
    found = stability.floquet_multipliers(advance, state, num_steps=period, num=3, key=KEY)
    lam = np.asarray(jax.vmap(curvature)(jnp.arange(period)))[:, None] * np.linspace(0.1, 1, num)
    products = np.prod(1 - rate * lam, axis=0)
    expected = products[np.argsort(-np.abs(products))][:3]
    np.testing.assert_allclose(found.multipliers, expected, rtol=1e-6)
    assert found.closure == 0 and found.converged
    # above 2 / eta for a part of the cycle, and yet it contracts
    assert lam.max() > 2 / rate and np.abs(expected).max() < 1


def logistic(rate):
    """Gradient descent on x^2/2 - x^3/3: the logistic map with r = 1 + rate."""
    advance = advance_of(lambda x: x**2 / 2 - x**3 / 3, optimizers.make_optimizer("sgd", rate))
    return advance, train.init_state(jnp.asarray(0.3), optimizers.make_optimizer("sgd", rate))


def test_the_exponent_of_the_logistic_map_is_ln_2(float64):
    advance, state = logistic(3.0)
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=20_000, key=KEY)
    assert float(jnp.mean(growth)) == pytest.approx(np.log(2), abs=1e-3)


def test_several_exponents_come_in_order(float64):
    curvatures = jnp.asarray([3.0, 2.5, 0.5, 0.1])
    advance = advance_of(quadratic(curvatures), optimizers.make_optimizer("sgd", 1.0))
    state = train.init_state(jnp.zeros(4), optimizers.make_optimizer("sgd", 1.0))
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=400, num=4, key=KEY)
    expected = sorted(np.log(np.abs(1 - np.asarray(curvatures))), reverse=True)
    np.testing.assert_allclose(growth[100:].mean(axis=0), expected, atol=1e-3)
    with pytest.raises(ValueError, match="from 1 to 4"):
        stability.first_tangents(state, 5, key=KEY)


def test_the_exponent_as_a_probe_is_that_of_the_run(float64):
    problem, state = network(dict(name="sgd", learning_rate=1.0))
    probe = probes.lyapunov(problem, num=1)
    loop = train.make_loop(train.problem_step(problem), {"lyapunov": probe})
    _, _, series = loop(state, {"lyapunov": probe.init(state)}, 20)
    _, growth = stability.lyapunov_exponents(advance_by(problem), state, num_steps=20, key=problem.key)
    np.testing.assert_allclose(series["log_growth"], growth, rtol=1e-9)
    with pytest.raises(ValueError, match="num must be"):
        probes.lyapunov(problem, num=0)
