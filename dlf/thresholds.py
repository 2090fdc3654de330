"""The sharpness above which an optimizer is unstable, in closed form."""

import inspect
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlf.types import Step

_MULTIPLIER = "analysis.stability.step_multipliers needs no formula"
# settings that are in a formula, change none, or that the preconditioner's own functions take
_KNOWN = {
    "learning_rate", "momentum", "nesterov", "b1", "debias", "accumulator_dtype", "mu_dtype", "initial_scale",
    "decay", "eps", "b2", "eps_root",
}  # fmt: skip
BUILDERS = {"sgd": optax.sgd, "rmsprop": optax.rmsprop, "adam": optax.adam, "ema": optax.ema}


def threshold(
    name: str,
    learning_rate: float | Array | optax.Schedule,
    *,
    step: Step | int | None = None,
    **settings: Any,
) -> float | Float[Array, ""]:
    """Return the eigenvalue of the (preconditioned) Hessian up to which the optimizer is stable.

        sgd                      2 / eta                             x_{n+1} = (1 - eta lambda) x_n
        sgd, momentum b          2 (1 + b) / eta                     heavy ball, v <- b v + g
        sgd, momentum, nesterov  2 (1 + b) / ((1 + 2 b) eta)         optax's form: g + b v
        rmsprop                  as sgd with its momentum
        ema, decay b             2 (1 + b) / ((1 - b) eta)           v <- b v + (1 - b) g
        adam                     as ema with b1

    `name` and settings are optax's own, as `dlf.optimizers.make_optimizer` takes them. For RMSProp and Adam
    the eigenvalue is that of P^(-1/2) H P^(-1/2), with the preconditioner P frozen (see `effective_hessian`).
    Beyond it the multiplier of the steepest direction is below -1: a flip. With a `step`, a learning rate
    that is an optax schedule is taken there, and the bias correction of Adam and of ema (`debias`)
    multiplies by 1 - b^(step + 1), its factor in the next update; without one it has died out. Where a rate
    is zero, as at the start of a warm-up, nothing is unstable: infinity.

    Raises ValueError for an optimizer or a setting without a formula, for a schedule without a step, and for
    a learning rate that is not positive or a momentum outside of [0, 1) where they are known as numbers;
    TypeError for a setting that the optimizer does not have.

    Source: Cohen et al. 2021 (arXiv 2103.00065); Cohen et al. 2022 (arXiv 2207.14484).

    >>> threshold("sgd", 0.5), threshold("sgd", 0.5, momentum=0.5), round(threshold("adam", 0.01), 6)
    (4.0, 6.0, 3800.0)
    """
    given, decay = bound_settings(name, learning_rate, **settings)
    step = None if step is None else jnp.asarray(step)
    if callable(learning_rate):
        if step is None:
            raise ValueError("a learning rate that is a schedule needs the step at which it is meant")
        learning_rate = learning_rate(step)
        learning_rate = learning_rate if isinstance(learning_rate, Real) else jnp.asarray(learning_rate)
    if isinstance(learning_rate, Real) and learning_rate == 0:  # a schedule's: no division, and no warning
        return float("inf")
    if name in ("sgd", "rmsprop"):
        return 2 * (1 + decay) / ((1 + 2 * decay * bool(given["nesterov"])) * learning_rate)
    settled = 2 * (1 + decay) / ((1 - decay) * learning_rate)
    if step is None or not given.get("debias", True):
        return settled
    return settled * (1 - decay ** (step + 1).astype(jnp.result_type(float)))


def bound_settings(name: str, learning_rate: Any, **settings: Any) -> tuple[dict[str, Any], float | Array]:
    """Return all settings of the optimizer, defaults included, and its momentum, if they have a formula."""
    if name not in BUILDERS:
        raise ValueError(f"no formula for {name!r}, only for {', '.join(BUILDERS)}: {_MULTIPLIER}")
    signature = inspect.signature(BUILDERS[name])
    positional = () if name == "ema" else (learning_rate,)
    try:
        bound = signature.bind(*positional, **settings)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    bound.apply_defaults()
    known = _KNOWN - {"nesterov"} if name == "adam" else _KNOWN
    averaging = {"sgd": "momentum", "rmsprop": "momentum", "ema": "decay", "adam": "b1"}[name]
    if isinstance(learning_rate, Real) and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    decay = bound.arguments[averaging] or 0.0
    if not isinstance(decay, jax.Array) and not (isinstance(decay, Real) and 0 <= decay < 1):
        raise ValueError(f"{name}: {averaging} must be a number from 0 to below 1, got {decay!r}")
    for key, value in bound.arguments.items():
        if key not in known and value != signature.parameters[key].default:
            raise ValueError(f"no formula for {name} with {key}={value}: {_MULTIPLIER}")
    return bound.arguments, decay
