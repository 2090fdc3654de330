"""Hessian products, Lanczos and the NTK against dense matrices and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from analysis.lanczos import top_eigenpairs
from analysis.ntk import empirical_ntk, spectrum
from analysis.operators import dense, hvp
from analysis.probes import hessian, ntk
from dlf import data, losses, models, schedules, train
from dlf.types import Batch, Problem

STEP = 17


@pytest.fixture
def network(float64):
    """A small network on a small spiral: (params, problem)."""
    dataset = data.spiral(examples_per_class=10)
    model = models.mlp(3, (9,), activation="tanh", initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=70.0, period=40)
    loss_fn = losses.make_loss(model.apply, losses.cross_entropy, schedule)
    params = model.init(jax.random.key(2), dataset.train.inputs)
    problem = Problem(model.apply, loss_fn, data.full_batch(dataset.train), jax.random.key(3))
    return params, problem


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with the given spectrum."""
    size = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.RandomState(seed).randn(size, size))
    return jnp.asarray(q * np.asarray(eigenvalues) @ q.T)


@partial(jax.jit, static_argnames=("num", "tol"))
def solve(a, num=3, tol=1e-3, seed=0):
    return top_eigenpairs(lambda v: a @ v, like=a[0], num=num, tol=tol, key=jax.random.key(seed))


def test_the_hessian_product_is_the_dense_hessian_at_frozen_time(network):
    params, problem = network
    step, batch = jnp.asarray(STEP, jnp.int32), problem.batch_fn(STEP)
    flat, unravel = ravel_pytree(params)
    expected = jax.hessian(lambda p: problem.loss_fn(unravel(p), batch, step))(flat)
    found = dense(lambda v: hvp(problem.loss_fn, params, batch, step, v), params)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(found, found.T, atol=1e-15)


def test_the_hessian_product_agrees_with_differences_of_the_gradient(network):
    params, problem = network
    step, batch = jnp.asarray(STEP, jnp.int32), problem.batch_fn(STEP)
    flat, unravel = ravel_pytree(params)
    v = jnp.asarray(np.random.RandomState(0).randn(flat.size))

    def grad(p):
        return ravel_pytree(jax.grad(problem.loss_fn)(unravel(p), batch, step))[0]

    difference = (grad(flat + 1e-5 * v) - grad(flat - 1e-5 * v)) / 2e-5
    product = ravel_pytree(hvp(problem.loss_fn, params, batch, step, unravel(v)))[0]
    np.testing.assert_allclose(product, difference, atol=1e-8)


def test_the_hessian_of_weighted_softmax_regression_is_its_closed_form(float64):
    rng = np.random.RandomState(1)
    x, y, w = rng.randn(12, 4), rng.randint(0, 3, 12), rng.randn(4, 3)
    schedule = schedules.triangular(3, amplitude=70.0, period=40)
    step = jnp.asarray(STEP, jnp.int32)
    loss_fn = losses.make_loss(lambda w, x: x @ w, losses.cross_entropy, schedule)
    batch = Batch(jnp.asarray(x), jnp.asarray(y))
    found = dense(lambda v: hvp(loss_fn, jnp.asarray(w), batch, step, v), jnp.asarray(w))
    p = np.exp(x @ w)
    p /= p.sum(1, keepdims=True)
    gamma = np.asarray(schedule(step))
    expected = np.zeros((12, 12))
    for j in range(12):
        s = np.diag(p[j]) - np.outer(p[j], p[j])
        expected += gamma[y[j]] * np.kron(np.outer(x[j], x[j]), s) / 12
    np.testing.assert_allclose(found, expected, atol=1e-14)


