"""Losses against optax, closed forms and their own linearity in the class weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf import losses, schedules
from dlf.types import Batch


@pytest.fixture
def sample():
    rng = np.random.RandomState(1)
    logits, labels = rng.randn(11, 4) * 3, rng.randint(0, 4, 11)
    weights = rng.rand(4) + 0.1
    return jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(4 * weights / weights.sum())


def test_unit_weights_give_optax_cross_entropy(x64, sample):
    logits, labels, weights = sample
    found = losses.cross_entropy(logits, labels, jnp.ones_like(weights))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # atol: a loss near zero is the difference of logits of order 10
    np.testing.assert_allclose(found, expected, **dict(rtol=1e-13) if x64 else dict(rtol=1e-5, atol=1e-6))


def test_weighted_losses_are_their_formulas(float64):
    rng = np.random.RandomState(2)
    f, y, gamma = rng.randn(6, 3), rng.randint(0, 3, 6), np.array([0.5, 1.0, 1.5])
    delta = np.eye(3)[y]
    log_softmax = f - np.log(np.exp(f).sum(1, keepdims=True))
    expected = {
        "cross_entropy": [-gamma[y[j]] * log_softmax[j, y[j]] for j in range(6)],
        "dmse1": [gamma[y[j]] * sum((f[j] - delta[j]) ** 2) for j in range(6)],
        "dmse2": [sum(gamma * (f[j] - delta[j]) ** 2) for j in range(6)],
    }
    assert set(expected) == set(losses.__all__)
    for name, values in expected.items():
        found = getattr(losses, name)(jnp.asarray(f), jnp.asarray(y), jnp.asarray(gamma))
        np.testing.assert_allclose(found, values, rtol=1e-13)


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_keeps_shape_and_dtype_and_is_linear_in_the_weights(x64, name):
    rng = np.random.RandomState(3)
    logits, labels = jnp.asarray(rng.randn(7, 3)), jnp.asarray(rng.randint(0, 3, 7))
    a, b = jnp.asarray(rng.rand(3)), jnp.asarray(rng.rand(3))
    loss = getattr(losses, name)
    assert loss(logits, labels, a).shape == (7,)
    assert loss(logits, labels, a).dtype == logits.dtype
    np.testing.assert_allclose(
        loss(logits, labels, 2 * a + b),
        2 * loss(logits, labels, a) + loss(logits, labels, b),
        rtol=1e-13 if x64 else 1e-5,
    )


@pytest.mark.parametrize("name", losses.__all__)
def test_the_dynamical_loss_is_the_weights_times_the_class_losses(float64, name):
    rng = np.random.RandomState(4)
    batch = Batch(jnp.asarray(rng.randn(9, 2)), jnp.asarray(rng.randint(0, 3, 9)))
    params, step = jnp.asarray(rng.randn(2, 3)), jnp.asarray(17, jnp.int32)
    schedule = schedules.triangular(3, amplitude=70.0, period=40)

    def apply_fn(w, x):
        return x @ w

    loss_fn = losses.make_loss(apply_fn, getattr(losses, name), schedule)
    class_losses = losses.make_class_losses(apply_fn, getattr(losses, name))
    np.testing.assert_allclose(
        loss_fn(params, batch, step), schedule(step) @ class_losses(params, batch), rtol=1e-13
    )
    hessian = jax.jit(jax.hessian(loss_fn))(params, batch, step)
    parts = jax.jit(jax.hessian(class_losses))(params, batch)
    np.testing.assert_allclose(hessian, jnp.einsum("c,c...->...", schedule(step), parts), atol=1e-13)


def test_amplitude_one_is_optax_cross_entropy_at_every_step(float64):
    rng = np.random.RandomState(5)
    batch = Batch(jnp.asarray(rng.randn(9, 2)), jnp.asarray(rng.randint(0, 3, 9)))
    params = jnp.asarray(rng.randn(2, 3))
    loss_fn = losses.make_loss(
        lambda w, x: x @ w, losses.cross_entropy, schedules.triangular(3, amplitude=1.0, period=7)
    )
    loss_fn = jax.jit(loss_fn)
    expected = optax.softmax_cross_entropy_with_integer_labels(batch.inputs @ params, batch.labels).mean()
    for step in range(25):
        np.testing.assert_allclose(loss_fn(params, batch, jnp.asarray(step, jnp.int32)), expected, rtol=1e-14)


def test_logits_of_a_thousand_do_not_overflow(x64):
    logits = jnp.asarray([[1000.0, 0.0], [0.0, 1000.0]])
    found = losses.cross_entropy(logits, jnp.asarray([0, 0]), jnp.ones(2))
    np.testing.assert_allclose(found, [0.0, 1000.0])


def test_accuracy_counts_the_largest_logit(x64):
    logits = jnp.asarray([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 4.0]])
    assert losses.accuracy(logits, jnp.asarray([0, 1, 1, 0])) == 0.75
