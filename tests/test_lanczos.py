"""The eigensolver on prescribed spectra, on networks, warm and cold, and on what it must refuse."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
from jax.experimental import io_callback
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import dense
from dlf import data, losses, models, schedules

KEY = jax.random.key(0)


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with the given spectrum, and its eigenvectors in the same order."""
    size = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.RandomState(seed).randn(size, size))
    return jnp.asarray(q * np.asarray(eigenvalues) @ q.T), jnp.asarray(q)


def multiply(a, v):
    return a @ v


def solve(a, num=3, tol=1e-3, key=KEY, **settings):
    return top_eigenpairs(Partial(multiply, a), like=a[0], num=num, tol=tol, key=key, **settings)


SPECTRA = {
    "smooth": np.linspace(-1, 1, 60) ** 3,
    "rank 3": np.concatenate([[10.0, 9.0, 8.0], np.zeros(57)]),
    "cluster": np.concatenate([[5.0, 4.99, 4.98], np.linspace(-8, 1, 47)]),
    "no gap": np.linspace(0, 1, 200),
    "multiple of identity": np.full(40, 2.5),
    "zero": np.zeros(30),
    "negative": -np.linspace(1, 2, 24),
    "tiny": np.array([4.0, -7.0, 1.0, 0.5]),
    "network": np.concatenate([[50.0, 20.0, 10.0, 5.0], np.logspace(0, -6, 150), -np.logspace(-1, -6, 100)]),
}
WANTED = {
    "largest": lambda values: values[:3],
    "smallest": lambda values: values[-3:],
    "both": lambda values: np.concatenate([values[:1], values[-1:]]),
}


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_ends_of_prescribed_spectra_are_found(x64, name, which):
    a, _ = matrix(SPECTRA[name])
    eigenvalues = np.sort(SPECTRA[name])[::-1]
    tol = 1e-3 if name == "cluster" else 1e-4  # a gap of 1e-3 of the range is found to its residual
    pairs = solve(a, num=1 if which == "both" else 3, tol=tol, which=which)
    assert pairs.converged and pairs.nonfinite_matvec == 0
    scale = max(np.abs(eigenvalues).max(), 1e-30)
    eps = float(jnp.finfo(a.dtype).eps)
    assert (np.diff(pairs.values) <= 0).all()
    np.testing.assert_allclose(pairs.values, WANTED[which](eigenvalues), atol=2 * tol * scale)
    # the promise of a residual, up to rounding of the matrix: an eigenvalue is no further away
    distance = np.abs(np.asarray(pairs.values)[:, None] - eigenvalues[None]).min(1)
    assert (distance <= pairs.residuals + 20 * eps * scale).all()


@pytest.mark.parametrize("which", WANTED)
def test_residuals_are_those_of_the_returned_vectors(x64, which):
    a, _ = matrix(SPECTRA["smooth"])
    pairs = solve(a, which=which, tol=1e-4, basis_size=10)
    vectors = np.asarray(pairs.vectors, float)
    tolerance = 1e-13 if x64 else 1e-5
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=tolerance)
    images = vectors @ np.asarray(a, float)
    residuals = np.linalg.norm(images - np.asarray(pairs.values, float)[:, None] * vectors, axis=1)
    assert pairs.num_matvecs > 20  # restarts are part of what is checked
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-2, atol=tolerance)


def test_no_eigenvalues_are_invented_beyond_a_rank_three_operator(x64):
    a, _ = matrix(np.concatenate([[3.0, 1.0, 1.0], np.zeros(400)]))
    for seed in range(5):
        pairs = solve(a, num=5, key=jax.random.key(seed))
        assert pairs.converged
        assert float(pairs.values.max()) <= 3 + 1e-5
        distance = np.abs(np.asarray(pairs.values)[:, None] - np.asarray([[3.0, 1.0, 0.0]])).min(1)
        assert distance.max() < 1e-5


