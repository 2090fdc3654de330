"""Infinite width and training in closed form against direct computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.infinite_width import infinite_ntk, squared_loss_flow
from analysis.neural_tangents_import import load
from analysis.ntk import empirical_ntk, full_ntk, relative_distance
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch

POINTS = np.random.RandomState(0).randn(6, 2)


def closed_form(x, width, use_bias):
    """The mean NTK of one hidden layer of ReLUs: sum over units of h.h', and of V^2 1 1' (x.x' + 1)."""
    first = x @ x.T / x.shape[1]  # covariance of the pre-activations
    norms = np.sqrt(np.outer(first.diagonal(), first.diagonal()))
    angle = np.arccos(np.clip(first / norms, -1, 1))
    hidden = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return width * hidden + (x @ x.T + use_bias) * (np.pi - angle) / (2 * np.pi) + use_bias


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("width", [3, 1000])
def test_a_hidden_layer_of_relus_has_the_closed_form(x64, width, use_bias):
    found = infinite_ntk((width,), "relu", "original", use_bias)(jnp.asarray(POINTS))
    rtol = 1e-7 if x64 else 1e-3  # arccos of the angle between a point and itself: the root of eps
    np.testing.assert_allclose(found, closed_form(POINTS, width, use_bias), rtol=rtol)


def draws(widths, use_bias, inputs, num):
    """Kernels [draw, example, example] of networks at their first parameters."""
    model = models.mlp(3, widths, "relu", "original", use_bias)

    def kernel(key):
        return empirical_ntk(models.apply_fn(model), model.init(key, inputs)[0], inputs)

    return np.asarray(jax.jit(partial(jax.lax.map, kernel))(jax.random.split(jax.random.key(0), num)))


@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_the_mean_of_our_kernels_at_any_width_with_one_hidden_layer(float64, use_bias):
    # the first three points of the arms are the origin, where every unit is exactly 0
    inputs = data.spiral(examples_per_class=4).train.inputs
    assert not inputs[jnp.asarray([0, 4, 8])].any()
    kernels = draws((5,), use_bias, inputs, num=4_000)
    error = kernels.std(axis=0) / np.sqrt(len(kernels))
    apart = kernels.mean(axis=0) - np.asarray(infinite_ntk((5,), "relu", "original", use_bias)(inputs))
    assert (np.abs(apart) <= 4.5 * error + 1e-12).all()  # 78 values, one in 10^5 normal ones is as far
    assert (error[1] > 0).any() and (error[0] < 1e-12).all()


def test_the_distance_falls_as_the_root_of_the_width_with_two_hidden_layers(float64):
    inputs, widths = jnp.asarray(POINTS), np.array([50, 200, 800])
    distances = []
    for width in widths:
        reference = infinite_ntk((int(width), int(width)), "relu", "original", True)(inputs)
        kernels = jnp.asarray(draws((int(width), int(width)), True, inputs, num=60))
        distances.append(float(jnp.sqrt(jnp.mean(relative_distance(kernels, reference) ** 2))))
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)  # 0.03 is its standard error
    assert distances[-1] < 0.1


def test_images_are_flattened_as_our_network_does(float64):
    images = jnp.asarray(np.random.RandomState(1).randn(3, 2, 2, 1))
    kernel_fn = infinite_ntk((7,), "relu", "original", True)
    np.testing.assert_array_equal(kernel_fn(images), kernel_fn(images.reshape(3, 4)))


def test_no_hidden_layer_is_the_linear_kernel_also_at_the_origin(float64):
    x = np.concatenate([POINTS, np.zeros((1, 2))])
    found = infinite_ntk((), "relu", "original", True)(jnp.asarray(x))
    np.testing.assert_allclose(found, x @ x.T + 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activation="tanh"), "activation 'tanh': 'relu' has one"),
        (dict(activation="rellu"), "activation 'rellu': 'relu' has one"),
        (dict(initialization="updated"), "initialization 'updated': 'original' has one"),
    ],
)
def test_what_has_no_kernel_is_said_in_one_line(change, message):
    settings = dict(hidden_widths=(4,), activation="relu", initialization="original", use_bias=True)
    with pytest.raises(ValueError) as error:
        infinite_ntk(**{**settings, **change})
    assert str(error.value) == f"no kernel of infinite width for {message}"


def linearised():
    """The tangent of a small network, its first parameters and a batch of three classes."""
    batch = Batch(jnp.asarray(POINTS), jnp.asarray([0, 1, 2, 0, 1, 2]))
    model = models.mlp(3, (40,), "relu", "original", True)
    params, _ = jax.jit(model.init)(jax.random.key(1), batch.inputs)
    return load().linearize(models.apply_fn(model), params), params, batch


def test_the_flow_solves_its_equation_through_the_dense_exponential(float64):
    apply_fn, params, batch = linearised()
    start = np.asarray(apply_fn(params, batch.inputs))
    kernel = np.asarray(full_ntk(apply_fn, params, batch.inputs))
    values, vectors = np.linalg.eigh(kernel)
    y, time = np.eye(3)[np.asarray(batch.labels)], 0.3
    decay = vectors * np.exp(-2 * time / len(y) * values) @ vectors.T
    expected = y + (decay @ (start - y).reshape(-1)).reshape(y.shape)
    flow = squared_loss_flow(jnp.asarray(kernel), batch.labels, jnp.asarray(start))
    np.testing.assert_allclose(flow(jnp.asarray(time)), expected, rtol=1e-10, atol=1e-10)


def descend(apply_fn, params, batch, rate, num_steps, loss=losses.dmse1):
    """Logits after `num_steps` of our training step under the static loss."""
    loss_fn = losses.make_loss(apply_fn, loss, schedules.constant(3))
    optimizer = optimizers.make_optimizer("sgd", rate)
    loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
    return apply_fn(loop(train.init_state(params, optimizer), {}, num_steps)[0].params, batch.inputs)


@pytest.mark.parametrize("loss", [losses.dmse1, losses.dmse2])
def test_our_training_of_the_linearised_network_follows_the_flow_to_first_order(float64, loss):
    apply_fn, params, batch = linearised()
    start = apply_fn(params, batch.inputs)
    flow = squared_loss_flow(full_ntk(apply_fn, params, batch.inputs), batch.labels, start)
    expected = flow(jnp.asarray(0.4))
    apart = [
        float(jnp.max(jnp.abs(descend(apply_fn, params, batch, 0.4 / n, n, loss) - expected)))
        for n in (100, 200, 400)
    ]
    np.testing.assert_allclose(np.divide(apart[:-1], apart[1:]), 2, rtol=0.05)
    assert apart[-1] < 1e-3 < float(jnp.max(jnp.abs(expected - start)))


def test_run_to_convergence_it_ends_where_the_flow_does(float64):
    apply_fn, params, batch = linearised()
    start = apply_fn(params, batch.inputs)
    kernel = full_ntk(apply_fn, params, batch.inputs)
    values = np.linalg.eigvalsh(kernel)
    rate = 0.9 * 2 / (2 / len(batch.labels) * values[-1])  # 0.9 of the threshold
    num_steps = int(30 * values[-1] / values[0])
    assert num_steps < 100_000
    end = descend(apply_fn, params, batch, rate, num_steps)
    flow = squared_loss_flow(kernel, batch.labels, start)
    np.testing.assert_allclose(end, flow(jnp.asarray(rate * num_steps)), atol=1e-9)
    np.testing.assert_allclose(end, np.eye(3)[np.asarray(batch.labels)], atol=1e-9)  # the labels themselves
