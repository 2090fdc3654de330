"""Products in parts: right, or refused when they are built, whatever couples the examples of a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from analysis import ntk, operators, tracking
from analysis.linear_maps import dense
from analysis.parts import check_network, check_parts
from dlf import data, losses, schedules
from dlf.types import Batch

STEP = jnp.asarray(17, jnp.int32)
RARE = Batch(np.random.RandomState(0).randn(40, 2), np.array([0] * 39 + [1]))
GAMMA = np.array([0.3, 2.7, 1.0])


def each(w, batch):
    return optax.softmax_cross_entropy_with_integer_labels(batch.inputs @ w, batch.labels)


def weights_of(batch, like):
    return jnp.asarray(GAMMA, like.dtype)[batch.labels]


NO_MEANS = {
    "a sum": lambda w, b, t: jnp.sum(each(w, b)),
    "a sum over the size of the data": lambda w, b, t: jnp.sum(each(w, b)) / 40,
    "weights normalised": lambda w, b, t: jnp.average(each(w, b), weights=weights_of(b, w)),
    "the logarithm of a mean": lambda w, b, t: jnp.log(jnp.mean(each(w, b))),
    "the worst example": lambda w, b, t: jnp.max(each(w, b)),
    "a pair term": lambda w, b, t: jnp.mean(each(w, b)) + jnp.mean(jnp.diff(b.inputs @ w, axis=0) ** 2),
    "an array of all examples": lambda w, b, t: jnp.mean((b.inputs @ w + jnp.ones((40, 3), w.dtype)) ** 2),
}


def on(batch):
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("name", NO_MEANS)
@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["at zero", "elsewhere"])
def test_a_loss_that_is_no_mean_is_refused_with_a_batch_size_only(x64, name, scale):
    batch, w = on(RARE), scale * jnp.asarray(np.random.RandomState(1).randn(2, 3))
    with pytest.raises(ValueError, match=r"leave batch_size out|cannot take some of the examples alone"):
        operators.hessian(NO_MEANS[name], w, batch, STEP, batch_size=7)
    operators.hessian(NO_MEANS[name], w, batch, STEP)


def test_class_losses_divided_by_the_size_of_their_class_are_refused(float64):
    batch, w = on(RARE), jnp.ones((2, 3))

    def class_losses(w, batch):
        one_hot = jax.nn.one_hot(batch.labels, 2, dtype=w.dtype)
        return each(w, batch) @ one_hot / one_hot.sum(axis=0)

    for build in (
        lambda: operators.class_hessian(class_losses, w, batch, 0, batch_size=7),
        lambda: operators.class_curvatures(class_losses, w, batch, w, batch_size=7),
        lambda: tracking.class_subspace(
            class_losses, w, batch, num=1, tol=1e-3, batch_size=7, key=jax.random.key(0)
        ),
    ):
        with pytest.raises(ValueError, match="leave batch_size out"):
            build()


def test_a_mean_agrees_whatever_stands_beside_it_or_comes_first(x64):
    spiral = data.spiral(examples_per_class=10, num_turns=0.5).train  # by class, each arm from the origin
    decays = (lambda w: 0.0, lambda w: 0.1 * jnp.sum(w**2), lambda w: 1e3 + jnp.sum(jnp.cos(w)))
    w = jnp.asarray(np.random.RandomState(1).randn(2, 3))
    for decay in decays:

        def loss_fn(w, batch, step, decay=decay):
            return jnp.mean(weights_of(batch, w) * each(w, batch)) + decay(w)

        whole, parts = (
            dense(operators.hessian(loss_fn, w, spiral, STEP, batch_size=size), w) for size in (None, 7)
        )
        np.testing.assert_allclose(parts, whole, atol=1e-13 if x64 else 1e-5)


class Normalised(nn.Module):
    """Statistics of the batch, as a network in train mode has them."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(False, force_float32_reductions=False, param_dtype=x.dtype)(x)
        return nn.Dense(3, param_dtype=x.dtype)(x)


def normalised(p, x):
    return Normalised().apply({"params": p}, x, mutable=["batch_stats"])[0]


def dropped(p, x):
    return x @ p * jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 3)).astype(x.dtype)


