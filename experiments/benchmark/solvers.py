"""Solvers of the largest Hessian eigenvalues, ours and others in JAX and SciPy, and the cases for them.

A solver is a function (case, setting) -> run, where run() is what is timed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from analysis import operators
from analysis.lanczos import top_eigenpairs
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch, LossFn, Matvec, Params

NUM, TOL = 5, 1e-3
STEP = jnp.asarray(1_250, jnp.int32)  # the first class weighs most
KEY = jax.random.key(0)


class Case(NamedTuple):
    """One network in one state, with all arrays in float32."""

    network: str
    stage: str
    activation: str
    loss_fn: LossFn
    weights: np.ndarray  # of the classes
    batch: Batch
    params: Params
    next_params: Params  # ten training steps later, for a warm start

    def hessian(self, params: Params) -> Matvec:
        """Return the product with the Hessian at some parameters."""
        return operators.hessian(self.loss_fn, params, self.batch, STEP)


class Found(NamedTuple):
    """What a solver returns: the eigenvectors are rows in the order of ravel_pytree."""

    values: np.ndarray
    vectors: np.ndarray
    num_matvecs: int
    noticed: str  # whether it says that it has not converged


def cases() -> Iterator[Case]:
    """Yield three networks at initialisation and after training, the loss weighted by class."""
    spiral, digits = data.spiral().train, data.digits().train
    few = Batch(digits.inputs[:200], digits.labels[:200])
    perceptron, deep = models.mlp(3, (100,), "relu", "original", True), (256, 256)
    # activation, data, learning rate, steps
    networks = {
        "spiral 2-100-3": (perceptron, "relu", spiral, 1.0, 2_000),
        "digits 64-256-256-10": (models.mlp(10, deep, "tanh", "original", True), "tanh", digits, 0.1, 200),
        "digits, convolutions": (models.myrtle(10, (16, 32, 32), "relu"), "relu", few, 0.1, 200),
    }
    for name, (model, activation, batch, rate, num_steps) in networks.items():
        batch = Batch(batch.inputs.astype("f4"), batch.labels)
        schedule = schedules.triangular(3 if name.startswith("spiral") else 10, amplitude=10.0, period=5_000)
        loss_fn = losses.make_loss(model.apply, losses.cross_entropy, schedule)
        optimizer = optimizers.make_optimizer("sgd", learning_rate=rate)
        state = train.init_state(model.init(KEY, batch.inputs[:1]), optimizer)
        weights = np.asarray(schedule(STEP), "f4")
        loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
        for stage in ("initial", "trained"):
            after = loop(state, {}, 10)[0]
            yield Case(name, stage, activation, loss_fn, weights, batch, state.params, after.params)
            state = loop(state, {}, num_steps)[0]


def ours(case: Case, basis_size: int = 24, warm: bool = False) -> Callable[[], Found]:
    """Return our solver, cold, or warm from the eigenvectors of ten training steps before."""
    solve = partial(top_eigenpairs, num=NUM, tol=TOL, key=KEY, basis_size=basis_size)
    start = solve(case.hessian(case.params), case.params).vectors if warm else None
    params = case.next_params if warm else case.params
    matvec = case.hessian(params)

    def run():
        pairs = solve(matvec, params, start=start)
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
        return Found(np.asarray(pairs.values), np.asarray(vectors), int(pairs.num_matvecs), "yes")

    return run


def _flat(case: Case) -> tuple[Matvec, Callable, jax.Array]:
    """Return the Hessian, its compiled product (Hessian, flat vector) -> vector, and a random start."""
    flat, unravel = ravel_pytree(case.params)
    product = jax.jit(lambda matvec, v: ravel_pytree(matvec(unravel(v)))[0])
    return case.hessian(case.params), product, jax.random.normal(KEY, flat.shape, flat.dtype)


def _matfree(case: Case, size: int) -> Callable[[], Found]:
    from matfree import decomp

    matvec, product, start = _flat(case)

    @jax.jit
    def solve(matvec):
        found = decomp.tridiag_sym(size)(partial(product, matvec), start)
        values, vectors = jnp.linalg.eigh(found.J_small)
        return values[::-1][:NUM], vectors[:, ::-1][:, :NUM].T @ found.Q_tall  # one vector a row

    return lambda: Found(*map(np.asarray, solve(matvec)), size, "no")


def _lobpcg(case: Case, tol: float | None) -> Callable[[], Found]:
    matvec, product, start = _flat(case)
    block = jax.random.normal(KEY, (start.size, NUM), start.dtype)

    @jax.jit
    def solve(matvec):
        def products(x):
            return jax.lax.map(partial(product, matvec), x.T).T

        return lobpcg_standard(products, block, m=40, tol=tol and tol / start.size)

    def run():
        values, vectors, count = solve(matvec)
        # each iteration multiplies three blocks of vectors and once more the best; one block at first
        return Found(np.asarray(values), np.asarray(vectors).T, (4 * int(count) + 2) * NUM, "partly")

    return run


def arpack(product: Callable[[np.ndarray], Any], size: int, dtype: Any, tol: float) -> Found:
    """Run SciPy's `eigsh`, ARPACK's restarted Lanczos, on a function of vectors."""
    calls = []

    def multiply(v):
        calls.append(1)
        return np.asarray(product(v.ravel()))

    operator = LinearOperator((size, size), matvec=multiply, dtype=dtype)
    values, vectors = eigsh(operator, k=NUM, which="LA", tol=tol)
    return Found(values, vectors.T, len(calls), "yes")


def _scipy(case: Case, tol: float) -> Callable[[], Found]:
    matvec, product, start = _flat(case)
    return lambda: arpack(lambda v: product(matvec, v.astype(start.dtype)), start.size, start.dtype, tol)


def _power(case: Case, tol: float) -> Callable[[], Found]:
    matvec, product, start = _flat(case)
    calls = []

    @partial(jax.jit, static_argnames="counted")
    def solve(matvec, counted=False):
        def multiply(v):
            if counted:
                jax.debug.callback(lambda: calls.append(1))
            return product(matvec, v)

        return optax.power_iteration(multiply, v0=start, num_iters=1_000, error_tolerance=tol)

    jax.block_until_ready(solve(matvec, counted=True))
    jax.effects_barrier()

    def run():
        value, vector = map(np.asarray, solve(matvec))
        return Found(value[None], vector[None] / np.linalg.norm(vector), len(calls), "no")

    return run


# name: solver, and its settings from cheap to expensive
SOLVERS = {
    "ours, cold": (ours, (24,)),
    "ours, warm": (partial(ours, warm=True), (24,)),
    "unrestarted Lanczos": (ours, (160,)),
    "lobpcg_standard, tol / 20n": (_lobpcg, (TOL / 20,)),
    "lobpcg_standard as it comes": (_lobpcg, (None,)),
    "scipy eigsh": (_scipy, (TOL, TOL / 100)),
    "optax.power_iteration (1)": (_power, (TOL, TOL / 100)),
}
if find_spec("matfree"):
    SOLVERS["matfree"] = (_matfree, (10, 15, 20, 25, 30, 40, 60, 90))
