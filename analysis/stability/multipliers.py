"""Multipliers: the eigenvalues of the derivative of one training step, or of a whole cycle of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

from analysis.linear_maps import as_pytree, dense
from analysis.stability.tangents import Advance, flat_step
from dlf.types import TrainState

_LARGEST_DENSE = 64  # up to this size of the state all multipliers from the matrix


class StepMultipliers(NamedTuple):
    """What the derivative of one training step says about its stability.

    A `flip` below -1 overshoots, and a period doubling follows; `rotations` are instabilities that turn.
    """

    flip: float  # the most negative real multiplier, NaN if no real one was found
    rotations: tuple[complex, ...]  # complex ones found of modulus above 1, one of each pair, largest first
    residual: float  # |J v - flip v| for the unit vector v
    converged: bool  # whether it is within the tolerance
    direction: np.ndarray  # v, as a flat vector of parameters and optimizer state


class FloquetMultipliers(NamedTuple):
    """The multipliers of a cycle: stable where all moduli are below 1.

    `closure` is the distance of the state at the end of the cycle from that at its beginning, over the size
    of the state: not small, it is no periodic orbit, and the multipliers say nothing.
    """

    multipliers: np.ndarray  # largest modulus first
    residuals: np.ndarray  # as for one step
    converged: bool
    closure: float


def step_multipliers(
    advance: Advance, state: TrainState, *, num: int = 6, tol: float = 1e-6, key: jax.Array
) -> StepMultipliers:
    """Find the most negative multiplier of the training step at `state`, without any formula.

        J = d(state after the step) / d(state before it),    J v = mu v        flip where Re mu < -1

    J acts on all that moves in parameters, model state and optimizer state together, so schedules, weight
    decay, momentum and a moving preconditioner are in it; settings are not (`analysis.stability.moves`).
    Products are forward derivatives of the step; Arnoldi (ARPACK) looks for the smallest real parts, the
    largest imaginary parts and the largest moduli, `num` of each. States of at most 64 numbers are solved
    densely. The spectral radius would be no criterion: each negative eigenvalue of the Hessian puts it above
    1, each flat direction at 1.

    Runs outside of compiled functions. `tol` is relative to the modulus. Where Arnoldi does not converge, the
    best values are returned and `converged` is False.

    Raises ValueError for `tol` outside (0, 1), `num` below 1, a step without finite derivative at `state`, or
    an optimizer that moves at every k-th step only.

    Source: Lehoucq and Sorensen 1996 (ARPACK).

    >>> def heavy_ball(state):  # of rate and momentum 0.5 is stable up to 2 (1 + 0.5) / 0.5 = 6, curvature 7
    ...     velocity = 0.5 * state.opt_state + 7 * state.params
    ...     return state._replace(params=state.params - 0.5 * velocity, opt_state=velocity)
    >>> state = TrainState(jnp.asarray(0), jnp.ones(2), (), jnp.zeros(2))
    >>> round(step_multipliers(heavy_ball, state, key=jax.random.key(0)).flip, 4)
    -1.7071
    """
    product = Partial(_product, as_pytree(advance), state)
    _, flat = flat_step(advance, state)
    turns = None
    while turns is None or (turns[:num].all() and 2 * num < flat.size - 2):
        num = num if turns is None else 2 * num  # a real one lies behind all complex ones found
        values, vectors, residuals = _extreme(product, flat, ("SR", "LI", "LM"), num, tol, key)
        turns = np.abs(values.imag) > 10 * tol * np.abs(values)
    turning = [complex(v) for v in values[turns & (values.imag > 0)] if abs(v) > 1]
    different = [v for i, v in enumerate(turning) if all(abs(v - w) > 10 * tol * abs(v) for w in turning[:i])]
    rotations = tuple(sorted(different, key=abs, reverse=True))
    if not (~turns & np.isfinite(values)).any():
        return StepMultipliers(np.nan, rotations, np.nan, False, np.full(flat.shape, np.nan))
    lowest = int(np.nanargmin(np.where(turns, np.nan, values.real)))
    flip, residual = float(values.real[lowest]), float(residuals[lowest])
    converged = residual <= 10 * tol * max(abs(flip), 1)
    return StepMultipliers(flip, rotations, residual, converged, vectors[:, lowest].real)


def floquet_multipliers(
    advance: Advance, state: TrainState, *, num_steps: int, num: int = 6, tol: float = 1e-6, key: jax.Array
) -> FloquetMultipliers:
    """Find the largest multipliers of a cycle of `num_steps` training steps from `state` on.

        M = J_{T-1} ... J_1 J_0,    M v = mu v        the cycle is stable where all |mu| < 1

    For periodic orbits only, elsewhere the growth of tangents (`log_growth`); found as in `step_multipliers`.

    Raises ValueError as `step_multipliers` does, or for less than one step.

    >>> decay = lambda state: state._replace(params=state.params * jnp.asarray([-0.5, 0.1]))
    >>> state = TrainState(jnp.asarray(0), jnp.zeros(2), (), ())
    >>> found = floquet_multipliers(decay, state, num_steps=2, key=jax.random.key(0))
    >>> found.multipliers.real.round(4).tolist(), found.closure
    ([0.25, 0.01], 0.0)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    _, flat = flat_step(advance, state)
    cycle = Partial(_repeat, as_pytree(advance), jnp.asarray(num_steps))
    _, end = flat_step(cycle, cycle(state))
    size = max(float(jnp.linalg.norm(flat)), float(jnp.finfo(flat.dtype).tiny))
    product, closure = Partial(_product, cycle, state), float(jnp.linalg.norm(end - flat)) / size
    values, _, residuals = _extreme(product, flat, ("LM",), num, tol, key)
    order = np.argsort(-np.abs(values))[:num]
    converged = bool((residuals[order] <= 10 * tol * np.maximum(np.abs(values[order]), 1)).all())
    return FloquetMultipliers(values[order], residuals[order], converged, closure)