COUPLED = {
    "batch statistics": normalised,
    "dropout of one key": dropped,
    "a factor of the place": lambda p, x: x @ p * (1 + jnp.arange(len(x), dtype=x.dtype))[:, None],
    "the first apart": lambda p, x: (x @ p).at[0].multiply(2),
    "a running sum": lambda p, x: jnp.cumsum(x @ p, axis=0),
    "centred": lambda p, x: x @ p - jnp.mean(x @ p, axis=0, keepdims=True) / 2,
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_network_that_couples_or_tells_apart_examples_is_refused_alike(float64, name):
    apply_fn, batch, key = COUPLED[name], data.spiral(examples_per_class=10).train, jax.random.key(0)
    p = jnp.asarray(np.random.RandomState(1).randn(2, 3))
    if name == "batch statistics":
        p = jax.jit(Normalised().init)(key, batch.inputs)["params"]
    logits_loss = losses.make_loss(lambda f, _: f, losses.cross_entropy, schedules.constant(3))
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, schedules.constant(3))
    network = apply_fn, logits_loss, p, batch, STEP
    refused = [
        lambda: operators.hessian(loss_fn, p, batch, STEP, batch_size=7),
        lambda: operators.ggn(*network, batch_size=7),
        lambda: operators.residual(*network, batch_size=7),
        lambda: tracking.gauss_newton_curvature(*network, p, batch_size=7),
        lambda: ntk.ggn_ntk_duality(*network, num=1, tol=1e-3, key=key),
    ]
    forms = ntk.empirical_ntk, ntk.full_ntk, ntk.per_class_ntk, ntk.diagonal_ntk, ntk.ntk_operator
    refused += [lambda form=form: form(apply_fn, p, batch.inputs) for form in forms]
    for build in refused:
        with pytest.raises(ValueError, match=r"couples .*take frozen\(problem, state\)") as error:
            build()
        assert "\n" not in str(error.value)
    operators.ggn(*network)  # of the whole batch at once it has a meaning


def test_a_function_that_is_another_when_called_twice_is_refused():
    draws, batch, w = np.random.RandomState(0), on(RARE)._replace(labels=None), jnp.ones((2, 3))
    batch = batch._replace(inputs=batch.inputs.astype(w.dtype))

    def noisy(w, x):
        return x @ w + jnp.asarray(draws.randn(), w.dtype)

    with pytest.raises(ValueError, match=r"logits differ by .* when called twice"):
        check_network(noisy, w, batch.inputs)
    with pytest.raises(ValueError, match=r"the loss differs by .* when called twice"):
        check_parts(lambda w, batch, step: jnp.mean(noisy(w, batch.inputs) ** 2), w, batch, STEP)


def test_the_trial_is_compiled_once_and_absent_where_something_is_traced(float64):
    batch, w, calls = on(RARE), jnp.ones((2, 3)), []

    def loss_fn(w, batch, step):
        calls.append(batch.inputs.shape)
        return jnp.mean(each(w, batch))

    operators.hessian(loss_fn, w, batch, STEP, batch_size=7)
    first = len(calls)
    for scale in (1, 2):
        operators.hessian(loss_fn, scale * w, batch, STEP + scale, batch_size=9)
    assert len(calls) == first
    jax.make_jaxpr(lambda w: operators.hessian(loss_fn, w, batch, STEP, batch_size=7)(w))(w)
    assert all(shape[0] == 1 for shape in calls[first:])  # examples alone, no eight of them
    total = NO_MEANS["a sum"]
    jax.make_jaxpr(lambda w: operators.hessian(total, w, batch, STEP, batch_size=7)(w))(w)
    with pytest.raises(ValueError, match="leave batch_size out"):  # concrete, amid another trace
        jax.make_jaxpr(lambda v: operators.hessian(total, w, batch, STEP, batch_size=7)(v))(w)


def test_a_network_of_half_precision_is_not_taken_for_a_coupled_one():
    batch = data.spiral(examples_per_class=10).train

    def apply_fn(w, x):
        half = [a.astype(jnp.bfloat16) for a in (x, *w)]
        return (jnp.tanh(half[0] @ half[1]) @ half[2]).astype(x.dtype)

    draws = np.random.RandomState(0)
    w = [jnp.asarray(draws.randn(*shape), batch.inputs.dtype) for shape in ((2, 300), (300, 3))]
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, schedules.constant(3))
    operators.hessian(loss_fn, w, batch, STEP, batch_size=7)
    check_network(apply_fn, w, batch.inputs)


