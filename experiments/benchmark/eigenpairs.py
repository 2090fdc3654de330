"""Curvature: solvers of the largest Hessian eigenvalues at equal true residual, and the empirical NTK.

The same float32 weights and data for all: three networks, at initialisation and after training. A solver
that cannot be asked for a residual is given larger and larger settings until it has it. The true residual
is computed afterwards, in float64.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
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
from analysis.linear_maps import dense
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch, LossFn, Matvec, Model, Params
from experiments.benchmark.ntk_peers import compare_ntk, networks
from experiments.benchmark.timing import Record, fastest, measure, peak_memory, row, timed

NUM, TOL = 5, 1e-3
STEP = np.int32(1_250)  # the first class weighs most; JAX is not to start before a process is pinned
_DENSE = 2_000  # parameters up to which the dense Hessian is the reference
_STOPPING = ("scipy eigsh", "curvlinops + eigsh", "lobpcg_standard, tol / 20n", "eigenthings, power")
_PATIENCE = 10.0  # seconds; what takes longer is run once, with its compilation
_PEAK = Path("/proc/self/clear_refs")  # on Linux


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


def cases() -> Iterator[Case]:
    """Yield three networks at initialisation and after training, the loss weighted by class."""
    shallow, deep = (
        models.mlp(*of, "original", True) for of in ((3, (100,), "relu"), (10, (256, 256), "tanh"))
    )
    networks = (
        ("spiral 2-100-3", shallow, "relu", data.spiral(), 1.0, 2_000),  # learning rate, steps
        ("digits 64-256-256-10", deep, "tanh", data.digits(), 0.1, 200),
        ("digits, convolutions", models.myrtle(10, (16, 32, 32), "relu"), "relu", data.digits(200), 0.1, 200),
    )
    for name, model, activation, dataset, rate, num_steps in networks:
        batch = Batch(dataset.train.inputs.astype("f4"), dataset.train.labels)
        yield from stages(name, model, activation, batch, dataset.num_classes, rate, num_steps)


def stages(
    name: str, model: Model, activation: str, batch: Batch, num_classes: int, rate: float, num_steps: int
) -> Iterator[Case]:
    """Yield a network at initialisation and after so many steps of gradient descent."""
    schedule = schedules.triangular(num_classes, amplitude=10.0, period=5_000)
    loss_fn = losses.make_loss(models.apply_fn(model), losses.cross_entropy, schedule)
    optimizer = optimizers.make_optimizer("sgd", learning_rate=rate)
    state = train.init_state(model.init(jax.random.key(0), batch.inputs[:1])[0], optimizer)
    loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
    weights = np.asarray(schedule(STEP), "f4")
    for stage in ("initial", "trained"):
        after = loop(state, {}, 10)[0]
        yield Case(name, stage, activation, loss_fn, weights, batch, state.params, after.params)
        state = loop(state, {}, num_steps)[0]


# Solvers: (product, start, setting) -> values, vectors as rows, on vectors as `ravel_pytree` has them.
_compiled = partial(jax.jit, static_argnums=2)  # once for all matrices, for each setting
_multiply = jax.jit(lambda product, v: product(v))


def _ours(product, like, basis_size, start=None):
    pairs = top_eigenpairs(
        product, like, num=NUM, tol=TOL, start=start, basis_size=basis_size, key=jax.random.key(0)
    )
    return pairs.values, pairs.vectors


@_compiled
def _matfree(product, start, size):
    from matfree import decomp

    found = decomp.tridiag_sym(size)(product, start)
    values, vectors = jnp.linalg.eigh(found.J_small)
    return values[::-1][:NUM], vectors[:, ::-1][:, :NUM].T @ found.Q_tall


@_compiled
def _lobpcg(product, start, tol):
    block = jax.random.normal(jax.random.key(0), (start.size, NUM), start.dtype)
    # one product more checks its input where they are counted, and is compiled away elsewhere
    values, vectors, _ = lobpcg_standard(
        lambda x: jax.lax.map(product, x.T).T, block, m=40, tol=tol and tol / start.size
    )
    return values, vectors.T


@_compiled
def _power(product, start, tol):
    value, vector = optax.power_iteration(product, v0=start, num_iters=1_000, error_tolerance=tol)
    return value[None], vector[None] / jnp.linalg.norm(vector)


def arpack(product: Callable[[np.ndarray], Any], start: Any, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Run SciPy's `eigsh`, ARPACK's restarted Lanczos; of `start` it takes shape and dtype."""
    multiply = partial(_multiply, product) if isinstance(product, Partial) else product
    operator = LinearOperator((start.size, start.size), multiply, dtype=start.dtype)
    values, vectors = eigsh(operator, k=NUM, which="LA", tol=tol)
    return values, vectors.T