def test_residuals_stay_true_where_little_is_left_of_a_product(x64):
    size = 85_002
    diagonal = jnp.linspace(0, 2e-4, size).at[0].set(1.0)  # the rest is near the rounding of the top
    pairs = solve_diagonal(diagonal, num=2, tol=1e-5, max_matvecs=60)
    images = np.asarray(diagonal, float) * np.asarray(pairs.vectors, float)
    true = np.linalg.norm(
        images - np.asarray(pairs.values, float)[:, None] * np.asarray(pairs.vectors, float), axis=1
    )
    assert (true <= 1.5 * np.asarray(pairs.residuals) + 1e-6).all()
    if pairs.converged:
        np.testing.assert_allclose(pairs.values, [1, 2e-4], atol=2e-5)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-12, 1e12, 1e20, 1e36])
def test_scales_that_the_dtype_cannot_square_are_never_called_converged(scale):
    diagonal = scale * jnp.linspace(-1, 2, 300) ** 3
    pairs = solve_diagonal(diagonal, num=2, tol=1e-4, max_matvecs=100)
    assert bool(pairs.converged) == (scale in (1e-12, 1e12))
    if pairs.converged:
        np.testing.assert_allclose(pairs.values[0], diagonal[-1], rtol=1e-4)


def solve_diagonal(diagonal, **settings):
    return top_eigenpairs(Partial(jnp.multiply, diagonal), diagonal, key=KEY, **settings)


def test_of_a_multiple_eigenvalue_one_copy_is_sure_and_all_with_small_splitting(x64):
    rest = np.linspace(-1, 1, 47)
    exact = solve(matrix(np.concatenate([[3.0, 3.0, 3.0], rest]))[0], tol=1e-5)
    assert exact.converged and float(exact.values[0]) == pytest.approx(3, rel=1e-5)
    found = np.asarray(exact.values)[:, None] - np.concatenate([[3.0], rest])
    assert np.abs(found).min(1).max() < 1e-4
    split = solve(matrix(np.concatenate([[3.0, 3.0 - 1e-3, 3.0 - 2e-3], rest]))[0], tol=1e-5)
    np.testing.assert_allclose(split.values, [3.0, 3.0 - 1e-3, 3.0 - 2e-3], atol=3e-5)


def test_without_convergence_it_says_so_beside_the_best_values(x64):
    a, _ = matrix(np.linspace(0, 1, 400))
    pairs = solve(a, tol=1e-4, max_matvecs=30)
    assert not pairs.converged and pairs.num_matvecs == 30
    assert float(pairs.residuals.max()) > 1e-4
    assert 0.9 < float(pairs.values[0]) <= 1 + 1e-5


@pytest.mark.parametrize("num", [1, 3])
def test_restarts_cost_few_products_more_than_an_unrestarted_basis(float64, num):
    a, _ = matrix(SPECTRA["network"])
    restarted = solve(a, num, tol=1e-5, basis_size=16)
    unrestarted = solve(a, num, tol=1e-5, basis_size=len(a))
    assert restarted.converged and unrestarted.converged
    assert int(restarted.num_matvecs) <= 1.15 * int(unrestarted.num_matvecs)


def test_a_million_dimensions(x64):
    diagonal = jnp.linspace(-1.0, 1.0, 10**6).at[jnp.asarray([5, 77])].set(jnp.asarray([1.5, 1.25]))
    pairs = top_eigenpairs(Partial(jnp.multiply, diagonal), diagonal, num=2, tol=1e-4, key=KEY)
    assert pairs.converged
    rtol = 1e-6 if x64 else 20 * 2.0**-23  # float32's floor of 20 eps: one CPU is 1.03e-6 off
    np.testing.assert_allclose(pairs.values, [1.5, 1.25], rtol=rtol)