@pytest.mark.parametrize("place", [0, 17, 29])
def test_one_broken_example_breaks_the_product_whatever_the_size(x64, place):
    batch = data.spiral(examples_per_class=10).train
    batch = batch._replace(inputs=batch.inputs.at[place, 0].set(jnp.nan))
    w = jnp.ones((2, 3), batch.inputs.dtype)
    loss_fn = losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, schedules.constant(3))
    for size in (None, 1, 7, 16, 30):
        product = operators.hessian(loss_fn, w, batch, STEP, batch_size=size)(w)
        assert jnp.isnan(product).any()
    class_losses = losses.make_class_losses(lambda w, x: x @ w, losses.cross_entropy)
    assert jnp.isnan(operators.class_curvatures(class_losses, w, batch, w, batch_size=7)).any()


def test_every_instrument_takes_parts_of_any_size(float64):
    batch, key = data.spiral(examples_per_class=10).train, jax.random.key(0)
    draws = np.random.RandomState(1)
    w = {"a": jnp.asarray(draws.randn(2, 4)), "b": jnp.asarray(draws.randn(4, 3))}
    v = jax.tree.map(jnp.cos, w)

    def apply_fn(w, x):
        return jnp.tanh(x @ w["a"]) @ w["b"]

    class_losses = losses.make_class_losses(apply_fn, losses.cross_entropy)
    logits_loss = losses.make_loss(lambda f, _: f, losses.cross_entropy, schedules.constant(3))
    instruments = [
        lambda size: operators.class_curvatures(class_losses, w, batch, v, batch_size=size),
        lambda size: tracking.gauss_newton_curvature(
            apply_fn, logits_loss, w, batch, STEP, v, batch_size=size
        ),
        lambda size: jnp.linalg.eigvalsh(
            tracking.class_subspace(class_losses, w, batch, num=1, tol=1e-10, batch_size=size, key=key)
        ),
    ]
    for instrument in instruments:
        whole = instrument(None)
        for size in (7, 30):
            np.testing.assert_allclose(instrument(size), whole, rtol=1e-8)
    matrix = dense(operators.ggn(apply_fn, logits_loss, w, batch, STEP), w)
    flat = ravel_pytree(v)[0]
    np.testing.assert_allclose(instruments[1](7), flat @ matrix @ flat, rtol=1e-10)


def test_labels_may_be_missing_where_nothing_uses_them(float64):
    inputs = jnp.asarray(np.random.RandomState(0).randn(12, 2))
    batch, w = Batch(inputs, None), jnp.ones(2)

    def energy(w, batch, step):
        return jnp.mean((batch.inputs @ w) ** 2)

    def logits_energy(logits, batch, step):
        return jnp.mean(logits**2)

    for size in (None, 5):
        for matvec in (
            operators.hessian(energy, w, batch, STEP, batch_size=size),
            operators.ggn(lambda w, x: x @ w, logits_energy, w, batch, STEP, batch_size=size),
        ):
            np.testing.assert_allclose(dense(matvec, w), inputs.T @ inputs / 6, rtol=1e-12)
    loss_fn = losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, schedules.constant(3))
    for size in (None, 5):
        with pytest.raises(ValueError, match="no labels, which this loss uses"):
            operators.hessian(loss_fn, jnp.ones((2, 3)), batch, STEP, batch_size=size)


def test_a_step_may_be_a_number():
    batch, w = on(RARE), jnp.ones((2, 3))
    batch = Batch(batch.inputs.astype(w.dtype), batch.labels)
    loss_fn = losses.make_loss(
        lambda w, x: x @ w, losses.cross_entropy, schedules.triangular(3, amplitude=5.0, period=100)
    )
    expected = operators.hessian(loss_fn, w, batch, jnp.asarray(30))(w)
    for step in (30, np.int32(30)):
        for size in (None, 7):
            found = operators.hessian(loss_fn, w, batch, step, batch_size=size)(w)
            np.testing.assert_allclose(found, expected, atol=1e-6)