SPECTRA = {
    "smooth": np.linspace(-1, 1, 60) ** 3,
    "rank 3": np.concatenate([[10.0, 9.0, 8.0], np.zeros(57)]),
    "triple": np.concatenate([[3.0, 3.0, 3.0], np.linspace(-1, 1, 47)]),
    "cluster": np.concatenate([[5.0, 4.999, 4.998], np.linspace(-8, 1, 47)]),
    "multiple of identity": np.full(40, 2.5),
    "zero": np.zeros(30),
    "negative": -np.linspace(1, 2, 24),
    "tiny": np.array([4.0, -7.0, 1.0]),
}
# Spectra on which one basis of 24 can stop short, and then must say so.
MAY_FAIL = ("smooth", "triple", "cluster")


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_the_top_of_prescribed_spectra(x64, name):
    eigenvalues = SPECTRA[name]
    pairs = solve(matrix(eigenvalues))
    assert pairs.converged or name in MAY_FAIL
    scale = max(np.abs(eigenvalues).max(), 1e-30)
    eps = float(jnp.finfo(pairs.values.dtype).eps)
    expected = np.sort(eigenvalues)[::-1][:3]
    assert (np.diff(pairs.values) <= 0).all()
    # each value has a true eigenvalue within its residual, up to rounding of the product
    distance = np.abs(np.asarray(pairs.values)[:, None] - eigenvalues[None]).min(1)
    assert (distance <= pairs.residuals + 50 * eps * scale).all()
    if pairs.converged:
        np.testing.assert_allclose(pairs.values, expected, atol=2e-3 * scale)
    else:
        assert float(pairs.residuals.max()) > 1e-3 * np.abs(np.asarray(pairs.values)).max()


@pytest.mark.parametrize("eigenvalues", [np.concatenate([[3.0, 1.0, 1.0], np.zeros(400)])])
def test_lanczos_invents_no_eigenvalues_beyond_a_rank_three_operator(x64, eigenvalues):
    for seed in range(5):
        pairs = solve(matrix(eigenvalues), num=5, seed=seed)
        np.testing.assert_allclose(pairs.values, [3.0, 1.0, 1.0, 0.0, 0.0], atol=1e-4)
        assert pairs.converged


def test_lanczos_says_so_when_it_has_not_converged(x64):
    spectrum_without_gaps = np.linspace(0, 1, 400)
    pairs = solve(matrix(spectrum_without_gaps), tol=1e-4)
    assert not pairs.converged
    assert float(pairs.residuals.max()) > 1e-4


def test_residuals_are_those_of_the_returned_vectors(float64):
    a = matrix(np.linspace(-1, 1, 60) ** 3)
    pairs = solve(a)
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-13)
    residuals = np.linalg.norm(vectors @ a - pairs.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-3, atol=1e-14)


def test_lanczos_on_a_network_is_the_dense_spectrum_to_its_residuals(network):
    params, problem = network
    step, batch = jnp.asarray(STEP, jnp.int32), problem.batch_fn(STEP)

    def matvec(v):
        return hvp(problem.loss_fn, params, batch, step, v)

    pairs = top_eigenpairs(matvec, like=params, num=3, tol=1e-3, key=jax.random.key(5))
    values, vectors = np.linalg.eigh(dense(matvec, params))
    # the promise of a residual: the eigenvalue is no further away
    assert (np.abs(pairs.values - values[::-1][:3]) <= pairs.residuals).all()
    np.testing.assert_allclose(pairs.values[:2], values[::-1][:2], rtol=1e-9)
    assert pairs.converged and pairs.num_matvecs == 27
    top = np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[0], pairs.vectors))[0])
    assert abs(top @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)


def test_lanczos_agrees_with_outside_oracles(network):
    params, problem = network
    step, batch = jnp.asarray(STEP, jnp.int32), problem.batch_fn(STEP)

    def matvec(v):
        return hvp(problem.loss_fn, params, batch, step, v)

    pairs = top_eigenpairs(matvec, like=params, num=3, tol=1e-3, key=jax.random.key(5))
    full = np.asarray(dense(matvec, params))
    by_arpack = scipy.sparse.linalg.eigsh(full, k=3, which="LA")[0][::-1]
    assert (np.abs(pairs.values - by_arpack) <= pairs.residuals).all()
    # power iteration finds the largest |eigenvalue|, here the top one
    by_power, _ = optax.power_iteration(jnp.asarray(full), num_iters=2000, error_tolerance=1e-12)
    np.testing.assert_allclose(pairs.values[0], by_power, rtol=1e-8)


