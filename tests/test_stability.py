"""Thresholds, multipliers, exponents and flips on systems that can be solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from analysis import probes, stability
from dlf import data, losses, models, schedules, train
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


def chain(name, settings, rate=RATE):
    if name == "ema":
        return optax.chain(optax.ema(**settings), optax.scale_by_learning_rate(rate))
    return train.make_optimizer(name, rate, **settings)


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
        for _ in range(40):  # the bias correction dies out
            state = advance_of(loss, chosen)(state)
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
    with pytest.raises(ValueError, match="needs the step"):
        stability.threshold("sgd", optax.constant_schedule(0.1))


def network(optimizer, activation="tanh", width=7):
    batch = data.spiral(examples_per_class=10).train
    model = models.mlp(3, (width,), activation=activation, initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=5.0, period=40)
    problem = train.make_problem(
        model.apply, losses.cross_entropy, schedule, data.full_batch(batch), optimizer, batch, KEY
    )
    state = train.init_state(model.init(KEY, batch.inputs), train.make_optimizer(**optimizer))
    return problem, state


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
        for _ in range(3):
            state = problem.advance(state)
        found = stability.step_multipliers(problem.advance, state, num=3, key=KEY)
        moving = (state.params, state.opt_state)
        float_leaves = [x for x in jax.tree.leaves(moving) if jnp.isdtype(x.dtype, "real floating")]
        flat, unravel = ravel_pytree(float_leaves)

        def step(vector):
            values = iter(unravel(vector))
            given = jax.tree.map(
                lambda x: next(values) if jnp.isdtype(x.dtype, "real floating") else x, moving
            )
            after = problem.advance(state._replace(params=given[0], opt_state=given[1]))
            leaves = jax.tree.leaves((after.params, after.opt_state))
            return ravel_pytree([x for x in leaves if jnp.isdtype(x.dtype, "real floating")])[0]

        dense = np.linalg.eigvals(np.asarray(jax.jacfwd(step)(flat)))
    assert found.converged
    assert found.flip.real == pytest.approx(dense.real.min(), rel=1e-5)
    if optimizer["name"] == "sgd" and len(optimizer) == 2:
        lanczos = stability.step_multipliers(problem.advance, state, symmetric=True, key=KEY)
        assert lanczos.flip.real == pytest.approx(dense.real.min(), rel=1e-5)


def test_a_step_without_a_derivative_is_named(float64):
    adam = train.make_optimizer("adam", 0.1)
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
    assert found.flip.real > 0
    assert found.rotations == pytest.approx((1.1 * np.exp(0.4j),))


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


def logistic(rate, num_steps, start=0.3):
    """Gradient descent on x^2/2 - x^3/3: the logistic map with r = 1 + rate."""
    advance = advance_of(lambda x: x**2 / 2 - x**3 / 3, train.make_optimizer("sgd", rate))
    state = train.init_state(jnp.asarray(start), train.make_optimizer("sgd", rate))
    return advance, state, num_steps


def test_the_exponent_of_the_logistic_map_is_ln_2(float64):
    advance, state, num_steps = logistic(3.0, 20_000)
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=num_steps, key=KEY)
    assert float(jnp.mean(growth)) == pytest.approx(np.log(2), abs=1e-3)


def test_several_exponents_come_in_order(float64):
    curvatures = jnp.asarray([3.0, 2.5, 0.5, 0.1])
    advance = advance_of(quadratic(curvatures), train.make_optimizer("sgd", 1.0))
    state = train.init_state(jnp.zeros(4), train.make_optimizer("sgd", 1.0))
    _, growth = stability.lyapunov_exponents(advance, state, num_steps=400, num=4, key=KEY)
    expected = sorted(np.log(np.abs(1 - np.asarray(curvatures))), reverse=True)
    np.testing.assert_allclose(growth[100:].mean(axis=0), expected, atol=1e-3)
    with pytest.raises(ValueError, match="from 1 to 4"):
        stability.first_tangents(state, 5, key=KEY)


def test_the_exponent_as_a_probe_is_that_of_the_run(x64):
    problem, state = network(dict(name="sgd", learning_rate=1.0))
    probe = probes.lyapunov(problem, num=1)
    step_fn = train.make_step(problem.loss_fn, problem.batch_fn, train.make_optimizer("sgd", 1.0))
    loop = train.make_loop(step_fn, {"lyapunov": probe})
    _, _, series = loop(state, {"lyapunov": probe.init(state)}, 20)
    _, growth = stability.lyapunov_exponents(problem.advance, state, num_steps=20, key=problem.key)
    np.testing.assert_allclose(series["log_growth"], growth, rtol=1e-3 if not x64 else 1e-9)
    with pytest.raises(ValueError, match="num must be"):
        probes.lyapunov(problem, num=0)


def test_the_cubic_has_the_coefficient_and_the_two_cycle_of_theory(float64):
    def loss(x):
        return x**2 / 2 - x**3 / 3

    exact = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), 2.0)
    assert float(exact.coefficient) == pytest.approx(4.0)
    rate = 2.01
    flip = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), rate)
    advance, state, _ = logistic(rate, 0, start=0.01)
    after = jax.lax.fori_loop(0, 20_000, lambda _, s: advance(s), state)
    amplitude = abs(float(after.params - advance(after).params)) / 2
    assert float(flip.amplitude) == pytest.approx(amplitude, rel=0.01)  # next order: eta lambda - 2


def test_a_hardening_quartic_has_a_negative_coefficient_and_diverges(float64):
    def loss(x):
        return x**2 / 2 + x**4 / 4

    flip = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), 2.01)
    assert float(flip.coefficient) == pytest.approx(-2.01)
    assert np.isnan(float(flip.amplitude))
    sgd = train.make_optimizer("sgd", 2.01)
    state = train.init_state(jnp.asarray(1e-3), sgd)
    after = jax.lax.fori_loop(0, 2_000, lambda _, s: advance_of(loss, sgd)(s), state)
    assert not abs(float(after.params)) < 1e3


def test_a_singular_hessian_is_restricted_and_says_so(float64):
    def valley(p):
        return p[0] ** 2 / 2 - p[0] ** 3 / 3 + 0 * p[1]

    def twisted(p):  # its third derivative lies in the flat direction
        return p[0] ** 2 / 2 + p[0] ** 2 * p[1]

    flip = stability.flip_coefficient(valley, jnp.zeros(2), jnp.asarray([2.0, 0.0]), 2.0)
    assert float(flip.coefficient) == pytest.approx(4.0)
    assert flip.num_dropped == 1 and flip.dropped_share == 0 and flip.gradient_norm == 0
    assert stability.flip_coefficient(twisted, jnp.zeros(2), jnp.asarray([1.0, 0.0]), 2.0).dropped_share == 1
    with pytest.raises(ValueError, match="direction must not be zero"):
        stability.flip_coefficient(valley, jnp.zeros(2), jnp.zeros(2), 2.0)
    with pytest.raises(ValueError, match="at most 5,000 parameters"):
        stability.flip_coefficient(lambda p: jnp.sum(p**2), jnp.zeros(5_001), jnp.ones(5_001), 2.0)


@pytest.mark.parametrize("loss_name", ["cross_entropy", "dmse1"])
def test_a_tanh_twin_of_the_spiral_network_has_the_two_cycle_that_is_predicted(float64, loss_name):
    batch = data.spiral(examples_per_class=20, num_turns=0.5).train
    model = models.mlp(3, (8,), activation="tanh", initialization="updated", use_bias=True)
    loss_fn = losses.make_loss(model.apply, getattr(losses, loss_name), schedules.constant(3))
    flat, unravel = ravel_pytree(model.init(KEY, batch.inputs))

    def loss(p):  # weight decay isolates the minimum and quickens the approach along soft directions
        return loss_fn(unravel(p), batch, jnp.asarray(0, jnp.int32)) + 2e-3 * jnp.sum(p**2)

    value_and_grad, hessian = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))
    found = minimize(lambda x: tuple(map(np.asarray, value_and_grad(x))), flat, jac=True, method="BFGS")
    x = jnp.asarray(found.x)
    for _ in range(8):  # Newton's method, to rounding
        x = x - jnp.linalg.solve(hessian(x), jax.grad(loss)(x))
    values, vectors = np.linalg.eigh(hessian(x))
    rate = 2.01 / values[-1]
    flip = stability.flip_coefficient(loss, x, jnp.asarray(vectors[:, -1]), rate)
    assert flip.gradient_norm < 1e-12 and flip.num_dropped == 0 and float(flip.coefficient) > 0
    descend = jax.jit(lambda x: jax.lax.fori_loop(0, 20_000, lambda _, y: y - rate * jax.grad(loss)(y), x))
    x = descend(x + 1e-3 * vectors[:, -1])
    amplitude = float(jnp.linalg.norm(rate * jax.grad(loss)(x))) / 2
    assert float(flip.amplitude) == pytest.approx(amplitude, rel=0.02)  # next order in eta lambda - 2
