"""The eigensolver's program: its memory, its size, when it is compiled, and on a network."""

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
SIZE = 200


def test_a_million_dimensions_in_the_memory_of_the_basis_and_a_few_vectors(x64):
    size, rows = 10**6, 24
    diagonal = jnp.linspace(-1.0, 1.0, size).at[jnp.asarray([5, 77])].set(jnp.asarray([1.5, 1.25]))
    program = jax.jit(
        lambda d: top_eigenpairs(Partial(jnp.multiply, d), d, num=2, tol=1e-4, basis_size=rows, key=KEY)
    )
    compiled = program.lower(diagonal).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    # nine beside the basis, with jax 0.12 in float32 half a one of random bits more: measured 30 to 33.5;
    # tables hold what is known of the basis
    vectors, tables = (rows + 10) * size, 4 * (rows + 1) * rows
    assert temporary <= (vectors + tables) * diagonal.dtype.itemsize  # far from a second basis
    pairs = compiled(diagonal)
    assert pairs.converged
    rtol = 1e-6 if x64 else 20 * 2.0**-23  # float32's floor of 20 eps: one CPU is 1.03e-6 off
    np.testing.assert_allclose(pairs.values, [1.5, 1.25], rtol=rtol)


MODEL = models.mlp(3, (9,), activation="tanh", initialization="updated", use_bias=True)
SCHEDULE = schedules.triangular(3, amplitude=70.0, period=40)
LOSS = losses.make_loss(models.apply_fn(MODEL), losses.cross_entropy, SCHEDULE)


def check_against_oracles(pairs, matvec, params):
    """Compare with the dense spectrum, ARPACK and power iteration."""
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


def test_on_a_network_it_agrees_with_oracles_and_compiles_once_for_all_parameters_steps_and_tolerances(
    float64,
):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    batch = data.spiral(examples_per_class=10).train
    params, _ = jax.jit(MODEL.init)(jax.random.key(2), batch.inputs)
    vectors = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), params)
    for step, tol in ((17, 1e-4), (18, 5e-5), (25, 4e-5)):
        moved = jax.tree.map(lambda p, step=step: p + 0.01 * (step - 17), params)
        matvec = operators.hessian(LOSS, moved, batch, jnp.asarray(step, jnp.int32))
        before, key = len(compiled), jax.random.key(step)
        pairs = top_eigenpairs(matvec, moved, num=3, tol=tol, start=vectors, key=key)
        vectors = pairs.vectors
        assert (len(compiled) > before) == (step == 17)
        if step == 17:
            check_against_oracles(pairs, matvec, moved)


def test_the_program_does_not_grow_with_the_basis(float64):
    def solve(v, rows):
        return top_eigenpairs(lambda v: 2 * v, v, num=3, tol=1e-3, basis_size=rows, key=KEY)

    programs = [jax.jit(partial(solve, rows=rows)).lower(jnp.ones(SIZE)) for rows in (16, 128)]
    assert len({len(program.as_text().splitlines()) for program in programs}) == 1


BREAKING = {}  # the number of the product that is broken, and how many there were


def is_fine():
    BREAKING["count"] += 1
    return np.asarray(BREAKING["count"] != BREAKING["at"])


def breaking(a, v):
    fine = io_callback(is_fine, jax.ShapeDtypeStruct((), bool), ordered=True)
    return jnp.where(fine, a @ v, jnp.nan)


def test_a_product_that_is_not_finite_is_named_beside_the_best_values(float64):
    a = jnp.diag(jnp.linspace(-1, 1, SIZE) ** 3)
    for broken in (1, 7):
        BREAKING.update(at=broken, count=0)
        pairs = top_eigenpairs(Partial(breaking, a), a[0], num=2, tol=1e-5, key=KEY)
        assert not pairs.converged and pairs.nonfinite_matvec == pairs.num_matvecs == broken
        assert np.isnan(pairs.values).all() if broken == 1 else 0.5 < float(pairs.values[0]) < 1
