"""The solvers of the curvature benchmark: ours, others in JAX and SciPy, those in PyTorch."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree

from analysis import operators
from analysis.lanczos import top_eigenpairs
from dlf.types import Batch, LossFn, Model, Params
from experiments.benchmark import torch_peers

NUM, TOL = 5, 1e-3
STEP = jnp.asarray(1_250, jnp.int32)  # the first class weighs most
KEY = jax.random.key(0)


class Case(NamedTuple):
    """One network in one state, with all arrays in float32."""

    network: str
    stage: str
    model: Model
    activation: str
    loss_fn: LossFn
    weights: np.ndarray  # of the classes
    batch: Batch
    params: Params
    next_params: Params  # ten training steps later, for a warm start


class Found(NamedTuple):
    """What a solver returns: the eigenvectors are rows in the order of ravel_pytree."""

    values: np.ndarray
    vectors: np.ndarray
    num_matvecs: int
    noticed: str  # whether it says that it has not converged


def ours(case: Case, warm: bool = False, basis_size: int = 24) -> Callable[[], Found]:
    """Return our solver, cold, or warm from the eigenvectors of ten training steps before."""
    start, params = None, case.params
    if warm:
        before = operators.hessian(case.loss_fn, params, case.batch, STEP)
        start = top_eigenpairs(before, params, num=NUM, tol=TOL, key=KEY).vectors
        params = case.next_params
    matvec = operators.hessian(case.loss_fn, params, case.batch, STEP)

    def solve():
        pairs = top_eigenpairs(matvec, params, num=NUM, tol=TOL, start=start, basis_size=basis_size, key=KEY)
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
        return Found(np.asarray(pairs.values), np.asarray(vectors), int(pairs.num_matvecs), "yes")

    return solve


def others(case: Case) -> dict[str, list[Callable[[], Found]]]:
    """Return the other solvers in JAX and SciPy, each with its settings from cheap to expensive."""
    flat, unravel = ravel_pytree(case.params)
    matvec = operators.hessian(case.loss_fn, case.params, case.batch, STEP)

    @jax.jit
    def product(matvec, v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def unrestarted(size):
        return ours(case, basis_size=size)

    def matfree(size):
        from matfree import decomp

        @jax.jit
        def run(matvec):
            found = decomp.tridiag_sym(size)(
                partial(product, matvec), jax.random.normal(KEY, flat.shape, flat.dtype)
            )
            values, vectors = jnp.linalg.eigh(found.J_small)
            return values[::-1][:NUM], vectors[:, ::-1][:, :NUM].T @ found.Q_tall  # one vector a row

        return lambda: Found(*map(np.asarray, run(matvec)), size, "no")

    def lobpcg(tol):
        start = jax.random.normal(KEY, (flat.size, NUM), flat.dtype)

        @jax.jit
        def run(matvec):
            return lobpcg_standard(
                lambda x: jax.lax.map(partial(product, matvec), x.T).T, start, m=40, tol=tol
            )

        def solve():
            values, vectors, count = run(matvec)
            # each iteration multiplies three blocks of vectors and once more the best; one block at first
            return Found(np.asarray(values), np.asarray(vectors).T, (4 * int(count) + 2) * NUM, "partly")

        return solve

    def eigsh(tol):
        from scipy.sparse.linalg import LinearOperator
        from scipy.sparse.linalg import eigsh as solve_arpack

        def solve():
            calls = []

            def multiply(v):
                calls.append(1)
                return np.asarray(product(matvec, jnp.asarray(v.ravel(), flat.dtype)))

            operator = LinearOperator((flat.size, flat.size), matvec=multiply, dtype="f4")
            values, vectors = solve_arpack(operator, k=NUM, which="LA", tol=tol)
            return Found(values[::-1], vectors.T[::-1], len(calls), "yes")

        return solve

    def power(tol):
        start = jax.random.normal(KEY, flat.shape, flat.dtype)
        calls = []

        @partial(jax.jit, static_argnames="counted")
        def run(matvec, counted=False):
            def multiply(v):
                if counted:
                    jax.debug.callback(lambda: calls.append(1))
                return product(matvec, v)

            return optax.power_iteration(multiply, v0=start, num_iters=1_000, error_tolerance=tol)

        jax.block_until_ready(run(matvec, counted=True))
        jax.effects_barrier()

        def solve():
            value, vector = run(matvec)
            vector = vector / jnp.linalg.norm(vector)
            return Found(np.asarray(value)[None], np.asarray(vector)[None], len(calls), "no")

        return solve

    found = {
        "unrestarted Lanczos": [unrestarted(160)],
        "lobpcg_standard, tol / 20n": [lobpcg(TOL / 20 / flat.size)],
        "lobpcg_standard as it comes": [lobpcg(None)],
        "scipy eigsh": [eigsh(tol) for tol in (TOL, TOL / 100)],
        "optax.power_iteration (1)": [power(tol) for tol in (TOL, TOL / 100)],
    }
    if importlib.util.find_spec("matfree"):
        found["matfree"] = [matfree(size) for size in (10, 15, 20, 25, 30, 40, 60, 90)]
    return found


def pytorch(case: Case) -> dict[str, list[Callable[[], Found]]]:
    """Return the solvers in PyTorch that are installed, with their settings from cheap to expensive."""
    if not importlib.util.find_spec("torch"):
        return {}
    problem = torch_peers.Problem(
        torch_peers.Layers(jax.tree.map(np.array, case.params), case.activation),
        np.array(case.batch.inputs),
        np.array(case.batch.labels),
        case.weights[np.asarray(case.batch.labels)],
    )
    settings = {"steps; default 2 num": (15, 20, 30, 40, 50)}

    def solver(peer, setting):
        def solve():
            vectors, values, num_matvecs, converged = peer.solve(problem, NUM, setting)
            return Found(values, vectors, num_matvecs, "no" if converged is None else "yes")

        return solve

    return {
        name: [solver(peer, setting) for setting in settings.get(peer.argument, (TOL, TOL / 100))]
        for name, peer in torch_peers.PEERS.items()
        if importlib.util.find_spec(peer.module)
    }