def tilted(angle):
    """An operator whose top direction has turned by an angle."""
    values = np.concatenate([[5.0, 3.0], np.linspace(-1, 1, 198)])
    a, q = matrix(values)
    turned = np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 5]
    return a + 5 * (jnp.outer(turned, turned) - jnp.outer(q[:, 0], q[:, 0]))


def test_a_warm_start_needs_fewer_products(x64):
    cold = solve(tilted(0.0), num=2, tol=1e-4)
    for angle in (0.001, 0.01):
        moved = tilted(angle)
        warm = solve(moved, num=2, tol=1e-4, start=cold.vectors)
        assert warm.converged and 8 <= int(warm.num_matvecs) <= max(8, 0.7 * int(cold.num_matvecs))
        np.testing.assert_allclose(warm.values, jnp.linalg.eigvalsh(moved)[::-1][:2], rtol=1e-4)


def test_a_warm_start_finds_a_new_top_direction(x64):
    a, q = matrix(np.concatenate([[5.0], np.linspace(-1, 1, 199)]))
    old = q[None, :, 0]  # still an exact eigenvector, with a residual of zero, and no longer the top
    grown = a + 6 * jnp.outer(q[:, 9], q[:, 9])
    top = jnp.linalg.eigvalsh(grown)[-1]
    for seed in range(20):
        pairs = solve(grown, num=1, start=old, key=jax.random.key(seed))
        np.testing.assert_allclose(pairs.values[0], top, rtol=1e-3)


def test_a_start_of_zeros_is_a_cold_start(float64):
    a, _ = matrix(SPECTRA["network"])
    cold, zeros = solve(a), solve(a, start=jnp.zeros((3, len(a))))
    np.testing.assert_array_equal(cold.values, zeros.values)
    assert cold.num_matvecs == zeros.num_matvecs


def spiral_hessian(step=17):
    batch = data.spiral(examples_per_class=10).train
    params = MODEL.init(jax.random.key(2), batch.inputs)
    return operators.hessian(LOSS, params, batch, jnp.asarray(step, jnp.int32)), params


MODEL = models.mlp(3, (9,), activation="tanh", initialization="updated", use_bias=True)
LOSS = losses.make_loss(MODEL.apply, losses.cross_entropy, schedules.triangular(3, amplitude=70.0, period=40))


def test_on_a_network_it_agrees_with_the_dense_spectrum_and_outside_oracles(float64):
    matvec, params = spiral_hessian()
    pairs = top_eigenpairs(matvec, like=params, num=3, tol=1e-4, key=jax.random.key(5))
    full = np.asarray(dense(matvec, params))
    values, vectors = np.linalg.eigh(full)
    # the promise of a residual: the eigenvalue is no further away, but for the rounding of the oracles
    rounding = 1e-13
    assert (np.abs(pairs.values - values[::-1][:3]) <= pairs.residuals + rounding).all()
    top = np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[0], pairs.vectors))[0])
    assert abs(top @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    by_arpack = scipy.sparse.linalg.eigsh(full, k=3, which="LA")[0][::-1]
    assert (np.abs(pairs.values - by_arpack) <= pairs.residuals + rounding).all()
    # power iteration finds the largest |eigenvalue|, here the top one
    by_power, _ = optax.power_iteration(jnp.asarray(full), num_iters=2000, error_tolerance=1e-12)
    np.testing.assert_allclose(pairs.values[0], by_power, rtol=1e-8)


def test_nothing_is_compiled_again_for_other_parameters_steps_or_tolerances(float64):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    vectors = None
    for step in (17, 18, 25):
        matvec, params = spiral_hessian(step)
        moved = jax.tree.map(lambda p, step=step: p + 0.01 * step, params)
        matvec = operators.hessian(LOSS, moved, *matvec.args[2:4])
        start = jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params) if vectors is None else vectors
        before = len(compiled)
        pairs = top_eigenpairs(matvec, moved, num=2, tol=1e-3 / step, start=start, key=jax.random.key(step))
        vectors = pairs.vectors
        assert (len(compiled) > before) == (step == 17)