def adapt(solve: Callable, case: Case, setting: Any) -> Callable[[], tuple]:
    """Return what is timed: a solver on a case, its products counted in a run before."""
    flat, unravel = ravel_pytree(case.params)
    matvec, start, calls = (
        case.hessian(case.params),
        jax.random.normal(jax.random.key(0), flat.shape, flat.dtype),
        [],
    )

    def product(matvec, v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def counted(matvec, v):
        jax.debug.callback(lambda: calls.append(1))
        return product(matvec, v)

    jax.block_until_ready(solve(Partial(counted, matvec), start, setting))
    jax.effects_barrier()
    product = Partial(product, matvec)
    return lambda: (*map(np.asarray, solve(product, start, setting)), len(calls))


def _warm(case, basis_size):
    _, before, _ = adapt(_ours, case, basis_size)()  # ten training steps earlier
    after = case._replace(params=case.next_params)
    return adapt(partial(_ours, start=jnp.asarray(before)), after, basis_size)


# what makes (case, setting) -> what is timed, () -> values, vectors as rows, number of products; whether it
# says that it has not converged; settings from cheap to expensive
SOLVERS = {
    "ours, cold": (partial(adapt, _ours), "yes", (24,)),
    "ours, warm": (_warm, "yes", (24,)),
    "unrestarted Lanczos": (partial(adapt, _ours), "yes", (160,)),
    "lobpcg_standard, tol / 20n": (partial(adapt, _lobpcg), "partly", (TOL / 20,)),
    "lobpcg_standard as it comes": (partial(adapt, _lobpcg), "partly", (None,)),
    "scipy eigsh": (partial(adapt, arpack), "yes", (TOL, TOL / 100)),
    "optax.power_iteration (1)": (partial(adapt, _power), "no", (TOL, TOL / 100)),
}
if find_spec("matfree"):
    SOLVERS["matfree"] = (partial(adapt, _matfree), "no", (10, 15, 20, 25, 30, 40, 60, 90))


def attempt(case: Case, solver: str, make: Callable, noticed: str, settings: Iterable) -> tuple:
    """Run the settings of a solver until the true residual is reached: its record, and what to time.

    `residual` and `error` are the largest over the largest |eigenvalue|, `memory` in MiB.
    """
    params = case.next_params if "warm" in solver else case.params
    exact = jax.tree.map(lambda x: x.astype(float), params)
    matvec = case._replace(batch=Batch(case.batch.inputs.astype(float), case.batch.labels)).hessian(exact)
    flat, unravel = ravel_pytree(exact)
    record = {"network": case.network, "stage": case.stage, "solver": solver, "num": NUM, "tol": TOL}
    record |= {"num_matvecs": 0, "seconds": None, "residual": None, "error": None, "memory": None}
    for setting in settings:
        try:
            run = make(case, setting)
            for _ in range(2):  # the first call compiles
                (values, vectors, num_matvecs), seconds, memory = _watch(run)
                if seconds >= _PATIENCE:
                    break
        except Exception as error:  # whatever a foreign package raises is its result
            reason = f"{type(error).__name__} {error}".strip().splitlines()[0]
            return record | {"noticed": reason, "values": []}, None
        images = [ravel_pytree(matvec(unravel(jnp.asarray(u, float))))[0] for u in vectors]
        distances = np.linalg.norm(np.asarray(images) - values[:, None] * vectors, axis=1)
        residual = float(distances.max() / np.abs(values).max())
        if residual <= TOL:
            break
    if flat.size <= _DENSE:
        expected = np.linalg.eigvalsh(dense(matvec, exact))[::-1][: len(values)]
        record["error"] = float(np.abs(np.sort(values)[::-1] - expected).max() / expected[0])
    record |= {"num_matvecs": int(num_matvecs), "seconds": seconds, "residual": residual, "memory": memory}
    record |= {"noticed": "" if residual <= TOL else noticed, "values": [seconds]}
    return record, run if seconds < _PATIENCE else None


def _watch(run):
    """Return the result, the seconds, and the MiB by which the process grew at its peak (on Linux)."""
    if is_told := os.access(_PEAK, os.W_OK):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed would be used again, unseen
        _PEAK.write_text("5")  # the peak is counted anew
    before, started = peak_memory(), perf_counter()
    found = run()
    return found, perf_counter() - started, peak_memory() - before if is_told else None


def solve(case: Case, repeats: int) -> list[Record]:
    """Return the records of all solvers on one case, their times taken in turn."""
    solvers = SOLVERS
    if find_spec("torch"):
        from experiments.benchmark import peers

        solvers = SOLVERS | peers.SOLVERS
    found = {name: attempt(case, name, *solver) for name, solver in solvers.items()}
    times = measure({name: timed(run) for name, (_, run) in found.items() if run}, repeats)
    for name, values in times.items():
        found[name][0].update(values=values.tolist(), seconds=float(np.median(values)))
    return [record for record, _ in found.values()]


def summarise(results: list[Record]) -> list[Record]:
    """Compare our solver with the others on one case: the targets of the curvature engine."""
    of = {result["solver"]: result for result in results}
    reached = [name for name in of if of[name]["residual"] is not None and of[name]["residual"] <= TOL]
    products = {name: result["num_matvecs"] for name, result in of.items()}
    cold, case = products["ours, cold"], f"{results[0]['network']}, {results[0]['stage']}"
    fewest = min((products[name] for name in _STOPPING if name in reached), default=np.inf)
    torch = fastest(np.array(of[name]["values"]) for name in reached if name not in SOLVERS)
    seconds, bound = np.array(of["ours, cold"]["values"]) / torch, 1 if "convolutions" in case else 0.5
    found = [
        ("cold : unrestarted", "products", cold / products["unrestarted Lanczos"], ("<=", 1.15)),
        ("cold : best with a stopping rule", "products", cold / fewest, ("<", 1)),
        ("warm : max(8, 0.7 cold)", "products", products["ours, warm"] / max(8, 0.7 * cold), ("<=", 1)),
        ("cold : best in PyTorch", "seconds", seconds, ("<=", bound)),
    ]
    if case == "digits 64-256-256-10, initial":
        found.insert(3, ("cold", "products", cold, ("<=", 65)))
    return [row(case, *of) for of in found]


def curvature(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure solvers of the largest Hessian eigenvalues, and the NTK."""
    jax.config.update("jax_enable_x64", True)  # for the true residuals; all solvers get float32
    for name in networks():
        for dtype in ("float64", "float32"):
            yield {"rows": compare_ntk(name, dtype, 3 * repeats)}
    for case in cases():
        product = partial(case.hessian(case.params), case.params)
        gradient = partial(jax.jit(jax.grad(case.loss_fn)), case.params, case.batch, STEP)
        ten = {of: timed(lambda of=of: [of() for _ in range(10)]) for of in (product, gradient)}
        ratio, results = np.divide(*measure(ten, repeats).values()), solve(case, repeats)
        name, of = f"{case.network}, {case.stage}", "Hessian product : gradient"
        yield {"results": results, "rows": [row(name, of, "times", ratio, ("<=", 2.3)), *summarise(results)]}
