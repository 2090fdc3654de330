"""What follows a flip: on solvable losses, and on a tanh twin of the spiral network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from analysis import stability
from dlf import data, losses, models, schedules


def descend(loss, x, rate, num_steps):
    """Return the point after so many steps of gradient descent, and half of the next step."""
    gradient = jax.grad(loss)
    x = jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, lambda _, y: y - rate * gradient(y), x))(x)
    return x, float(jnp.linalg.norm(rate * gradient(x))) / 2


def test_the_cubic_has_the_coefficient_and_the_two_cycle_of_theory(float64):
    def loss(x):
        return x**2 / 2 - x**3 / 3

    exact = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), 2.0)
    assert float(exact.coefficient) == pytest.approx(4.0)
    rate = 2.01
    flip = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), rate)
    _, amplitude = descend(loss, jnp.asarray(0.01), rate, 20_000)
    assert float(flip.amplitude) == pytest.approx(amplitude, rel=0.01)  # next order: eta lambda - 2


def test_a_hardening_quartic_has_a_negative_coefficient_and_diverges(float64):
    def loss(x):
        return x**2 / 2 + x**4 / 4

    flip = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), 2.01)
    assert float(flip.coefficient) == pytest.approx(-2.01)
    assert np.isnan(float(flip.amplitude))
    far, _ = descend(loss, jnp.asarray(1e-3), 2.01, 2_000)
    assert not abs(float(far)) < 1e3


def test_a_singular_hessian_is_restricted_and_says_so(float64):
    def valley(p):
        return p[0] ** 2 / 2 - p[0] ** 3 / 3 + 0 * p[1]

    def twisted(p):  # its third derivative lies in the flat direction
        return p[0] ** 2 / 2 + p[0] ** 2 * p[1]

    flip = stability.flip_coefficient(valley, jnp.zeros(2), jnp.asarray([2.0, 0.0]), 2.0)
    assert float(flip.coefficient) == pytest.approx(4.0)
    assert flip.num_dropped == 1 and flip.dropped_share == 0 and flip.gradient_norm == 0
    assert flip.direction_residual == 0
    slanted = stability.flip_coefficient(valley, jnp.zeros(2), jnp.ones(2), 2.0)
    assert slanted.direction_residual == pytest.approx(0.5)  # of [1, 1] for diag(1, 0)
    assert stability.flip_coefficient(twisted, jnp.zeros(2), jnp.asarray([1.0, 0.0]), 2.0).dropped_share == 1
    with pytest.raises(ValueError, match="direction must be finite and not zero"):
        stability.flip_coefficient(valley, jnp.zeros(2), jnp.zeros(2), 2.0)
    with pytest.raises(ValueError, match="at most 5,000 parameters"):
        stability.flip_coefficient(lambda p: jnp.sum(p**2), jnp.zeros(5_001), jnp.ones(5_001), 2.0)


@pytest.mark.parametrize("loss_name", ["cross_entropy", "dmse1"])
def test_a_tanh_twin_of_the_spiral_network_has_the_two_cycle_that_is_predicted(float64, loss_name):
    batch = data.spiral(examples_per_class=20, num_turns=0.5).train
    model = models.mlp(3, (8,), activation="tanh", initialization="updated", use_bias=True)
    loss_fn = losses.make_loss(models.apply_fn(model), getattr(losses, loss_name), schedules.constant(3))
    flat, unravel = ravel_pytree(model.init(jax.random.key(0), batch.inputs)[0])

    def loss(p):  # weight decay isolates the minimum and quickens the approach along soft directions
        return loss_fn(unravel(p), batch, jnp.asarray(0, jnp.int32)) + 2e-3 * jnp.sum(p**2)

    value_and_grad, hessian = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))
    found = minimize(lambda x: tuple(map(np.asarray, value_and_grad(x))), flat, jac=True, method="BFGS")
    x = jnp.asarray(found.x)
    for _ in range(8):  # Newton's method, to rounding
        x = x - jnp.linalg.solve(hessian(x), value_and_grad(x)[1])
    values, vectors = np.linalg.eigh(hessian(x))
    rate = 2.01 / values[-1]
    flip = stability.flip_coefficient(loss, x, jnp.asarray(vectors[:, -1]), rate)
    assert flip.gradient_norm < 1e-12 and flip.num_dropped == 0 and float(flip.coefficient) > 0
    _, amplitude = descend(loss, x + 1e-3 * vectors[:, -1], rate, 20_000)
    assert float(flip.amplitude) == pytest.approx(amplitude, rel=0.02)  # next order in eta lambda - 2
