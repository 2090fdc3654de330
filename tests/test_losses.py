"""Losses against optax, closed forms and their own linearity in the class weights."""

from functools import partial

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_and_accuracy_of_half_precision_are_computed_in_the_default_float(x64, dtype):
    logits = jnp.asarray(100 * np.random.RandomState(6).randn(4000, 3), dtype)  # squares beyond float16
    batch, gamma = Batch(logits, jnp.arange(4000) % 3), schedules.triangular(3, 5.0, 10)
    wide = jnp.asarray(logits, float)
    for name in losses.__all__:
        loss = getattr(losses, name)
        found = losses.make_loss(lambda w, x: x, loss, gamma)((), batch, 3)
        assert found == jnp.mean(loss(wide, batch.labels, gamma(3)))
        halves = gamma(3).astype(dtype)
        np.testing.assert_array_equal(
            loss(logits, batch.labels, halves), loss(wide, batch.labels, halves.astype(float))
        )
        classes = losses.make_class_losses(lambda w, x: x, loss)((), batch)
        np.testing.assert_allclose(gamma(3) @ classes, found, rtol=1e-6)
    assert losses.accuracy(logits, batch.labels) == losses.accuracy(wide, batch.labels)


def distance(outputs, targets, weights, *, power=2):
    """Regression in three groups, told by the first target, of one or several outputs."""
    group = jnp.floor(targets.reshape(len(targets), -1)[:, 0]).astype(int)
    errors = jnp.abs(outputs - targets).reshape(len(targets), -1) ** power
    return jnp.sum(jax.nn.one_hot(group, len(weights), dtype=weights.dtype) * weights[None], 1) * errors.sum(
        1
    )


@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 2), (9, 2, 2)])
def test_regression_under_an_own_loss_with_as_many_weights_as_groups(float64, shape):
    rng = np.random.RandomState(7)
    batch = Batch(jnp.asarray(rng.randn(9)), jnp.asarray(3 * rng.rand(*shape)))
    gamma, weights = schedules.triangular(3, amplitude=5.0, period=10), jnp.asarray(rng.randn(*shape[1:]))
    loss = partial(distance, power=4)

    def apply_fn(w, x):
        return x.reshape(-1, *(1 for _ in shape[1:])) * w[None] if w.ndim else x * w

    errors = ((apply_fn(weights, batch.inputs) - batch.labels) ** 4).reshape(9, -1).sum(1)
    group = np.floor(np.asarray(batch.labels).reshape(9, -1)[:, 0]).astype(int)
    expected = [float(errors[group == c].sum() / 9) for c in range(3)]
    classes = losses.make_class_losses(apply_fn, loss, num_classes=3)
    np.testing.assert_allclose(classes(weights, batch), expected, rtol=1e-13)
    found = losses.make_loss(apply_fn, loss, gamma)(weights, batch, 13)
    np.testing.assert_allclose(found, np.asarray(gamma(13)) @ expected, rtol=1e-13)
    losses.check_loss(loss, apply_fn(weights, batch.inputs), batch.labels, num_classes=3)
    assert losses.rightness_of(loss) is None


def test_the_number_of_weights_of_an_own_loss_must_be_said():
    with pytest.raises(ValueError, match="num_classes must be the number of weights"):
        losses.make_class_losses(lambda w, x: x, distance)


@pytest.mark.parametrize(
    "reduced",
    [jnp.mean, lambda each: each[:, None], jnp.diag, lambda each: each[:-1], lambda each: each > 0],
)
def test_an_own_loss_that_returns_no_number_for_each_example_is_refused(sample, reduced):
    logits, labels, _ = sample

    def loss(logits, labels, weights):
        return reduced(losses.cross_entropy(logits, labels, weights))

    batch = Batch(logits, labels)
    for call in (
        lambda: losses.make_loss(lambda w, x: x, loss, schedules.constant(4))((), batch, 0),
        lambda: losses.make_class_losses(lambda w, x: x, loss, num_classes=4)((), batch),
        lambda: losses.check_loss(loss, logits, labels, num_classes=4),
    ):
        with pytest.raises(ValueError, match="must return one real number for each example"):
            call()


