"""The eigensolver on prescribed spectra, warm and cold, and on what it must refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from analysis.lanczos import top_eigenpairs

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


SIZE = 200  # of all but one matrix here, so that each program is compiled once
SPECTRA = {
    "smooth": np.linspace(-1, 1, SIZE) ** 3,
    "rank 3": np.concatenate([[10.0, 9.0, 8.0], np.zeros(SIZE - 3)]),
    "cluster": np.concatenate([[5.0, 4.99, 4.98], np.linspace(-8, 1, SIZE - 3)]),
    "no gap": np.linspace(0, 1, SIZE),
    "multiple of identity": np.full(SIZE, 2.5),
    "zero": np.zeros(SIZE),
    "negative": -np.linspace(1, 2, SIZE),
    "network": np.concatenate([[50.0, 20.0, 10.0, 5.0], np.logspace(0, -6, 116), -np.logspace(-1, -6, 80)]),
}
WANTED = {
    "largest": lambda values: values[:3],
    "smallest": lambda values: values[-3:],
    "both": lambda values: np.concatenate([values[:1], values[-1:]]),
}


def check_residuals(a, pairs, x64):
    """Compare the residuals and the vectors, in float64, with what they say of themselves."""
    vectors = np.asarray(pairs.vectors, float)
    tolerance = 1e-13 if x64 else 1e-5
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=tolerance)
    images = vectors @ np.asarray(a, float)
    residuals = np.linalg.norm(images - np.asarray(pairs.values, float)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-2, atol=tolerance)


def check_ends(spectrum, which, tol=1e-4):
    """Compare the wanted ends with those of a prescribed spectrum; return the matrix and what was found."""
    a, _ = matrix(spectrum)
    eigenvalues = np.sort(spectrum)[::-1]
    pairs = solve(a, num=1 if which == "both" else 3, tol=tol, which=which)
    assert pairs.converged and pairs.nonfinite_matvec == 0
    scale = max(np.abs(eigenvalues).max(), 1e-30)
    eps = float(jnp.finfo(a.dtype).eps)
    assert (np.diff(pairs.values) <= 0).all()
    np.testing.assert_allclose(pairs.values, WANTED[which](eigenvalues), atol=2 * tol * scale)
    # the promise of a residual, up to rounding of the matrix: an eigenvalue is no further away
    distance = np.abs(np.asarray(pairs.values)[:, None] - eigenvalues[None]).min(1)
    assert (distance <= pairs.residuals + 20 * eps * scale).all()
    return a, pairs


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_ends_of_prescribed_spectra_are_found(x64, name, which):
    # a gap of 1e-3 of the range is found to its residual
    a, pairs = check_ends(SPECTRA[name], which, tol=1e-3 if name == "cluster" else 1e-4)
    if name == "smooth":
        assert pairs.num_matvecs > 24  # restarts are part of what is checked
        check_residuals(a, pairs, x64)


@pytest.mark.parametrize("which", WANTED)
def test_a_basis_of_the_whole_space_is_enough(float64, which):
    check_ends(np.array([4.0, -7.0, 1.0, 0.5]), which)


def test_no_eigenvalues_are_invented_beyond_an_operator_of_low_rank(x64):
    for values in ([3.0, 1.0], [3.0, 1.0, 1.0]):  # the exact Krylov space has 3 dimensions
        a, _ = matrix(np.concatenate([values, np.zeros(SIZE - len(values))]))
        for seed in range(5):
            pairs = solve(a, key=jax.random.key(seed))
            assert pairs.converged
            assert float(pairs.values.max()) <= 3 + 1e-5
            distance = np.abs(np.asarray(pairs.values)[:, None] - np.asarray([[3.0, 1.0, 0.0]])).min(1)
            assert distance.max() < 1e-5


def test_residuals_stay_true_where_little_is_left_of_a_product(x64):
    size = 85_002
    diagonal = jnp.linspace(0, 2e-4, size).at[0].set(1.0)  # the rest is near the rounding of the top
    matvec = Partial(jnp.multiply, diagonal)
    pairs = top_eigenpairs(matvec, diagonal, num=2, tol=1e-5, max_matvecs=60, key=KEY)
    images = np.asarray(diagonal, float) * np.asarray(pairs.vectors, float)
    true = np.linalg.norm(
        images - np.asarray(pairs.values, float)[:, None] * np.asarray(pairs.vectors, float), axis=1
    )
    assert (true <= 1.5 * np.asarray(pairs.residuals) + 1e-6).all()
    if pairs.converged:
        np.testing.assert_allclose(pairs.values, [1, 2e-4], atol=2e-5)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-12, 1e12, 1e20, 1e36])
def test_scales_that_the_dtype_cannot_square_are_never_called_converged(scale):
    diagonal = scale * jnp.linspace(-1, 2, SIZE) ** 3
    pairs = solve(jnp.diag(diagonal), tol=1e-4, max_matvecs=100)
    assert bool(pairs.converged) == (scale in (1e-12, 1e12))
    if pairs.converged:
        np.testing.assert_allclose(pairs.values[0], diagonal[-1], rtol=1e-4)


def test_of_a_multiple_eigenvalue_one_copy_is_sure_and_all_with_small_splitting(x64):
    rest = np.linspace(-1, 1, SIZE - 3)
    exact = solve(matrix(np.concatenate([[3.0, 3.0, 3.0], rest]))[0], tol=1e-5)
    assert exact.converged and float(exact.values[0]) == pytest.approx(3, rel=1e-5)
    found = np.asarray(exact.values)[:, None] - np.concatenate([[3.0], rest])
    assert np.abs(found).min(1).max() < 1e-4
    split = solve(matrix(np.concatenate([[3.0, 3.0 - 1e-3, 3.0 - 2e-3], rest]))[0], tol=1e-5)
    np.testing.assert_allclose(split.values, [3.0, 3.0 - 1e-3, 3.0 - 2e-3], atol=3e-5)


def test_without_convergence_it_says_so_beside_the_best_values(x64):
    a, _ = matrix(SPECTRA["no gap"])
    pairs = solve(a, tol=1e-4, max_matvecs=30)
    assert not pairs.converged and pairs.num_matvecs == 30
    assert float(pairs.residuals.max()) > 1e-4
    assert 0.9 < float(pairs.values[0]) <= 1 + 1e-5


def test_restarts_cost_few_products_more_than_an_unrestarted_basis(float64):
    for name in ("network", "smooth"):
        a, _ = matrix(SPECTRA[name])
        restarted, unrestarted = (solve(a, tol=1e-5, basis_size=size) for size in (16, 100))
        assert restarted.converged and unrestarted.converged
        assert int(restarted.num_matvecs) <= 1.15 * int(unrestarted.num_matvecs)
    assert 16 < int(unrestarted.num_matvecs) < 100  # the last one's restarts are real


def tilted(angle):
    """An operator whose top direction has turned by an angle."""
    values = np.concatenate([[5.0, 3.0, 2.0], np.linspace(-1, 1, SIZE - 3)])
    a, q = (np.asarray(part) for part in matrix(values))
    turned = np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 5]
    return jnp.asarray(a + 5 * (np.outer(turned, turned) - np.outer(q[:, 0], q[:, 0])))


def test_a_warm_start_needs_fewer_products(x64):
    cold = solve(tilted(0.0), tol=1e-4)
    for angle in (0.001, 0.01):
        moved = tilted(angle)
        warm = solve(moved, tol=1e-4, start=cold.vectors)
        assert warm.converged and 8 <= int(warm.num_matvecs) <= max(8, 0.7 * int(cold.num_matvecs))
        np.testing.assert_allclose(warm.values, np.linalg.eigvalsh(moved)[::-1][:3], rtol=1e-4)


def test_a_warm_start_finds_a_new_top_direction(x64):
    a, q = (np.asarray(part) for part in matrix(np.concatenate([[5.0], np.linspace(-1, 1, SIZE - 1)])))
    old = jnp.asarray(q[None, :, 0])  # still an exact eigenvector, with a residual of zero, no longer the top
    grown = jnp.asarray(a + 6 * np.outer(q[:, 9], q[:, 9]))
    top = np.linalg.eigvalsh(grown)[-1]
    for seed in range(20):
        pairs = solve(grown, num=1, start=old, key=jax.random.key(seed))
        np.testing.assert_allclose(pairs.values[0], top, rtol=1e-3)


def test_a_start_of_zeros_is_a_cold_start(float64):
    a, _ = matrix(SPECTRA["network"])
    cold, zeros = solve(a), solve(a, start=jnp.zeros((3, len(a))))
    np.testing.assert_array_equal(cold.values, zeros.values)
    assert cold.num_matvecs == zeros.num_matvecs


def test_an_operator_that_is_not_symmetric_does_not_converge(x64):
    a = jnp.asarray(np.triu(np.random.RandomState(0).rand(SIZE, SIZE)) + np.diag(np.arange(1.0 * SIZE)))
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
