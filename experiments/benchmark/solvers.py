"""Solvers of the largest Hessian eigenvalues, ours and others in JAX and SciPy, and the cases for them.

A solver is a function (product, start, setting) -> values, vectors as rows, on vectors as `ravel_pytree` has
them, ours too; `adapt` makes it what is timed.
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
from jax.tree_util import Partial
from scipy.sparse.linalg import LinearOperator, eigsh

from analysis import operators
from analysis.lanczos import top_eigenpairs
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch, LossFn, Matvec, Params

NUM, TOL = 5, 1e-3
STEP = jnp.asarray(1_250, jnp.int32)  # the first class weighs most
KEY = jax.random.key(0)
_compiled = partial(jax.jit, static_argnums=2)  # once for all matrices, for each setting
_multiply = jax.jit(lambda product, v: product(v))


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


def adapt(solve: Callable, noticed: str, case: Case, setting: Any) -> Callable[[], Found]:
    """Return what is timed: a solver on a case, its products counted in a run before."""
    flat, unravel = ravel_pytree(case.params)
    matvec, start, calls = case.hessian(case.params), jax.random.normal(KEY, flat.shape, flat.dtype), []

    def product(matvec, v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def counted(matvec, v):
        jax.debug.callback(lambda: calls.append(1))
        return product(matvec, v)

    jax.block_until_ready(solve(Partial(counted, matvec), start, setting))
    jax.effects_barrier()
    num_matvecs, product = len(calls), Partial(product, matvec)
    return lambda: Found(*map(np.asarray, solve(product, start, setting)), num_matvecs, noticed)


def _ours(product, like, basis_size, start=None):
    pairs = top_eigenpairs(product, like, num=NUM, tol=TOL, start=start, basis_size=basis_size, key=KEY)
    return pairs.values, pairs.vectors


def _warm(case: Case, basis_size: int) -> Callable[[], Found]:
    before = adapt(_ours, "", case, basis_size)().vectors  # ten training steps earlier
    after = case._replace(params=case.next_params)
    return adapt(partial(_ours, start=jnp.asarray(before)), "yes", after, basis_size)


@_compiled
def _matfree(product, start, size):
    from matfree import decomp

    found = decomp.tridiag_sym(size)(product, start)
    values, vectors = jnp.linalg.eigh(found.J_small)
    return values[::-1][:NUM], vectors[:, ::-1][:, :NUM].T @ found.Q_tall


@_compiled
def _lobpcg(product, start, tol):
    block = jax.random.normal(KEY, (start.size, NUM), start.dtype)

    def products(x):  # one more checks its input where they are counted, and is compiled away elsewhere
        return jax.lax.map(product, x.T).T

    values, vectors, _ = lobpcg_standard(products, block, m=40, tol=tol and tol / start.size)
    return values, vectors.T


@_compiled
def _power(product, start, tol):
    value, vector = optax.power_iteration(product, v0=start, num_iters=1_000, error_tolerance=tol)
    return value[None], vector[None] / jnp.linalg.norm(vector)


def arpack(product: Callable[[np.ndarray], Any], start: Any, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Run SciPy's `eigsh`, ARPACK's restarted Lanczos; of `start` it takes shape and dtype."""

    def multiply(v):
        return np.asarray(product(v.ravel().astype(start.dtype)))

    operator = LinearOperator((start.size, start.size), matvec=multiply, dtype=start.dtype)
    values, vectors = eigsh(operator, k=NUM, which="LA", tol=tol)
    return values, vectors.T


def _scipy(product, start, tol):
    return arpack(partial(_multiply, product), start, tol)


# name: (case, setting) -> what is timed, and settings from cheap to expensive
SOLVERS = {
    "ours, cold": (partial(adapt, _ours, "yes"), (24,)),
    "ours, warm": (_warm, (24,)),
    "unrestarted Lanczos": (partial(adapt, _ours, "yes"), (160,)),
    "lobpcg_standard, tol / 20n": (partial(adapt, _lobpcg, "partly"), (TOL / 20,)),
    "lobpcg_standard as it comes": (partial(adapt, _lobpcg, "partly"), (None,)),
    "scipy eigsh": (partial(adapt, _scipy, "yes"), (TOL, TOL / 100)),
    "optax.power_iteration (1)": (partial(adapt, _power, "no"), (TOL, TOL / 100)),
}
if find_spec("matfree"):
    SOLVERS["matfree"] = (partial(adapt, _matfree, "no"), (10, 15, 20, 25, 30, 40, 60, 90))