NONLINEAR = {
    "squared": lambda f, y, w: losses.cross_entropy(f, y, w**2),
    "rooted": lambda f, y, w: losses.dmse1(f, y, jnp.sqrt(w)),
    "normalised": lambda f, y, w: losses.dmse2(f, y, w / w.sum()),
    "relative to the largest": lambda f, y, w: losses.cross_entropy(f, y, w) * w.max(),
    "with a floor": lambda f, y, w: losses.cross_entropy(f, y, jnp.maximum(w, 0.5)),
    "with a ceiling": lambda f, y, w: losses.cross_entropy(f, y, jnp.minimum(w, 50.0)),
    "with a part that has no weight": lambda f, y, w: losses.cross_entropy(f, y, w) + 0.1 * (f**2).sum(1),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_loss_that_is_not_linear_in_the_weights_is_noticed(x64, sample, name):
    logits, labels, _ = sample
    with pytest.raises(ValueError, match="not linear in its weights"):
        losses.check_loss(NONLINEAR[name], logits, labels, num_classes=4)


def test_a_loss_in_which_examples_interact_is_noticed(x64, sample):
    def shared(logits, labels, weights):
        each = losses.cross_entropy(logits, labels, weights)
        return each / jnp.mean(losses.cross_entropy(logits, labels, jnp.ones_like(weights)))

    def column(logits, labels, weights):  # [examples, examples], since the labels are a row
        return jnp.mean((logits[:, :1] - labels[None].astype(logits.dtype)) ** 2, axis=1) * weights[0]

    for loss in (shared, column):
        with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match="depends on others"):
            losses.check_loss(loss, *sample[:2], num_classes=4)


@pytest.mark.parametrize("name", losses.__all__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_catalogue_passes_its_own_check_at_any_size_of_logits(sample, name, dtype):
    for scale in (0, 1, 1e4, np.inf, np.nan):
        logits = jnp.asarray(sample[0] * scale, dtype)
        losses.check_loss(getattr(losses, name), logits, sample[1], num_classes=4)


def test_what_is_right_is_found_through_settings_and_brought_by_an_own_loss():
    def within(outputs, targets):
        return (jnp.abs(outputs - targets) < 1).astype(outputs.dtype)

    def own(outputs, targets, weights, *, power=2):
        return weights[0] * jnp.abs(outputs - targets) ** power

    assert losses.rightness_of(own) is None
    own.are_right = within
    for loss in (own, partial(own, power=4), partial(partial(own), power=4)):
        right = losses.rightness_of(loss)(jnp.zeros(2), jnp.asarray([0.5, 1.0]))
        assert right.tolist() == [1, 0] and right.dtype == jnp.zeros(2).dtype
    for name in losses.__all__:
        assert losses.rightness_of(partial(getattr(losses, name))) is losses.are_right


@pytest.mark.parametrize("weights", [[-1.0, 3.0, 1.0], [0.0, 2.0, 1.0], [5.0] * 3, [1j] * 3, [1, 1, 1]])
def test_weights_that_are_none_are_refused_where_the_loss_is_built(x64, weights):
    with pytest.raises(ValueError, match="schedule: weights must be"):
        losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, lambda step: jnp.asarray(weights))


@pytest.mark.parametrize("step", [7, np.int64(7), np.uint8(7), np.asarray(7)])
def test_the_step_may_be_a_number_of_python_or_numpy(x64, step):
    batch = Batch(jnp.ones((2, 1)), jnp.asarray([0, 1]))
    seen = []

    def own(step):
        seen.append(step.dtype.name)
        return jnp.where(step % 2 == 0, jnp.ones(2), jnp.asarray([0.5, 1.5]))

    for schedule in (schedules.triangular(2, 5.0, 10), own):
        F = losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, schedule)
        w = jnp.asarray([[1.0, 2.0]])
        assert F(w, batch, step) == F(w, batch, jnp.asarray(7, jnp.int32))
    assert set(seen) == {"int32"}