def test_the_hessian_of_linear_regression_is_two_over_n_times_the_gram_matrix(float64):
    x = jnp.asarray(np.random.RandomState(4).randn(15, 5))
    batch = Batch(x, jnp.arange(15))

    def loss_fn(w, batch, step):
        return jnp.mean((batch.inputs @ w - batch.labels.astype(w.dtype)) ** 2)

    found = dense(lambda v: hvp(loss_fn, jnp.ones(5), batch, jnp.asarray(0), v), jnp.ones(5))
    np.testing.assert_allclose(found, 2 / 15 * x.T @ x, rtol=1e-12)


def test_the_hessian_product_is_symmetric_and_deterministic(network):
    params, problem = network
    step, batch = jnp.asarray(STEP, jnp.int32), problem.batch_fn(STEP)
    flat, unravel = ravel_pytree(params)
    x, y = jnp.asarray(np.random.RandomState(6).randn(2, flat.size))

    def product(v):
        return ravel_pytree(hvp(problem.loss_fn, params, batch, step, unravel(v)))[0]

    np.testing.assert_allclose(x @ product(y), y @ product(x), rtol=1e-12)
    np.testing.assert_array_equal(product(x), product(x))


def test_too_many_eigenpairs_are_refused(x64):
    with pytest.raises(ValueError, match="num must be at most 3"):
        solve(jnp.eye(3), num=4)


def test_the_ntk_is_the_contraction_of_the_explicit_jacobian(network):
    params, problem = network
    inputs = problem.batch_fn(STEP).inputs
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda p: problem.apply_fn(unravel(p), inputs))(flat)  # [30, 3, n]
    expected = np.einsum("pcn,qcn->pq", jacobian, jacobian) / 3
    kernel = empirical_ntk(problem.apply_fn, params, inputs)
    np.testing.assert_allclose(kernel, expected, rtol=1e-12)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-14)
    np.testing.assert_allclose(
        spectrum(kernel), np.linalg.eigvalsh(expected)[::-1], atol=1e-10 * expected.max()
    )
    assert np.linalg.eigvalsh(kernel)[0] > -1e-10 * np.linalg.eigvalsh(kernel)[-1]


def test_the_ntk_of_a_linear_model_is_the_gram_matrix(x64):
    inputs = jnp.asarray(np.random.RandomState(0).randn(6, 4))
    kernel = empirical_ntk(lambda w, x: x @ w, jnp.ones((4, 3)), inputs)
    np.testing.assert_allclose(kernel, inputs @ inputs.T, rtol=1e-12 if x64 else 1e-4, atol=1e-6)


def test_probes_measure_what_the_dense_matrices_say(network):
    params, problem = network
    state = train.init_state(params, train.make_optimizer("sgd", 1.0))._replace(
        step=jnp.asarray(STEP, jnp.int32)
    )
    batch = problem.batch_fn(STEP)
    probe = hessian(problem, every=1, num=3, tol=1e-3)
    _, rows = probe.measure(probe.init(state), state)
    full = dense(lambda v: hvp(problem.loss_fn, params, batch, state.step, v), params)
    distance = np.abs(rows["hessian_eigenvalues"] - np.linalg.eigvalsh(full)[::-1][:3])
    assert (distance <= rows["hessian_residuals"]).all()
    assert float(rows["hessian_residuals"].max()) < 1e-2
    assert set(rows) == set(probe.variables)

    probe = ntk(problem, every=1, num=3, num_examples=7)
    _, rows = probe.measure(probe.init(state), state)
    kernel = empirical_ntk(problem.apply_fn, params, batch.inputs[:7])
    np.testing.assert_allclose(rows["ntk_eigenvalues"], np.linalg.eigvalsh(kernel)[::-1][:3], rtol=1e-10)
    assert set(rows) == set(probe.variables)
