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

    The state may lie in those of wrappers: injected hyper-parameters are read there, parameters that Adam
    does not train have P = inf. Before the first update P is NaN where the count is traced.

    Raises ValueError unless there is the state of one Adam (AdamW and the like too) after an update.

    >>> state = optax.adam(0.1).init(jnp.ones(1))[0]._replace(count=jnp.asarray(1), nu=jnp.asarray([4.0]))
    >>> round(adam_preconditioner(state, b2=0.75).item(), 4)
    4.0
    """
    (count, _, nu), given = _only(
        optax.ScaleByAdamState, opt_state, "Adam", {"b2": b2, "eps": eps, "eps_root": eps_root}
    )
    _check_updated(count >= 1, "Adam")

    def scale(v):
        b2, eps, eps_root = (_as(given[name], v) for name in ("b2", "eps", "eps_root"))
        settled = jnp.where(count >= 1, 1 - b2 ** count.astype(v.dtype), jnp.nan)
        return jnp.sqrt(v / settled + eps_root) + eps

    return _of_all(scale, nu)


def rmsprop_preconditioner(opt_state: PyTree, *, eps: float = 1e-8) -> Params:
    """Return the P of optax's RMSProp from its state, with the optimizer's own `eps`.

        P = sqrt(nu + eps)        optax's default: eps_in_sqrt, not centred, no bias correction

    The state is found as by `adam_preconditioner`. P says nothing where all of nu is zero, as before the
    first update: there it is NaN where nu is traced.

    Raises ValueError unless there is the state of one such RMSProp, with a nu that is not all zero.

    >>> rmsprop = optax.rmsprop(0.1, decay=0.75)
    >>> _, state = rmsprop.update(jnp.asarray([2.0]), rmsprop.init(jnp.ones(1)))
    >>> rmsprop_preconditioner(state).round(4).tolist()
    [1.0]
    """
    (nu,), given = _only(optax.ScaleByRmsState, opt_state, "RMSProp", {"eps": eps})
    updated = jnp.any(jnp.stack([jnp.any(v != 0) for v in jax.tree.leaves(nu)]))
    _check_updated(updated, "RMSProp")
    return _of_all(lambda v: jnp.where(updated, jnp.sqrt(v + _as(given["eps"], v)), jnp.nan), nu)


def _only(kind, opt_state, name, settings):
    """Return the one state of a kind, and its settings, those injected in place of those given."""
    injected = optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState

    def find(tree, settings):
        for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind | injected)):
            if isinstance(node, injected):
                own = {key: value for key, value in node.hyperparams.items() if key in settings}
                yield from find(node.inner_state, settings | own)
            elif isinstance(node, kind):
                yield node, settings

    found = [*find(opt_state, settings)]
    if len(found) != 1:
        raise ValueError(f"the optimizer's state must hold that of one {name}, found {len(found)}")
    return found[0]


def _check_updated(updated, name):
    if not isinstance(updated, jax.core.Tracer) and not updated:
        raise ValueError(f"{name}'s preconditioner needs at least one update, its state is the first")


def _as(setting, like):
    """Return a number as it is, an injected array in the dtype of another."""
    return setting.astype(like.dtype) if isinstance(setting, jax.Array) else setting


def _of_all(scale, nu):
    """Return P of each leaf, infinity for what a mask has taken out: a parameter that does not move."""
    return jax.tree.map(
        lambda v: jnp.asarray(jnp.inf) if isinstance(v, optax.MaskedNode) else scale(v),
        nu,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