def test_the_program_does_not_grow_with_the_basis(float64):
    a, _ = matrix(SPECTRA["network"])
    lines = {
        len(jax.jit(partial(solve, basis_size=size)).lower(a).as_text().splitlines()) for size in (16, 128)
    }
    assert len(lines) == 1


def test_memory_is_the_basis_and_a_few_vectors(x64):
    size, rows = 10**6, 24
    diagonal = jnp.linspace(-1.0, 1.0, size)
    program = jax.jit(
        lambda d: top_eigenpairs(Partial(jnp.multiply, d), d, num=1, tol=1e-3, basis_size=rows, key=KEY)
    )
    temporary = program.lower(diagonal).compile().memory_analysis().temp_size_in_bytes
    vectors, tables = (rows + 9) * size, 4 * (rows + 1) * rows  # tables hold what is known of the basis
    assert temporary <= (vectors + tables) * diagonal.dtype.itemsize  # far from a second basis


@pytest.mark.parametrize("broken", [1, 7])
def test_a_product_that_is_not_finite_is_named_beside_the_best_values(x64, broken):
    a, _ = matrix(SPECTRA["smooth"])
    calls = itertools.count(1)

    def matvec(v):
        fine = io_callback(
            lambda: np.asarray(next(calls) != broken), jax.ShapeDtypeStruct((), bool), ordered=True
        )
        return jnp.where(fine, a @ v, jnp.nan)

    pairs = top_eigenpairs(matvec, a[0], num=2, tol=1e-5, key=KEY)
    assert not pairs.converged and pairs.nonfinite_matvec == pairs.num_matvecs == broken
    assert np.isnan(pairs.values).all() if broken == 1 else 0.5 < float(pairs.values[0]) < 1


def test_an_operator_that_is_not_symmetric_does_not_converge(x64):
    a = jnp.asarray(np.triu(np.random.RandomState(0).rand(60, 60)) + np.diag(np.arange(60.0)))
    assert not solve(a, tol=1e-4, max_matvecs=300).converged


def test_a_tolerance_below_rounding_is_raised_to_it_with_a_warning(x64):
    a, _ = matrix(SPECTRA["rank 3"])
    name = "float64" if x64 else "float32"
    with pytest.warns(UserWarning, match=f"tol=1e-20 is below the rounding of {name}"):
        assert solve(a, tol=1e-20).converged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num=0), "num must be at least 1"),
        (dict(num=5), "fewer eigenpairs wanted than the dimension 5"),
        (dict(num=3, which="both"), "fewer eigenpairs wanted than the dimension 5"),
        (dict(num=2, basis_size=3), "basis_size must be at least 4 for 2 eigenpairs, got 3"),
        (dict(num=2, tol=0.0), "tol must be between 0 and 1"),
        (dict(num=2, tol=np.nan), "tol must be between 0 and 1"),
        (dict(num=2, start=jnp.ones(5)), "start must be like the parameters with a leading axis"),
        (dict(num=2, start={"a": jnp.ones((1, 5))}), "start must be like the parameters"),
        (dict(num=2, max_matvecs=2), "max_matvecs must be more than 2"),
    ],
)
def test_impossible_requests_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        solve(jnp.eye(5), **settings)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (jnp.arange(5), "one real floating dtype of 32 or 64 bits, got int"),
        (jnp.ones(5, complex), "one real floating dtype of 32 or 64 bits, got complex"),
        ((jnp.ones(5), jnp.arange(5)), "one real floating dtype of 32 or 64 bits, got float32, int32"),
        (jnp.ones(5, "bfloat16"), "of 32 or 64 bits, got bfloat16"),
        ({}, "got no leaves"),
        ({"a": jnp.ones(5)}, "must return a pytree like the one it is given"),
        (jnp.ones(6), "must return a pytree like the one it is given"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(like, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(lambda v: jnp.ones(5), like, num=1, tol=1e-3, key=KEY)
