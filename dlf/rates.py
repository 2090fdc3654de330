"""Learning rates: numbers, and schedules of the step by their optax names."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from dlf.types import Optimizer

_LOOKED = (0, *(10**k for k in range(7)))  # steps at which a schedule of optax is tried
_CALLS = ("jit", "pjit")  # of compiled parts, by the version of JAX


def check_rate(optimizer: Optimizer, num_steps: int) -> None:
    """Raise ValueError for a learning rate that is negative or not finite at some step, or zero at all.

    At most 1,000 steps are looked at, spread evenly over the run.
    """
    if optimizer.rate is None:
        return
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, 1_000)).astype(int))
    # one after another, as in the loop: of many steps at once XLA rounds a division otherwise
    rates = np.asarray(jax.jit(partial(lax.map, optimizer.rate))(jnp.asarray(steps, jnp.int32)))
    if rates.ndim != 1:
        raise ValueError(f"the learning rate must be one number a step, got the shape {rates.shape[1:]}")
    wrong = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
    if len(wrong):
        raise ValueError(
            f"the learning rate is {rates[wrong[0]]:g} at step {steps[wrong[0]]}: at least 0 is taken"
        )
    if num_steps > 1 and not rates.any():
        raise ValueError("the learning rate is 0 at every step")


def rate(learning_rate: Any) -> Callable[[Array], Array]:
    """Return step -> learning rate in the working precision; errors as in `dlf.optimizers.make_optimizer`."""
    if isinstance(learning_rate, Mapping):
        learning_rate = _schedule(learning_rate)
    if callable(learning_rate):
        # of a step in the working float: an integer one is divided in float32
        exact = _dividing(lambda step: _real(learning_rate(step)))
        return lambda step: exact(jnp.asarray(step).astype(jnp.result_type(float)))
    if not isinstance(learning_rate, jax.core.Tracer):
        if not isinstance(learning_rate, Real | np.ndarray | jax.Array) or type(learning_rate) is bool:
            raise ValueError(f"learning_rate must be a number or a schedule, got {learning_rate!r}")
        if jnp.ndim(learning_rate) or not jnp.isrealobj(learning_rate):
            raise ValueError(f"learning_rate must be a number or a schedule, got {learning_rate!r}")
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
        info = jnp.finfo(jnp.result_type(float))
        if not float(info.tiny) <= learning_rate <= float(info.max):
            raise ValueError(f"learning_rate={learning_rate} does not fit {info.dtype}")
    return lambda step: jnp.asarray(learning_rate, jnp.result_type(float))


def _dividing(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a function that divides by its constants, also compiled.

    XLA multiplies with the reciprocal of a constant, so that T / T is not one, and the rate at the end of a
    schedule negative or, by a power, NaN.
    """

    def run(jaxpr, consts, *args):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            given = [*map(read, eqn.invars)]
            if eqn.primitive is lax.div_p:
                given[1] = lax.optimization_barrier(given[1])
            if isinstance(inner := eqn.params.get("jaxpr"), ClosedJaxpr) and eqn.primitive.name in _CALLS:
                found = run(inner.jaxpr, inner.consts, *given)
            else:
                found = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
            found = found if eqn.primitive.multiple_results else [found]
            values |= zip(eqn.outvars, found, strict=True)
        return [*map(read, jaxpr.outvars)]

    def divided(step):
        closed = jax.make_jaxpr(fn)(step)
        (found,) = run(closed.jaxpr, closed.consts, step)
        return found

    return divided


def _real(rate: Any) -> Array:
    """Return a rate as an array in the working precision; raise ValueError for what is no number."""
    try:
        rate = jnp.asarray(rate)
    except TypeError as error:
        raise ValueError(f"the learning rate must be a number, got {type(rate).__name__}") from error
    if not jnp.isdtype(rate.dtype, ("real floating", "integral")):
        raise ValueError(f"the learning rate must be a real number, got {rate.dtype}")
    return rate.astype(jnp.result_type(float))


def _schedule(section: Mapping[str, Any], length: int | None = None) -> optax.Schedule:
    """Build a schedule of optax by name; keys that are numbers, of boundaries, may be words.

    A part of another one, which may be zero throughout, is looked at for its `length`.
    """
    given, names = dict(section), named(_is_schedule)
    name = given.pop("name", None)
    if callable(name):
        if not callable(found := name(**given)):
            must = "a schedule of the learning rate must be a function step -> rate"
            raise ValueError(f"{must}, got {type(found).__name__}")
        return found
    if name not in names:
        raise ValueError(f"unknown schedule of the learning rate {name!r}: one of {', '.join(names)}")
    for key, value in given.items():
        if isinstance(value, Mapping):
            given[key] = {int(at): scale for at, scale in value.items()}
        elif isinstance(value, list | tuple):
            if not value and key != "boundaries":
                raise ValueError(f"{name}: {key} must not be empty")
            lengths = np.diff([0, *given.get("boundaries", ())], append=_LOOKED[-1] + 1)
            given[key] = [
                _schedule(of, max(1, int(n))) if isinstance(of, Mapping) and "name" in of else of
                for of, n in itertools.zip_longest(value, lengths[: len(value)], fillvalue=_LOOKED[-1])
            ]
    for key in {"transition_steps", "decay_rate"} & given.keys():  # without which optax has a constant rate
        if not given[key] > 0:
            raise ValueError(f"{name}: {key} must be positive, got {given[key]}")
    parts, boundaries = given.get("schedules"), given.get("boundaries")
    if parts is not None and boundaries is not None and len(boundaries) != len(parts) - 1:
        raise ValueError(
            f"{name}: {len(parts)} schedules need a boundary between each two, got {len(boundaries)}"
        )
    if boundaries is not None and list(boundaries) != sorted({*boundaries}):
        raise ValueError(f"{name}: boundaries must be in rising order, got {', '.join(map(str, boundaries))}")
    for of in parts or ():
        if not callable(of):
            raise ValueError(f"{name}: schedules must be functions or dict(name=..., ...), got {of!r}")
    found = getattr(optax, name)(**given)
    if not any(isinstance(of, jax.core.Tracer) for of in jax.tree.leaves(given)):
        looked = _LOOKED if length is None else [step for step in (*_LOOKED, length - 1) if step < length]
        with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):  # what does not fit is told
            rates = np.asarray([_real(found(jnp.asarray(step, float))) for step in looked])
        whole = length is None and boundaries is None  # else zero where it is looked at says nothing
        if (rates < 0).any() or (whole and not rates.any()):
            low = f"{rates[rates < 0][0]:g}" if (rates < 0).any() else "0 at every step"
            raise ValueError(
                f"{name}: the learning rate must be at least 0, and not always that: it is {low}"
            )
    return found


def named(is_one: Callable[[str, Any], bool]) -> list[str]:
    """Return the names of those functions of optax."""
    return [
        name for name in dir(optax) if inspect.isfunction(of := getattr(optax, name)) and is_one(name, of)
    ]


def _is_schedule(name: str, builder: Any) -> bool:
    return name.endswith(("_schedule", "_schedules")) or name == "exponential_decay"
