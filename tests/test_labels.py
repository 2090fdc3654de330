"""What is no classification is refused, and what is not finite is neither invented nor lost.

On the module as users have it: elsewhere in the tests a checker of the signatures would speak first.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf import losses as checked
from dlf import schedules
from dlf.types import Batch

SPEC = importlib.util.spec_from_file_location("losses_of_users", checked.__file__)
losses = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(losses)
CATALOGUE = [getattr(losses, name) for name in losses.__all__]
LOGITS, LABELS = np.random.RandomState(0).randn(6, 3), np.array([0, 1, 2, 2, 1, 0])


def identity(logits, inputs):
    return logits


def calls(logits, labels, weights):
    """Everything that takes logits and labels, as functions without arguments."""
    batch, step = Batch(logits, labels), jnp.asarray(0)
    yield lambda: losses.accuracy(logits, labels)
    for loss in CATALOGUE:
        yield lambda loss=loss: loss(logits, labels, weights)
        F = losses.make_loss(identity, loss, lambda step: weights)
        yield lambda F=F: jax.eval_shape(lambda w: F(w, batch, step), logits)
        yield lambda F=F: jax.grad(F)(logits, batch, step)
        yield lambda loss=loss: losses.make_class_losses(identity, loss)(logits, batch)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[:, :1], LABELS, "make one logit f two"),
        (LOGITS[:, 0], LABELS, "make one logit f two"),
        (LOGITS[:, :, None], LABELS, "two classes or more, got float32[6, 3, 1]"),
        (LOGITS[None], LABELS[None], "two classes or more, got float32[1, 6, 3]"),
        (LOGITS + 1j, LABELS, "logits must be real"),
        (LOGITS, np.eye(3)[LABELS], "labels.argmax(1) of one-hot rows"),
        (LOGITS, np.eye(3, dtype=int)[LABELS], "labels.argmax(1) of one-hot rows"),
        (LOGITS, LABELS[:, None], "labels[:, 0] of a column"),
        (LOGITS, LABELS[:5], "labels must be integers [6], one for each example, got int32[5]"),
        (LOGITS, LABELS[0], "labels must be integers [6]"),
        (LOGITS, LABELS.astype(float), "labels must be integers [6], one for each example, got float32[6]"),
        (LOGITS, LABELS > 0, "labels must be integers [6], one for each example, got bool[6]"),
    ],
)
def test_what_is_no_classification_is_refused_in_one_line(logits, labels, message):
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    for call in calls(logits, labels, jnp.ones(logits.shape[-1])):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("weights", [np.ones(2), np.ones(1), np.ones(()), np.ones((6, 3)), np.ones(3) * 1j])
def test_weights_are_one_real_number_for_each_logit(weights):
    for loss in CATALOGUE:
        with pytest.raises(ValueError, match=r"weights must be real \[3\], one for each logit"):
            loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(weights))


@pytest.mark.parametrize("wrong", [3, 100, -1, -100])
def test_labels_that_are_no_class_are_refused_where_they_are_known(wrong):
    labels = LABELS.copy()
    labels[3] = wrong
    for data in (labels, jnp.asarray(labels), labels.astype(np.int8)):
        for call in calls(jnp.asarray(LOGITS), data, jnp.ones(3)):
            with pytest.raises(ValueError, match=f"labels must be from 0 to 2 for 3 logits, got {wrong}"):
                call()
    constant = jnp.asarray(labels)  # of a compiled function
    with pytest.raises(ValueError, match="number the classes from 0"):
        jax.jit(lambda logits: losses.accuracy(logits, constant))(LOGITS)


@pytest.mark.parametrize("loss", CATALOGUE, ids=losses.__all__)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 1, 0], [0, 1, -1, 2, 1, 0], [3] * 6, [-100] * 6])
def test_labels_that_are_no_class_give_nan_with_all_derivatives_where_they_are_not_known(loss, labels):
    F, step = losses.make_loss(identity, loss, schedules.constant(3)), jnp.asarray(0)

    @jax.jit
    def measured(logits, labels):
        batch = Batch(logits, labels)
        value, grad = jax.value_and_grad(F)(logits, batch, step)
        hvp = jax.jvp(jax.grad(lambda p: F(p, batch, step)), (logits,), (jnp.ones_like(logits),))[1]
        classes = losses.make_class_losses(identity, loss)(logits, batch)
        return loss(logits, labels, jnp.ones(3)), value, grad, hvp, classes, losses.accuracy(logits, labels)

    logits = jnp.asarray(LOGITS)
    values, value, grad, hvp, classes, accuracy = measured(logits, jnp.asarray(labels))
    assert jnp.isnan(jnp.asarray([value, accuracy, *values, *classes, *grad.ravel(), *hvp[:, 0]])).all()
    assert all(jnp.isfinite(leaf).all() for leaf in measured(logits, jnp.asarray(LABELS)))


def test_a_label_type_too_short_for_the_classes_counts_right():
    logits, labels = jnp.zeros((2, 300)), jnp.asarray([4, 255], "uint8")
    for loss in CATALOGUE:
        expected = loss(logits, labels.astype(int), jnp.ones(300))
        np.testing.assert_array_equal(loss(logits, labels, jnp.ones(300)), expected)
    assert losses.accuracy(jax.nn.one_hot(jnp.asarray([4, 255]), 300), labels) == 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_impossible_classes_are_no_part_of_loss_gradient_and_curvature(float64, compiled, place):
    """Against optax on the logits of the other classes alone, in which class numbers are shifted."""
    jit = jax.jit if compiled else lambda fn: fn
    gamma, w = np.array([0.5, 2.0, 1.0, 0.5]), jnp.asarray(np.random.RandomState(1).randn(2, 4))
    kept = np.delete(np.arange(4), place)
    x, y = jnp.asarray(np.random.RandomState(2).randn(6, 2)), jnp.asarray(kept[LABELS])
    mask = jnp.zeros(4).at[place].set(-jnp.inf)

    def apply_fn(w, x):
        return x @ w + mask[None]

    def found(w):
        return F(w, Batch(x, y), 0)

    F = losses.make_loss(apply_fn, losses.cross_entropy, lambda step: jnp.asarray(gamma))

    def expected(w):
        each = optax.softmax_cross_entropy_with_integer_labels((x @ w)[:, kept], jnp.asarray(LABELS))
        return jnp.mean(jnp.asarray(gamma)[y] * each)

    for derivative in (lambda fn: fn, jax.grad, jax.hessian):
        np.testing.assert_allclose(jit(derivative(found))(w), derivative(expected)(w), atol=1e-14)
    classes = jit(losses.make_class_losses(apply_fn, losses.cross_entropy))(w, Batch(x, y))
    np.testing.assert_allclose(gamma @ np.asarray(classes), expected(w), rtol=1e-14)
    assert jnp.isfinite(losses.accuracy(apply_fn(w, x), y))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_impossible_class_that_happens_has_an_infinite_loss(x64, compiled):
    call = jax.jit(losses.cross_entropy) if compiled else losses.cross_entropy
    logits = jnp.asarray([[-jnp.inf, 0.0], [-jnp.inf, -jnp.inf]])
    assert not jnp.isfinite(call(logits, jnp.asarray([0, 0]), jnp.ones(2))).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("example", [0, 4])
def test_a_broken_logit_is_never_lost(dtype, bad, example):
    labels = jnp.asarray(LABELS)
    for place in range(3):
        logits = jnp.asarray(LOGITS, dtype).at[example, place].set(bad)
        assert jnp.isnan(losses.accuracy(logits, labels))
        assert jnp.isnan(losses.cross_entropy(logits, labels, jnp.ones(3, dtype))[example])
        for loss in CATALOGUE[1:]:
            assert not jnp.isfinite(loss(logits, labels, jnp.ones(3, dtype))[example])


@pytest.mark.parametrize("shape", [(300, 3), (5_000, 10), (100_000, 3)])
def test_a_broken_logit_is_never_lost_among_many(shape):
    """The maximum of XLA on CPU passes over a NaN in an array of this size."""
    logits = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.argmax(logits, axis=1)
    for place in ((7, 2), (shape[0] // 2, 0), (shape[0] - 1, shape[1] - 1)):
        for of in (losses.are_right, jax.jit(losses.are_right)):
            right = of(logits.at[place].set(jnp.nan), labels)
            assert jnp.isnan(right[place[0]]) and jnp.isnan(right).sum() == 1


def test_sound_data_pass_where_a_nan_would_stop_the_program(x64):
    logits = jnp.asarray(LOGITS).at[0, 1].set(-jnp.inf)
    with jax.debug_nans(True):
        F = losses.make_loss(identity, losses.cross_entropy, schedules.triangular(3, 5.0, 10))
        for transform in (lambda fn: fn, jax.jit):
            assert jnp.isfinite(transform(F)(logits, Batch(logits, jnp.asarray(LABELS)), 3))
            assert jnp.isfinite(transform(losses.accuracy)(logits, jnp.asarray(LABELS)))


def test_an_empty_batch_has_losses_and_no_mean():
    logits, labels = jnp.zeros((0, 3)), jnp.zeros(0, int)
    for loss in CATALOGUE:
        assert loss(logits, labels, jnp.ones(3)).shape == (0,)
        with pytest.raises(ValueError, match="the batch is empty"):
            losses.make_loss(identity, loss, schedules.constant(3))(logits, Batch(logits, labels), 0)
    with pytest.raises(ValueError, match="the batch is empty"):
        losses.accuracy(logits, labels)
