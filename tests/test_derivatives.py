"""Networks that can only be differentiated backwards: every instrument against reverse over reverse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis import ntk, operators, tracking
from analysis.linear_maps import check_operator, dense
from dlf import losses, schedules
from dlf.derivatives import curvature_along, hvp, tangent
from dlf.types import Batch

STEP = jnp.asarray(0, jnp.int32)


@jax.custom_vjp
def once(x):
    """A rule whose forward pass is ordinary: one derivative forward is possible behind one backward."""
    return jnp.tanh(x)


once.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def never(x):
    """A rule within its own rule: no forward derivative of any order."""
    return jnp.tanh(x)


never.defvjp(lambda x: (never(x), x), lambda x, g: (g * (1 - never(x) ** 2),))


@pytest.fixture(params=["once", "never"])
def problem(request, float64):
    """(apply_fn, plain_fn, params, batch, size of parts): the network of a rule, and the same without."""
    layer, size = {"once": (once, None), "never": (jax.jit(never), 3)}[request.param]
    draws = np.random.RandomState(0)
    params = {"a": jnp.asarray(draws.randn(2, 3)), "b": jnp.asarray(draws.randn(3, 3))}
    batch = Batch(jnp.asarray(draws.randn(8, 2)), jnp.arange(8) % 3)

    def network(layer, p, x):
        return layer(x @ p["a"]) @ p["b"]

    return partial(network, layer), partial(network, jnp.tanh), params, batch, size


def test_every_product_is_that_of_the_network_without_a_rule(problem):
    apply_fn, plain_fn, params, batch, size = problem
    logits_loss = losses.make_loss(lambda f, _: f, losses.cross_entropy, schedules.constant(3))
    vector, key = jax.tree.map(jnp.cos, params), jax.random.key(0)

    def measure(apply_fn, size):
        loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, schedules.constant(3))
        class_losses = losses.make_class_losses(apply_fn, losses.cross_entropy)
        network, of = (apply_fn, logits_loss, params, batch, STEP), {"batch_size": size}
        subspace = tracking.class_subspace(class_losses, params, batch, num=1, tol=1e-10, key=key, **of)
        return {
            "hessian": operators.hessian(loss_fn, params, batch, STEP, **of)(vector),
            "ggn": operators.ggn(*network, **of)(vector),
            "residual": operators.residual(*network, **of)(vector),
            "class": operators.class_hessian(class_losses, params, batch, 1, **of)(vector),
            "classes": operators.class_curvatures(class_losses, params, batch, vector, **of),
            "gauss-newton": tracking.gauss_newton_curvature(*network, vector, **of),
            "subspace": jnp.linalg.eigvalsh(subspace),
            "kernel": ntk.full_ntk(apply_fn, params, batch.inputs, **of),
            "kernel's product": ntk.ntk_operator(apply_fn, params, batch.inputs, **of)(jnp.ones((8, 3))),
        }

    expected, found = measure(plain_fn, None), measure(apply_fn, size)
    for name, value in expected.items():
        for x, y in zip(jax.tree.leaves(found[name]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-12, err_msg=name)
    assert (
        ntk.ggn_ntk_duality(apply_fn, *(logits_loss, params, batch, STEP), num=2, tol=1e-9, key=key)[2] < 1e-8
    )


def test_the_hessian_is_reverse_over_reverse_and_passes_the_self_check(problem):
    apply_fn, _, params, batch, size = problem
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, schedules.constant(3))
    flat, unravel = ravel_pytree(params)
    expected = jax.jacrev(jax.jacrev(lambda p: loss_fn(unravel(p), batch, STEP)))(flat)
    matvec = operators.hessian(loss_fn, params, batch, STEP, batch_size=size)
    np.testing.assert_allclose(dense(matvec, params), expected, atol=1e-14)
    check_operator(matvec, params, key=jax.random.key(0), loss=lambda p: loss_fn(p, batch, STEP))


@pytest.mark.parametrize("layer", [jnp.tanh, once, never, jax.jit(never)])
def test_derivatives_along_a_direction_are_those_of_the_function(float64, layer):
    x, v = jnp.asarray([0.3, -1.2]), jnp.asarray([1.0, 0.5])
    t = np.tanh(x)
    value, slope = jax.jit(lambda x: tangent(layer, x, v))(x)
    np.testing.assert_allclose(value, t)
    np.testing.assert_allclose(slope, (1 - t**2) * v, rtol=1e-12)
    second = -2 * t * (1 - t**2)
    np.testing.assert_allclose(jax.jit(lambda x: curvature_along(layer, x, v))(x), second * v**2, rtol=1e-12)
    np.testing.assert_allclose(
        jax.jit(lambda x: hvp(lambda y: layer(y).sum(), x, v))(x), second * v, rtol=1e-12
    )
