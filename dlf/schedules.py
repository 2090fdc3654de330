"""Class-weight schedules: builder(num_classes, ...) -> (step -> weights [classes]).

`__all__` is the catalogue that a config names a schedule from. Weights are positive and sum to
`num_classes` at every step, so that weights of one are the ordinary loss.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dlf.labels import is_wide
from dlf.types import Step, WeightSchedule

__all__ = ["constant", "triangular"]


def as_step(step: ArrayLike) -> Step:
    """Return a step as the array that training counts in, from a number of Python's or NumPy's, too.

    Raises ValueError for what is no whole number, or known to be negative or above an int32.

    >>> as_step(7).dtype.name
    'int32'
    """
    known = not isinstance(step, Array)  # a jax.Array may be traced
    is_count = jnp.ndim(step) == 0 and jnp.issubdtype(jnp.result_type(step), jnp.integer)
    if not is_count or (known and not 0 <= step < 2**31):
        raise ValueError(f"step must be a whole number from 0 to 2^31 - 1, not an array, got {step!r}")
    return jnp.asarray(step, jnp.int32) if known or step.dtype.itemsize < 4 else step


def steps_per_turn(period: int | Array, hold_step: bool = False) -> int | Array:
    """Return for how many steps one class is emphasised.

    >>> steps_per_turn(5000), steps_per_turn(5000, hold_step=True)
    (5000, 5001)
    """
    return period + int(hold_step)


def steps_per_cycle(num_classes: int, period: int | Array, hold_step: bool = False) -> int | Array:
    """Return for how many steps every class has its turn once.

    >>> steps_per_cycle(3, 5000)
    15000
    """
    return num_classes * steps_per_turn(period, hold_step)


def constant(num_classes: int, weights: Sequence[float] = ()) -> WeightSchedule:
    """Weigh all classes alike at all times, Gamma_i = 1, the static loss; or by `weights` for each class.

    >>> constant(3)(jnp.asarray(7)).tolist()
    [1.0, 1.0, 1.0]
    """
    return lambda step: jnp.asarray(weights, float) if weights else jnp.ones(num_classes)


def triangular(
    num_classes: int,
    amplitude: float | Array,
    period: int | Array,
    hold_step: bool = False,
    ahead: int = 0,
) -> WeightSchedule:
    """Emphasise the classes in turn, each with a triangle 1 -> amplitude -> 1 over its period.

        g(tau) = 1 + 2 (A - 1) tau / T             tau < T/2
               = 1 + 2 (A - 1) (1 - tau / T)       tau >= T/2
        Gamma_i = C w_i / sum_k w_k,    w_c = g(tau) for the class c in turn, w_i = 1 otherwise

    `amplitude` A >= 1 has no unit; `period` T >= 2 is the number of steps that ONE class is
    emphasised, a cycle takes C T steps; the classes follow in order 0, 1, ..., C - 1. `hold_step`
    makes each class last T + 1 steps, as in the authors' code, which resets tau only once it
    exceeds T. All comes `ahead` steps earlier. Amplitude and period may be traced arrays. The phase
    is taken in the working float: in float32 an integer division alone is off by 0.09 in the loss
    within 1,500 steps of a cascade.

    Raises ValueError for A < 1 or infinite, T < 2 or no whole number (checked where it is known), or a
    negative shift.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), section 3; their notebook for the T + 1 steps.

    >>> gamma = triangular(3, amplitude=70.0, period=5000)
    >>> [round(float(w), 4) for w in gamma(jnp.asarray(2500))]
    [2.9167, 0.0417, 0.0417]
    >>> gamma(jnp.asarray(5000)).tolist()
    [1.0, 1.0, 1.0]
    """
    if not isinstance(amplitude, Tracer) and not 1 <= float(amplitude) < float("inf"):
        raise ValueError(f"amplitude must be at least 1 (the static loss) and finite, got {amplitude}")
    if not isinstance(period, Tracer):
        steps, most = float(period), 2**31 - int(hold_step)  # a turn is counted in an int32
        if not (2 <= steps < most and steps.is_integer()):
            raise ValueError(f"period must be at least 2 steps, a whole number below 2^31 - 1, got {period}")

    if type(ahead) is not int or not 0 <= ahead < 2**30:
        raise ValueError(f"ahead must be a whole number of steps from 0 on, got {ahead}")

    def weights(step: ArrayLike):
        step = as_step(step) + ahead
        ones = jnp.ones(num_classes)
        peak = jnp.asarray(amplitude, ones.dtype)
        steps_in_turn = steps_per_turn(jnp.asarray(period, step.dtype), hold_step)
        in_turn = step // steps_in_turn % num_classes
        # times the reciprocal, as the compiler has it for a constant: a traced period gives the same bits
        phase = (step % steps_in_turn).astype(ones.dtype) * (1 / jnp.asarray(period, ones.dtype))
        emphasis = 1 + 2 * (peak - 1) * jnp.minimum(phase, 1 - phase)
        w = jnp.where(jnp.arange(num_classes, dtype=step.dtype) == in_turn, emphasis, ones)
        return num_classes * w / jnp.sum(w)

    return weights


def stop_after(schedule: WeightSchedule, num_steps: int | Array) -> WeightSchedule:
    """Follow `schedule` for `num_steps` steps, then weigh all classes alike.

    Source: "last period without oscillation" in the authors' notebook.

    >>> gamma = stop_after(triangular(2, amplitude=3.0, period=4), num_steps=2)
    >>> [gamma(jnp.asarray(step)).tolist() for step in (0, 1, 2)]
    [[1.0, 1.0], [1.3333333730697632, 0.6666666865348816], [1.0, 1.0]]
    """

    def weights(step: ArrayLike):
        step = as_step(step)
        moving = schedule(step)
        return jnp.where(step < num_steps, moving, jnp.ones_like(moving))

    return weights


def check_schedule(schedule: WeightSchedule, num_classes: int | None = None, num_steps: int = 1_000) -> int:
    """Return the number of weights; raise ValueError if they are not positive, or do not sum to their number.

    Which is `num_classes` where that is given. At no more than a thousand of the first `num_steps` steps; of
    a schedule that holds something traced only shape and type are known.

    >>> check_schedule(lambda step: jnp.asarray([3.0, -1.0]), 2)
    Traceback (most recent call last):
    ValueError: schedule: weights must be positive and sum to their number, 2, got [3.0, -1.0] at step 0
    """
    if not callable(schedule):
        raise ValueError(f"schedule: must be a function step -> weights, got {type(schedule).__name__}")
    traced, row = jax.make_jaxpr(schedule, return_shape=True)(jnp.zeros((), jnp.int32))
    shape, dtype = getattr(row, "shape", None), getattr(row, "dtype", None)
    is_row = shape is not None and len(shape) == 1 and shape[0] == (num_classes or shape[0])
    if not is_row or not is_wide(dtype):
        raise ValueError(
            f"schedule: weights must be a real floating array [{num_classes or 'classes'}] of 32 or 64 bits, "
            f"one for each class, got {type(row).__name__ if shape is None else f'{dtype}{list(shape)}'}"
        )
    if any(isinstance(of, Tracer) for of in traced.consts):
        return shape[0]
    with jax.ensure_compile_time_eval():  # also amid the trace of something else
        steps = jnp.asarray(np.unique(np.linspace(0, num_steps - 1, 1_000).astype(int)), jnp.int32)
        weights = np.asarray(jax.vmap(schedule)(steps))
    sound = (weights > 0).all(1) & (np.abs(weights.sum(1) / shape[0] - 1) < 1e-4)  # NaN is neither
    if not sound.all():
        first = sound.argmin()
        raise ValueError(
            f"schedule: weights must be positive and sum to their number, {shape[0]}, got "
            f"{weights[first].tolist()} at step {steps[first]}"
        )
    return shape[0]