@jax.jit
def _product(advance, state, vector):
    step, flat = flat_step(advance, state)
    return jax.jvp(step, (flat,), (vector,))[1]


@jax.jit
def _repeat(advance, num_steps, state):
    return jax.lax.fori_loop(0, num_steps, lambda _, s: advance(s), state)


def _extreme(product, flat, ends, num, tol, key):
    """Return (values, unit vectors [size, number], residuals) of the multipliers at some ends."""
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, relative to the multiplier, got {tol}")
    start = jax.random.normal(key, flat.shape, flat.dtype)
    if not bool(jnp.all(jnp.isfinite(product(start)))):
        raise ValueError(
            "the training step has no finite derivative at this state: a loss that is not finite, or a root "
            "at zero, as Adam's where a gradient has always been zero (its eps_root > 0 helps)"
        )
    if flat.size <= _LARGEST_DENSE:
        values, vectors = np.linalg.eig(np.asarray(dense(product, flat)))
        values, vectors = values.astype(complex), vectors.astype(complex)
    else:
        operator = LinearOperator(
            (flat.size, flat.size), lambda v: np.asarray(product(jnp.asarray(v.ravel()))), dtype=flat.dtype
        )
        parts = [_arnoldi(operator, end, num, tol, np.asarray(start)) for end in ends]
        values, vectors = np.concatenate([p[0] for p in parts]), np.hstack([p[1] for p in parts])
    columns = vectors.T.astype(np.result_type(np.asarray(flat), 1j))
    parts = [[np.asarray(product(jnp.asarray(part))) for part in (v.real, v.imag)] for v in columns]
    cases = zip(parts, values, vectors.T, strict=True)
    return values, vectors, np.array([np.linalg.norm(re + 1j * im - mu * v) for (re, im), mu, v in cases])


def _arnoldi(operator, end, num, tol, start):
    size = operator.shape[0]
    nothing = np.full(1, np.nan + 0j), np.full((size, 1), np.nan + 0j)
    ncv = min(size, max(20, 4 * num + 1))
    try:
        return eigs(operator, k=min(num, size - 2), which=end, tol=tol, v0=start, ncv=ncv)
    except ArpackNoConvergence as error:
        return (error.eigenvalues, error.eigenvectors) if len(error.eigenvalues) else nothing
    except ArpackError:  # a map without any image
        return nothing
