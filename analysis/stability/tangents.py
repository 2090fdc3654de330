"""The derivative of training steps with respect to all that a step reads and writes, and its growth."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from dlf.types import TrainState

Advance = Callable[[TrainState], TrainState]

_WRAPPERS = {  # what moves in states that hold settings, too: rates and sums of rates, which no step perturbs
    optax.InjectHyperparamsState: ("inner_state",),
    optax.InjectStatefulHyperparamsState: ("inner_state",),
    optax.contrib.ScheduleFreeState: ("base_optimizer_state", "z"),
}
_REFUSED = optax.MultiStepsState | optax.ApplyEvery | optax.contrib.SAMState


def flat_step(advance: Advance, state: TrainState) -> tuple[Callable, Float[Array, " size"]]:
    """Return a step as a map of one flat vector, and the state as such a vector.

    The vector holds what moves (see `moves`); all else is frozen as it is in `state`, with the step's own
    number, so the map is that of this step. A frozen parameter keeps its perturbation: its multiplier is 1.
    """
    leaves, structure = jax.tree.flatten(state)
    moving = jax.tree.leaves(moves(state))
    flat, unravel = ravel_pytree([leaf for leaf, moves in zip(leaves, moving, strict=True) if moves])

    def step(vector):
        values = iter(unravel(vector))
        full = [next(values) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)]
        after = jax.tree.leaves(advance(structure.unflatten(full)))
        return ravel_pytree([leaf for leaf, moves in zip(after, moving, strict=True) if moves])[0]

    return step, flat


def moves(state: PyTree) -> PyTree[bool]:
    """Return for every array of a state whether it moves, or is a setting of the step.

    Floating arrays move; counters, masks, random keys and injected hyper-parameters are settings.

    Raises ValueError for optax's MultiSteps, `apply_every` and sam, whose steps are not all alike.

    >>> optimizer = optax.inject_hyperparams(optax.trace)(decay=0.5)
    >>> found = moves(optimizer.init(jnp.ones(2)))
    >>> found.count, found.hyperparams, found.inner_state.trace
    (False, {'decay': False}, True)
    """

    def is_known(node):
        return isinstance(node, (*_WRAPPERS, _REFUSED))

    def of(node):
        if isinstance(node, _REFUSED):
            raise ValueError(
                f"{type(node).__name__}: the steps are not all alike, every k-th one is another: take the "
                "optimizer inside, on batches k times as large"
            )
        if not is_known(node):
            dtype = jnp.result_type(node)
            is_key = jnp.issubdtype(dtype, jax.dtypes.extended)  # of which `isdtype` does not know
            return not is_key and jnp.isdtype(dtype, "real floating")
        still = jax.tree.map(lambda leaf: False, node)
        return still._replace(**{name: moves(getattr(node, name)) for name in _WRAPPERS[type(node)]})

    return jax.tree.map(of, state, is_leaf=is_known)


def first_tangents(state: TrainState, num: int, *, key: Array) -> Float[Array, "num size"]:
    """Return `num` random orthonormal directions of what moves in a step.

    Raises ValueError for more directions than there are, or as `moves`.

    >>> state = TrainState(jnp.asarray(0), jnp.ones(4), (), jnp.ones(4))
    >>> first_tangents(state, 2, key=jax.random.key(0)).shape
    (2, 8)
    """
    _, flat = flat_step(lambda state: state, state)
    if not 1 <= num <= flat.size:
        raise ValueError(f"num must be from 1 to {flat.size}, the size of the state, got {num}")
    return jnp.linalg.qr(jax.random.normal(key, (flat.size, num), flat.dtype))[0].T


def log_growth(
    advance: Advance, state: TrainState, tangents: Float[Array, "num size"]
) -> tuple[Float[Array, "num size"], Float[Array, " num"]]:
    """Carry orthonormal tangents through one step; return them orthonormal again, and their growth.

        J q_i = sum_{j <= i} q'_j R_ji,    growth_i = log |R_ii|        in nat a step

    J is the derivative of the step at `state`, by forward differentiation: about one Hessian product each.
    Averaged along a run the growths are the finite-time Lyapunov exponents, the leading one first. A tangent
    that a step maps to zero has growth -inf and goes on as some other direction. Errors are those of `moves`.

    Source: Benettin et al. 1980 (Meccanica 15, 9).

    >>> halve = lambda state: state._replace(params=state.params / 2)
    >>> state = TrainState(jnp.asarray(0), jnp.ones(3), (), ())
    >>> _, growth = log_growth(halve, state, first_tangents(state, 2, key=jax.random.key(0)))
    >>> [round(float(value), 4) for value in growth]
    [-0.6931, -0.6931]
    """
    step, flat = flat_step(advance, state)
    if len(tangents) == 1:
        image = jax.jvp(step, (flat,), (tangents[0],))[1]
        norm = jnp.linalg.norm(image)
        return jnp.where(norm > 0, image / norm, tangents[0])[None], jnp.log(norm)[None]
    images = jax.lax.map(lambda tangent: jax.jvp(step, (flat,), (tangent,))[1], tangents)
    orthonormal, triangle = jnp.linalg.qr(images.T)
    return orthonormal.T, jnp.log(jnp.abs(jnp.diagonal(triangle)))


@partial(jax.jit, static_argnames=("advance", "num_steps", "num"))
def lyapunov_exponents(
    advance: Advance, state: TrainState, *, num_steps: int, num: int = 1, key: Array
) -> tuple[TrainState, Float[Array, "num_steps num"]]:
    """Follow a run and return its last state and the growth of `num` tangents at every step.

    The mean over steps of a row of the result is a finite-time exponent, in nat a step.

    >>> logistic = lambda state: state._replace(params=3.8 * state.params * (1 - state.params))
    >>> state = TrainState(jnp.asarray(0), jnp.asarray(0.3), (), ())
    >>> _, growth = lyapunov_exponents(logistic, state, num_steps=5_000, key=jax.random.key(0))
    >>> 0.35 < growth.mean() < 0.5  # 0.43
    Array(True, dtype=bool)
    """

    def body(carry, _):
        state, tangents = carry
        tangents, growth = log_growth(advance, state, tangents)
        return (advance(state), tangents), growth

    carry = state, first_tangents(state, num, key=key)
    (state, _), growth = jax.lax.scan(body, carry, length=num_steps)
    return state, growth
