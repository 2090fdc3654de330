"""Networks whose outputs have no axis: they are one output for all kernels and products; more are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis import ntk, operators, tracking
from analysis.linear_maps import dense
from dlf import models
from dlf.types import Batch

FORMS = ntk.empirical_ntk, ntk.full_ntk, ntk.per_class_ntk, ntk.diagonal_ntk
MODEL = models.mlp(1, (5,), activation="tanh", initialization="updated", use_bias=True)
STEP = jnp.asarray(0, jnp.int32)


def flat_mlp(p, x):
    return models.apply_fn(MODEL)(p, x)[:, 0]


def squares(logits, batch, step):
    return jnp.mean((logits.reshape(-1) - batch.labels) ** 2)


@pytest.fixture(params=["linear", "mlp"])
def problem(request, float64):
    """(apply_fn, params, batch, rows of the Jacobian) of a network with outputs [examples]."""
    draws = np.random.RandomState(0)
    batch = Batch(jnp.asarray(draws.randn(9, 2)), jnp.asarray(draws.randn(9)))
    params, _ = jax.jit(MODEL.init)(jax.random.key(0), batch.inputs)
    apply_fn = flat_mlp
    if request.param == "linear":
        apply_fn, params = (lambda w, x: x @ w), jnp.ones(2)
    flat, unravel = ravel_pytree(params)
    return (
        apply_fn,
        params,
        batch,
        np.asarray(jax.jacobian(lambda p: apply_fn(unravel(p), batch.inputs))(flat)),
    )


@pytest.mark.parametrize("batch_size", [None, 4])
def test_outputs_without_an_axis_are_one_output_for_every_kernel(problem, batch_size):
    apply_fn, params, batch, rows = problem
    roots = np.sqrt(np.random.RandomState(1).uniform(0.1, 3, 9))
    for weights, kernel in (
        (None, rows @ rows.T),
        (jnp.asarray(roots**2), np.outer(roots, roots) * (rows @ rows.T)),
    ):
        of = dict(weights=weights, batch_size=batch_size)
        expected = kernel, kernel, kernel[None], np.diag(kernel)
        measure = jax.jit(lambda p, of=of: [form(apply_fn, p, batch.inputs, **of) for form in FORMS])
        for found, value in zip(measure(params), expected, strict=True):
            np.testing.assert_allclose(found, value, atol=1e-12)
        matvec = ntk.ntk_operator(apply_fn, params, batch.inputs, **of)
        for like in (jnp.zeros(9), jnp.zeros((9, 1))):
            np.testing.assert_allclose(dense(matvec, like), kernel, atol=1e-12)
    per_output = ntk.full_ntk(apply_fn, params, batch.inputs, weights=jnp.asarray(roots**2)[:, None])
    np.testing.assert_allclose(per_output, kernel, atol=1e-12)


def test_outputs_without_an_axis_have_a_gauss_newton_matrix_and_its_dual(problem):
    apply_fn, params, batch, rows = problem
    network = apply_fn, squares, params, batch, STEP
    expected = 2 / 9 * rows.T @ rows
    for size in (None, 4):
        np.testing.assert_allclose(
            dense(operators.ggn(*network, batch_size=size), params), expected, atol=1e-13
        )
        along = tracking.gauss_newton_curvature(*network, jax.tree.map(jnp.cos, params), batch_size=size)
        vector = ravel_pytree(jax.tree.map(jnp.cos, params))[0]
        np.testing.assert_allclose(along, vector @ expected @ vector, rtol=1e-12)
        hessian = operators.hessian(operators.composed(apply_fn, squares), *network[2:], batch_size=size)
        parts = (
            dense(build(*network, batch_size=size), params) for build in (operators.ggn, operators.residual)
        )
        np.testing.assert_allclose(dense(hessian, params), sum(parts), atol=1e-13)
    assert ntk.ggn_ntk_duality(*network, num=1, tol=1e-9, key=jax.random.key(0)).difference < 1e-9


def test_other_shapes_of_outputs_are_refused_by_one_line():
    batch, w = Batch(jnp.ones((9, 2)), jnp.zeros(9)), jnp.ones(2)

    def squared(logits, batch, step):
        return jnp.mean(logits**2)

    shapes = {
        "more axes": lambda w, x: (x * w[None])[:, :, None],
        "no axis": lambda w, x: jnp.sum(x @ w),
        "others than the examples": lambda w, x: jnp.concatenate([x @ w, x @ w]),
    }
    for apply_fn in shapes.values():
        network = apply_fn, squared, w, batch, STEP
        refused = [partial(form, apply_fn, w, batch.inputs) for form in (*FORMS, ntk.ntk_operator)]
        refused += [
            lambda of=network, build=build: build(*of)(w) for build in (operators.ggn, operators.residual)
        ]
        refused += [
            lambda of=network: tracking.gauss_newton_curvature(*of, w),
            lambda of=network: ntk.ggn_ntk_duality(*of, num=1, tol=1e-3, key=jax.random.key(0)),
        ]
        for build in refused:
            with pytest.raises(ValueError, match=r"must give \[examples\] or \[examples, outputs\]") as error:
                build()
            assert "\n" not in str(error.value)


def test_class_losses_need_an_axis_of_classes():
    batch, w = Batch(jnp.ones((9, 2)), jnp.zeros(9)), jnp.ones(2)

    def one(w, batch):
        return jnp.mean((batch.inputs @ w) ** 2)

    for build in (operators.class_hessian, operators.class_curvatures):
        with pytest.raises(ValueError, match=r"class losses must be \[classes\], got the shape \(\)"):
            build(one, w, batch, 0 if build is operators.class_hessian else w)
