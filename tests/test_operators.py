"""Curvature products against dense Hessians, closed forms and finite differences."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import block, check_operator, dense, preconditioned, select
from dlf import data, losses, models, schedules
from dlf.optimizers import adam_preconditioner, rmsprop_preconditioner
from dlf.types import Batch

STEP = np.int32(17)
SCHEDULE = schedules.triangular(3, amplitude=70.0, period=40)
LOSSES = {name: getattr(losses, name) for name in losses.__all__}


def identity(logits, inputs):
    return logits


@cache
def functions(weighted_loss):
    """The same functions for every test, so that each product is compiled once."""
    model = models.mlp(3, (9,), activation="tanh", initialization="updated", use_bias=True)
    apply_fn = models.apply_fn(model)
    loss_fn = losses.make_loss(apply_fn, weighted_loss, SCHEDULE)
    logits_loss = losses.make_loss(identity, weighted_loss, SCHEDULE)
    return model, loss_fn, logits_loss, losses.make_class_losses(apply_fn, weighted_loss)


def network(weighted_loss=losses.cross_entropy):
    """A small network on a small spiral of 30 examples."""
    batch = data.spiral(examples_per_class=10).train
    model, loss_fn, logits_loss, _ = functions(weighted_loss)
    params, _ = jax.jit(model.init)(jax.random.key(2), batch.inputs)
    return models.apply_fn(model), loss_fn, logits_loss, params, batch


def products(weighted_loss=losses.cross_entropy, batch_size=None):
    """Each operator of the small network, by name, with its parameters."""
    apply_fn, loss_fn, logits_loss, params, batch = network(weighted_loss)
    class_losses = functions(weighted_loss)[3]
    step, label = jnp.asarray(STEP), jnp.asarray(1, jnp.int32)
    size = {"batch_size": batch_size}
    return params, {
        "hessian": operators.hessian(loss_fn, params, batch, step, **size),
        "ggn": operators.ggn(apply_fn, logits_loss, params, batch, step, **size),
        "residual": operators.residual(apply_fn, logits_loss, params, batch, step, **size),
        "class_hessian": operators.class_hessian(class_losses, params, batch, label, **size),
    }


def check_products(weighted_loss, tolerance):
    """Compare the products of the small network with dense matrices by other means."""
    apply_fn, loss_fn, logits_loss, params, batch = network(weighted_loss)
    class_losses = functions(weighted_loss)[3]
    flat, unravel = ravel_pytree(params)
    step = jnp.asarray(STEP)

    @jax.jit
    def by_jax(flat):
        logits = apply_fn(unravel(flat), batch.inputs)
        hessian = jax.hessian(lambda p: loss_fn(unravel(p), batch, step))(flat)
        jacobian = jax.jacobian(lambda p: apply_fn(unravel(p), batch.inputs).ravel())(flat)
        inner = jax.hessian(lambda z: logits_loss(z.reshape(logits.shape), batch, step))(logits.ravel())
        ggn = jacobian.T @ inner @ jacobian
        of_class = jax.hessian(lambda p: class_losses(unravel(p), batch)[1])(flat)
        return dict(hessian=hessian, ggn=ggn, residual=hessian - ggn, class_hessian=of_class)

    found = products(weighted_loss)[1]
    for name, matrix in by_jax(flat).items():
        np.testing.assert_allclose(dense(found[name], params), matrix, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("weighted_loss", LOSSES.values(), ids=LOSSES)
def test_the_products_are_the_dense_matrices(float64, weighted_loss):
    check_products(weighted_loss, 1e-13)


def test_the_products_are_the_dense_matrices_in_single_precision():
    check_products(losses.cross_entropy, 3e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_every_batch_size_gives_the_same_products(float64, batch_size):
    params, whole = products()
    _, parts = products(batch_size=batch_size)
    vector = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params
    )
    for name, matvec in parts.items():
        expected, found = (ravel_pytree(product(vector))[0] for product in (whole[name], matvec))
        assert jnp.linalg.norm(found - expected) < 1e-12 * jnp.linalg.norm(expected), name


def test_the_mean_of_batch_means_would_not_be_the_same(float64):
    _, loss_fn, _, params, batch = network()
    parts = [jax.tree.map(lambda x, part=part: x[part], batch) for part in (slice(0, 20), slice(20, 30))]
    loss_fn = jax.jit(loss_fn)
    means = [loss_fn(params, part, jnp.asarray(STEP)) for part in parts]
    assert abs(sum(means) / 2 - loss_fn(params, batch, jnp.asarray(STEP))) > 1e-3


def test_the_hessian_is_its_classes_weighted_with_gamma(float64):
    _, loss_fn, _, params, batch = network()
    class_losses = functions(losses.cross_entropy)[3]
    gamma = SCHEDULE(jnp.asarray(STEP))
    parts = [
        dense(operators.class_hessian(class_losses, params, batch, jnp.asarray(c)), params) for c in range(3)
    ]
    whole = dense(operators.hessian(loss_fn, params, batch, jnp.asarray(STEP)), params)
    np.testing.assert_allclose(sum(g * part for g, part in zip(gamma, parts, strict=True)), whole, atol=1e-14)
    vector = jnp.cos(jnp.arange(whole.shape[0], dtype=whole.dtype))
    along = jax.jit(partial(operators.class_curvatures, class_losses))(
        params, batch, ravel_pytree(params)[1](vector)
    )
    np.testing.assert_allclose(along, [vector @ part @ vector for part in parts], rtol=1e-10)


def test_the_hessian_of_weighted_softmax_regression_is_its_closed_form(float64):
    rng = np.random.RandomState(1)
    x, y, w = rng.randn(12, 4), rng.randint(0, 3, 12), rng.randn(4, 3)
    step = jnp.asarray(STEP)
    loss_fn = losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, SCHEDULE)
    batch = Batch(jnp.asarray(x), jnp.asarray(y))
    p = np.exp(x @ w)
    p /= p.sum(1, keepdims=True)
    gamma = np.asarray(SCHEDULE(step))
    expected = np.zeros((12, 12))
    for j in range(12):
        s = np.diag(p[j]) - np.outer(p[j], p[j])
        expected += gamma[y[j]] * np.kron(np.outer(x[j], x[j]), s) / 12
    for batch_size in (None, 5):
        found = dense(
            operators.hessian(loss_fn, jnp.asarray(w), batch, step, batch_size=batch_size), jnp.asarray(w)
        )
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_the_hessian_of_linear_regression_is_two_over_n_times_the_gram_matrix(float64):
    x = jnp.asarray(np.random.RandomState(4).randn(15, 5))
    batch = Batch(x, jnp.arange(15))

    def loss_fn(w, batch, step):
        return jnp.mean((batch.inputs @ w - batch.labels.astype(w.dtype)) ** 2)

    w = jnp.ones(5, x.dtype)
    found = dense(operators.hessian(loss_fn, w, batch, jnp.asarray(0), batch_size=4), w)
    np.testing.assert_allclose(found, 2 / 15 * x.T @ x, rtol=1e-12, atol=1e-6)


def test_a_block_is_a_block_of_the_matrix(float64):
    params, operator = products()
    full = dense(operator["hessian"], params)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    for names, chosen in ((("Dense_0",), [0, 1]), (("Dense_1/kernel", "Dense_0/bias"), [0, 3])):
        like = select(params, *names)
        index = np.concatenate([np.arange(sum(sizes[:i]), sum(sizes[: i + 1])) for i in chosen])
        found = dense(block(operator["hessian"], params), like)
        np.testing.assert_allclose(found, full[np.ix_(index, index)], atol=1e-15)
    pairs = top_eigenpairs(
        block(operator["hessian"], params), like=like, num=1, tol=1e-6, key=jax.random.key(0)
    )
    np.testing.assert_allclose(pairs.values[0], jnp.linalg.eigvalsh(found)[-1], rtol=1e-9)


def test_an_unknown_group_is_named_beside_those_there_are():
    with pytest.raises(ValueError, match="no parameters under 'Dense_3': there are Dense_0/bias"):
        select(network()[3], "Dense_3")


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_the_preconditioner_is_the_one_that_optax_divides_by(float64, name):
    optimizer = {
        "adam": optax.adam(0.1, b1=0.5, b2=0.9, eps=1e-3),
        "rmsprop": optax.rmsprop(0.1, decay=0.8, eps=1e-3),
    }[name]
    params = jnp.asarray([1.0, -2.0, 0.5])
    state = optimizer.init(params)
    for grads in jnp.asarray([[1.0, 2.0, 3.0], [0.5, -1.0, 0.1], [0.2, 0.2, 0.2]]):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes floats and integers
            updates, state = optimizer.update(grads, state, params)
    if name == "adam":
        found, momentum = adam_preconditioner(state, b2=0.9, eps=1e-3), state[0].mu / (1 - 0.5**3)
    else:
        found, momentum = rmsprop_preconditioner(state, eps=1e-3), grads
    np.testing.assert_allclose(updates, -0.1 * momentum / found, rtol=1e-12)
    matrix = jnp.asarray(np.random.RandomState(0).randn(3, 3))
    scaled = dense(preconditioned(lambda v: matrix @ v, found), params)
    np.testing.assert_allclose(scaled, matrix / jnp.sqrt(jnp.outer(found, found)), rtol=1e-12)


def test_a_preconditioner_needs_a_state_with_second_moments():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="that of one RMSProp, found 0"):
        rmsprop_preconditioner(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="at least one update"):
        adam_preconditioner(optax.adam(0.1).init(params))


def test_bad_data_and_batch_sizes_are_refused():
    apply_fn, loss_fn, logits_loss, params, batch = network()
    step, nothing = jnp.asarray(STEP), jax.tree.map(lambda x: x[:0], batch)
    for size in (0, 31, -1):
        with pytest.raises(ValueError, match=f"batch_size must be from 1 to 30, .* got {size}"):
            operators.hessian(loss_fn, params, batch, step, batch_size=size)
    with pytest.raises(ValueError, match="a label for each input"):
        operators.hessian(loss_fn, params, Batch(batch.inputs, batch.labels[:3]), step)
    with pytest.raises(ValueError, match="label must be from 0 to 2, got 3"):
        class_losses = functions(losses.cross_entropy)[3]
        operators.class_hessian(class_losses, params, batch, jnp.asarray(3, jnp.int32))
    with pytest.raises(ValueError, match="name at least one group"):
        select(params)
    with pytest.raises(ValueError, match="the data set is empty"):
        operators.ggn(apply_fn, logits_loss, params, nothing, step)


class Noisy(nn.Module):
    """Batch statistics and dropout: the two things that a frozen model must state."""

    @nn.compact
    def __call__(self, x, train):
        kernel = {"param_dtype": x.dtype}
        x = nn.Dense(5, **kernel)(x)
        x = nn.BatchNorm(not train, force_float32_reductions=False, **kernel)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))
        return nn.Dense(3, **kernel)(x)


def test_curvature_sees_the_model_state_frozen(float64):
    module, batch = Noisy(), data.spiral(examples_per_class=10).train
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), batch.inputs)
    params = variables["params"]
    state = jax.tree.map(lambda x: x.astype(batch.inputs.dtype), {"batch_stats": variables["batch_stats"]})
    step = jnp.asarray(STEP)
    apply_fn = models.apply_fn(models.linen(module, evaluation={"train": False}), state)
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, SCHEDULE)
    for batch_size in (None, 7):
        matvec = operators.hessian(loss_fn, params, batch, step, batch_size=batch_size)
        loss = jax.jit(lambda p: loss_fn(p, batch, step))
        check_operator(matvec, params, key=jax.random.key(1), loss=loss)


def test_sharded_products_equal_unsharded_ones(float64):
    apply_fn, loss_fn, logits_loss, params, batch = network()
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch)  # 32 examples on 8 devices
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    vector, step = jax.tree.map(jnp.cos, params), jnp.asarray(STEP)
    for build, functions in (
        (operators.hessian, (loss_fn,)),
        (operators.ggn, (apply_fn, logits_loss)),
        (operators.residual, (apply_fn, logits_loss)),
    ):
        expected = build(*functions, params, batch, step)(vector)
        for batch_size in (None, 16):
            matvec = build(*functions, everywhere, sharded, step, batch_size=batch_size)
            for x, y in zip(jax.tree.leaves(matvec(vector)), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
    pairs = [
        top_eigenpairs(operators.hessian(loss_fn, p, b, step), p, num=2, tol=1e-6, key=jax.random.key(0))
        for p, b in ((params, batch), (everywhere, sharded))
    ]
    np.testing.assert_allclose(pairs[0].values, pairs[1].values, rtol=1e-9)
