"""The traced NTK of all kinds of networks against the explicit Jacobian, and which of them need none."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis.ntk import diagonal_ntk, empirical_ntk, full_ntk, per_class_ntk
from dlf import models

INPUTS = np.random.RandomState(0).randn(7, 4)


def explicit_jacobian(apply_fn, params, inputs):
    """The Jacobian [examples, classes, parameters] of each example alone."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda p, x: apply_fn(unravel(p), x[None])[0])
    return np.asarray(jax.jit(jax.vmap(jacobian, in_axes=(None, 0)))(flat, inputs))


def explicit(apply_fn, params, inputs):
    """The definition of the traced kernel."""
    rows = explicit_jacobian(apply_fn, params, inputs)
    return np.einsum("pcn,qcn->pq", rows, rows) / rows.shape[1]


def measured(apply_fn, params, inputs):
    return jax.jit(partial(empirical_ntk, apply_fn))(params, inputs)


def needs_jacobian(apply_fn, params, inputs):
    """Whether any array of the computation is as large as the Jacobian."""
    jaxpr = jax.make_jaxpr(partial(empirical_ntk, apply_fn))(params, inputs)
    sizes = [variable.aval.size for eqn in jaxpr.eqns for variable in eqn.outvars]
    num_params = ravel_pytree(params)[0].size
    return max(sizes) >= len(inputs) * apply_fn(params, inputs).shape[1] * num_params


def build(module):
    """(apply_fn, params, inputs) of a flax module, parameters drawn in float64, biases not zero."""
    inputs = jnp.asarray(INPUTS)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    draw = np.random.RandomState(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.randn(*leaf.shape)), shapes)
    return lambda p, x: module.apply({"params": p}, x), params, inputs


def dense(features, **settings):
    return nn.Dense(features, param_dtype=jnp.dtype("float64"), **settings)


def network(call):
    """A module from the function of its `__call__`."""
    return type("Network", (nn.Module,), {"__call__": nn.compact(call)})()


def residual(self, x):
    h = nn.tanh(dense(5)(x))
    h = h + nn.softplus(dense(5, use_bias=False)(h)) + dense(5, name="skip")(x)
    return dense(3)(h * h.sum(axis=1, keepdims=True))


def perceptron(between=lambda h: h):
    def call(self, x):
        h = between(nn.tanh(dense(5)(x)))
        return dense(3)(h)

    return network(call)


class Scaled(nn.Dense):
    """A subclass in the NTK parametrisation."""

    def __call__(self, x):
        return super().__call__(x) / 2


def shared(self, x):
    layer = dense(4)
    return layer(nn.tanh(layer(x)))


def tied(self, x):
    """The kernel reaches the logits again, around its layer."""
    layer = dense(3)
    y = nn.tanh(layer(x))
    return dense(3)(y) + y * layer.variables["params"]["kernel"].sum()


def tied_input(self, x):
    """The kernel reaches the next layer's input only."""
    layer = dense(5)
    y = nn.tanh(layer(x))
    return dense(3)(y @ layer.variables["params"]["kernel"].T)


