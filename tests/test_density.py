"""Density and trace against spectra that are known, closed forms and matfree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from matfree import decomp, funm, stochtrace

from analysis.density import spectral_density, trace

KEY = jax.random.key(0)
VALUES = np.concatenate([np.linspace(-1, 1, 150), [4.0, 5.0]])


def matvec(values):
    return Partial(jnp.multiply, jnp.asarray(values))


def test_the_density_is_that_of_the_spectrum_within_its_errors(x64):
    found = spectral_density(
        matvec(VALUES), jnp.asarray(VALUES), num_probes=32, order=40, width=0.02, key=KEY
    )
    kernel = jax.scipy.stats.norm.pdf(np.asarray(found.values)[:, None], VALUES[None], float(found.width))
    distance = np.abs(found.density - kernel.mean(1))
    seen = np.asarray(found.standard_error) > 1e-3 * float(found.density.max())
    # two standard errors hold for most points of a curve, five for all
    assert np.mean(distance[seen] <= 2 * found.standard_error[seen]) > 0.8
    assert (distance[seen] <= 5 * found.standard_error[seen]).all()
    assert float(jnp.trapezoid(found.density, found.values)) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)


def test_an_exhausted_krylov_space_invents_nothing(x64):
    values = np.repeat([0.0, 1.0, 3.0], [300, 60, 40])  # three distinct values, 64 steps
    found = spectral_density(matvec(values), jnp.asarray(values), num_probes=16, order=64, key=KEY)
    weights = np.asarray(found.weights)
    nodes = np.asarray(found.nodes)[weights > 1e-4]
    assert np.abs(nodes[:, None] - [[0.0, 1.0, 3.0]]).min(1).max() < 1e-4
    for value, share in ((0.0, 0.75), (1.0, 0.15), (3.0, 0.1)):
        near = np.where(np.abs(np.asarray(found.nodes) - value) < 1e-3, weights, 0).sum(1)
        assert near.mean() == pytest.approx(share, abs=float(near.std(ddof=1)))


FLAT = {  # spectra that have no width of their own, or less than the dtype resolves
    "multiple of identity": np.full(40, 2.5),
    "large multiple": np.full(40, -3.3e6),
    "one parameter": np.array([7e5]),
    "far below one": 1e-30 * np.linspace(-1, 3, 40),
    "far above one": 1e30 * np.linspace(-1, 3, 40),
    "one large among small": np.append(1e-25 * np.linspace(-1, 3, 39), 1e-20),
    "zero": np.zeros(40),
    "a spread of 1e-3 on 1e6": 1e6 + 1e-3 * np.linspace(0, 1, 40),
    "a spread of 1e-3 on 1": -1 + 1e-3 * np.linspace(0, 1, 40),
    "ordinary": np.linspace(-1, 3, 40),
}


@pytest.mark.parametrize("name", FLAT)
def test_the_density_integrates_to_one_for_any_spectrum_and_key(x64, name):
    values = jnp.asarray(FLAT[name])
    for seed in range(4):
        found = spectral_density(matvec(values), values, num_probes=2, order=12, key=jax.random.key(seed))
        density, at = np.asarray(found.density, np.longdouble), np.asarray(found.values, np.longdouble)
        assert float(np.trapezoid(density, at)) == pytest.approx(1, abs=2e-4)
        assert (np.diff(found.values) > 0).all()
        mean = float(jnp.sum(found.nodes * found.weights, axis=1).mean())
        size = float(jnp.abs(values).max())
        assert mean == pytest.approx(float(values.mean()), rel=1e-5, abs=size if size != 1e6 + 1e-3 else 1)
    if name == "a spread of 1e-3 on 1e6" and x64:  # which float64 still tells apart
        assert float(found.width) < 1e-4


def test_the_quadrature_agrees_with_matfree(float64):
    order, diagonal = 12, jnp.asarray(VALUES)
    found = spectral_density(matvec(VALUES), diagonal, num_probes=64, order=order, key=KEY)
    ours = len(VALUES) * jnp.sum(found.weights * jnp.exp(found.nodes), axis=1)
    integrand = funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(jnp.exp), decomp.tridiag_sym(order))
    estimate = stochtrace.estimator_monte_carlo(integrand, stochtrace.sampler_normal(diagonal, num=64))
    theirs = estimate(lambda v: diagonal * v, KEY)
    error = 4 * float(jnp.std(ours)) / 8
    assert float(ours.mean()) == pytest.approx(float(jnp.sum(jnp.exp(diagonal))), abs=error)
    assert float(theirs) == pytest.approx(float(ours.mean()), abs=4 * error)


def test_the_trace_is_right_within_its_error_and_the_error_is_reduced(x64):
    rng = np.random.RandomState(0)
    values = np.concatenate([[100.0, -60.0, 30.0], 0.1 * rng.randn(400)])
    errors = []
    for seed in range(20):
        found = trace(matvec(values), jnp.asarray(values), num_matvecs=45, key=jax.random.key(seed))
        errors.append((float(found.value) - values.sum()) / float(found.standard_error))
        plain = np.sqrt(2 * np.sum(values**2) / 45)  # of as many random vectors without the reduction
        assert float(found.standard_error) < plain / 20
    assert np.mean(np.abs(errors) < 2) > 0.8
    assert abs(np.mean(errors)) < 4 / np.sqrt(20)


def test_products_that_are_not_finite_show():
    broken = matvec(np.full(20, np.nan))
    assert np.isnan(spectral_density(broken, jnp.ones(20), order=5, key=KEY).density).all()
    assert np.isnan(trace(broken, jnp.ones(20), num_matvecs=9, key=KEY).value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_probes=1), "num_probes must be at least 2"),
        (dict(order=0), "order must be at least 1"),
        (dict(width=0.0), "width must be positive"),
        (dict(width=1e-4), "1024 points are too few to resolve a width of 0.0001"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(matvec(VALUES), jnp.asarray(VALUES), **settings, key=KEY)
    with pytest.raises(ValueError, match="num_matvecs must be at least 6"):
        trace(matvec(VALUES), jnp.asarray(VALUES), num_matvecs=5, key=KEY)
