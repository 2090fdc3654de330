"""Optimizers by their optax names, and the preconditioners that their states hold."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from dlf.types import Params


def make_optimizer(
    name: str, learning_rate: float | Array | optax.Schedule, **settings: Any
) -> optax.GradientTransformation:
    """Build an optimizer by its optax name and keyword arguments.

    The learning rate may be a traced array or an optax schedule. Beside optax's optimizers there is "ema",
    plain momentum as an exponential mean: `optax.ema` followed by the learning rate.

    Raises ValueError for a name that optax does not have or a learning rate that is not positive,
    TypeError for a setting that the optimizer does not take.

    >>> make_optimizer("adam", learning_rate=0.1, b1=0.5).init({"w": jnp.zeros(2)})[0].count.item()
    0
    """
    names = [
        candidate
        for candidate in dir(optax)
        if inspect.isfunction(builder := getattr(optax, candidate))
        and next(iter(inspect.signature(builder).parameters), "") == "learning_rate"
        # building blocks, and lbfgs, whose update asks for the loss as a function
        and not candidate.startswith(("_", "scale_by_", "lbfgs"))
    ]
    if name not in [*names, "ema"]:
        raise ValueError(f"unknown optimizer {name!r}: one of {', '.join(names)}, ema")
    is_number = not (callable(learning_rate) or isinstance(learning_rate, jax.core.Tracer))
    if is_number and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    if name == "ema":
        return optax.chain(optax.ema(**settings), optax.scale_by_learning_rate(learning_rate))
    return getattr(optax, name)(learning_rate=learning_rate, **settings)


def adam_preconditioner(
    opt_state: PyTree, *, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> Params:
    """Return the P of optax's Adam from its state, with the optimizer's own settings.

        P = sqrt(nu / (1 - b2^count) + eps_root) + eps        after `count` >= 1 updates

    Raises ValueError unless there is the state of one Adam (AdamW and the like too) after an update.

    >>> state = optax.adam(0.1).init(jnp.ones(1))[0]._replace(count=jnp.asarray(1), nu=jnp.asarray([4.0]))
    >>> round(adam_preconditioner(state, b2=0.75).item(), 4)
    4.0
    """
    count, _, nu = _only(optax.ScaleByAdamState, opt_state, "Adam")
    if not isinstance(count, jax.core.Tracer) and count < 1:
        raise ValueError("Adam's preconditioner needs at least one update, count is 0")
    return jax.tree.map(lambda v: jnp.sqrt(v / (1 - b2 ** count.astype(v.dtype)) + eps_root) + eps, nu)


def rmsprop_preconditioner(opt_state: PyTree, *, eps: float = 1e-8) -> Params:
    """Return the P of optax's RMSProp from its state, with the optimizer's own `eps`.

        P = sqrt(nu + eps)        optax's default: eps_in_sqrt, not centred, no bias correction

    Raises ValueError unless there is the state of one such RMSProp.

    >>> rmsprop = optax.rmsprop(0.1, decay=0.75)
    >>> _, state = rmsprop.update(jnp.asarray([2.0]), rmsprop.init(jnp.ones(1)))
    >>> rmsprop_preconditioner(state).round(4).tolist()
    [1.0]
    """
    state = _only(optax.ScaleByRmsState, opt_state, "RMSProp")
    return jax.tree.map(lambda v: jnp.sqrt(v + eps), state.nu)


def _only(kind, opt_state, name):
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    found = [state for state in states if isinstance(state, kind)]
    if len(found) != 1:
        raise ValueError(f"the optimizer's state must hold that of one {name}, found {len(found)}")
    return found[0]