def scanned(self, x):
    layers = nn.scan(
        lambda module, carry, _: (nn.tanh(dense(4)(carry)), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=2,
    )
    return layers(self, x, None)[0]


def three_axes(self, x):
    return dense(3)(nn.tanh(dense(5)(x.reshape(-1, 2, 2)))).sum(axis=1)


def convolution(self, x):
    kernel = nn.Conv(3, (2,), padding="VALID", param_dtype=jnp.dtype("float64"))
    return dense(3)(nn.tanh(kernel(x[..., None])).reshape(len(x), -1))


def intercepted(self, x):
    def double(call, args, kwargs, context):
        return 2 * call(*args, **kwargs)

    with nn.intercept_methods(double):
        return dense(3)(x)


def norm(h):
    return nn.LayerNorm(param_dtype=h.dtype, force_float32_reductions=False)(h)


def doubled_product(*operands, **settings):
    return jax.lax.dot_general(*operands, **settings) * 2


def input_gradient(model, p, x):
    return jax.vmap(jax.grad(lambda x: nn.softplus(model(p, x[None])).sum()))(x)


LAYERED = {"residual": residual, "linear": lambda self, x: dense(3)(dense(5)(x))}
OTHER = {
    "convolution": network(convolution),
    "layer norm": perceptron(between=norm),
    "shared layer": network(shared),
    "kernel used outside": network(tied),
    "kernel in a later input": network(tied_input),
    "three axes": network(three_axes),
    "scan": network(scanned),
    "remat": network(lambda self, x: dense(3)(nn.tanh(nn.remat(nn.Dense)(5, param_dtype=x.dtype)(x)))),
    "jit": network(lambda self, x: dense(3)(nn.tanh(nn.jit(nn.Dense)(5, param_dtype=x.dtype)(x)))),
    "weight norm": network(lambda self, x: nn.WeightNorm(dense(3), param_dtype=x.dtype)(x)),
    "subclass": network(lambda self, x: Scaled(3, param_dtype=x.dtype)(x)),
    "dot_general": network(lambda self, x: dense(3, dot_general=doubled_product)(x)),
    "interceptor": network(intercepted),
}


@pytest.mark.parametrize(
    ("hidden", "activation", "use_bias"), [((), "relu", True), ((9,), "relu", True), ((9, 5), "tanh", False)]
)
def test_a_perceptron_needs_no_jacobian(float64, hidden, activation, use_bias):
    model = models.mlp(3, hidden, activation=activation, initialization="updated", use_bias=use_bias)
    inputs = jnp.asarray(INPUTS)
    params, _ = jax.jit(model.init)(jax.random.key(1), inputs)
    apply_fn = models.apply_fn(model)
    assert not needs_jacobian(apply_fn, params, inputs)
    kernel = measured(apply_fn, params, inputs)
    np.testing.assert_allclose(kernel, explicit(apply_fn, params, inputs), rtol=1e-12)


@pytest.mark.parametrize("name", LAYERED)
def test_a_network_of_dense_layers_needs_no_jacobian(float64, name):
    problem = build(network(LAYERED[name]))
    assert not needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


@pytest.mark.parametrize("name", OTHER)
def test_any_other_network_takes_its_jacobian(float64, name):
    problem = build(OTHER[name])
    assert needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


@pytest.mark.parametrize("name", ["convolution", "kernel used outside"])
def test_any_network_has_every_form(float64, name):
    apply_fn, params, inputs = build(OTHER[name])
    rows = explicit_jacobian(apply_fn, params, inputs)
    expected = {
        full_ntk: np.einsum("pcn,qdn->pcqd", rows, rows).reshape(21, 21),
        per_class_ntk: np.einsum("pcn,qcn->cpq", rows, rows),
        diagonal_ntk: np.einsum("pcn,pcn->p", rows, rows) / 3,
    }
    found = jax.jit(lambda p, x: [form(apply_fn, p, x) for form in expected])(params, inputs)
    for kernel, value in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(kernel, value, atol=1e-13 * np.abs(value).max(), rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, p, x: model(jax.tree.map(lambda leaf: 2 * leaf, p), x),
        lambda model, p, x: model(jax.lax.stop_gradient(p), x) + model(p, x),
        lambda model, p, x: model(p, x) + model(p, -x),
        lambda model, p, x: jax.jit(lambda x: model(p, x))(x),
        lambda model, p, x: jax.vmap(lambda x: model(p, x[None])[0])(x),
        lambda model, p, x: jax.lax.map(lambda x: model(p, x[None])[0], x),
        input_gradient,
        lambda model, p, x: model(p, x) * p["Dense_0"]["kernel"].sum(),
        lambda model, p, x: jnp.tanh(x @ p["Dense_0"]["kernel"]) @ p["Dense_1"]["kernel"],
    ],
    ids=["scaled", "frozen", "twice", "jit", "vmap", "map", "gradient", "outside", "no module"],
)
def test_a_function_around_a_network_is_differentiated_as_it_is(float64, change):
    model, params, inputs = build(perceptron())
    problem = partial(change, model), params, inputs
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12, atol=1e-12)


def test_frozen_parameters_elsewhere_and_unused_ones_do_not_count(float64):
    model, params, inputs = build(perceptron())

    def change(p, x):
        return model(p["net"], x) - model(params, 2 * x)

    problem = change, {"net": params, "rest": inputs}, inputs
    assert not needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


def test_examples_that_a_network_mixes_are_taken_one_by_one(float64):
    problem = build(perceptron(between=lambda h: h - h.mean(axis=0, keepdims=True) / 2))
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


def test_a_jitted_network_is_left_as_it_was(float64):
    model, params, inputs = build(perceptron())
    jitted = jax.jit(model)
    np.testing.assert_allclose(
        empirical_ntk(jitted, params, inputs), explicit(model, params, inputs), rtol=1e-12
    )
    np.testing.assert_array_equal(
        jitted(params, inputs[:1]), jax.jit(lambda p, x: model(p, x))(params, inputs[:1])
    )


def test_the_kernel_can_be_mapped_looped_over_and_differentiated(float64):
    model, params, inputs = build(perceptron())
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    expected = [explicit(model, jax.tree.map(lambda leaf, i=i: leaf[i], stacked), inputs) for i in range(2)]
    kernel = partial(empirical_ntk, model)
    mapped = jax.jit(jax.vmap(kernel, in_axes=(0, None)))(stacked, inputs)
    looped = jax.jit(lambda stacked: jax.lax.map(lambda p: kernel(p, inputs), stacked))(stacked)
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)
    np.testing.assert_allclose(looped, expected, rtol=1e-12)
    flat, unravel = ravel_pytree(params)
    value, slope = jax.jit(jax.value_and_grad(lambda p: kernel(unravel(p), inputs)[0, 1])), 1e-5
    (above, _), (below, _) = value(flat + slope), value(flat - slope)
    np.testing.assert_allclose(value(flat)[1].sum() * slope, (above - below) / 2, rtol=1e-7)
