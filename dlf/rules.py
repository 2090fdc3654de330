"""Learning rates that read the curvature: rules that hold down the rate of a schedule.

`__all__` is the catalogue that a config names a rule from (`optimizer.rule`). A rule sees every step before
its update (`dlf.types.Seen`); its rate is at most that of the schedule, and what is applied is recorded as
`learning_rate`. While nothing sound was measured the schedule's rate holds, later the last sound one.
"""

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dlf.derivatives import curvature_along
from dlf.recording import is_missing
from dlf.types import Params, Rule, Seen, Step

__all__ = ["cap", "cdat", "critical_rate", "feed_forward", "polyak"]

_PASSES = 8  # of the network, to find a critical rate


Threshold = Callable[[float, Step], Array] | None  # of the optimizer, None without a formula


def make_rule(section: Mapping[str, Any], threshold: Threshold) -> Rule:
    """Build a rule by its name in the catalogue, or a function of one's own, and its settings.

    `threshold` is (learning rate, step) -> that of the optimizer, None without a formula. Raises ValueError
    for an unknown name, a setting that cannot be, or a rule that needs a threshold where there is none.
    """
    if not isinstance(section, Mapping) or "name" not in section:
        raise ValueError(f"rule must be dict(name=..., ...), got {section!r}")
    given = dict(section)
    name = given.pop("name")
    if not callable(name) and name not in __all__:
        raise ValueError(f"unknown rule {name!r}: one of {', '.join(__all__)}")
    builder = name if callable(name) else globals()[name]
    if "threshold" in inspect.signature(builder).parameters:
        if "threshold" in given:
            raise ValueError("threshold follows from the optimizer: leave it out")
        given["threshold"] = threshold
    found = builder(**given)
    if not isinstance(found, Rule):
        raise ValueError(f"a rule must be a dlf.types.Rule, got {type(found).__name__}")
    return found


class Ruled(NamedTuple):
    """The state of an optimizer with a rule."""

    inner: PyTree
    memory: PyTree
    rate: Float[Array, ""]  # the last one that was applied, missing before the first


def ruled(rule: Rule, state: Ruled, seen: Seen, inner: PyTree) -> tuple[Params, Ruled]:
    """Return the updates at the rate that a rule takes, and the next state, `inner` the optimizer's in it.

    Where nothing is measured, as in a step apart from its loop, a rule that reads takes the last rate.
    """
    last = jnp.where(is_missing(state.rate), seen.learning_rate, state.rate)
    rate, memory = last, state.memory
    if rule.reads.keys() <= seen.measured.keys():
        found = rule.rate(state.memory, seen)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError("a rule must return a learning rate and its next memory")
        if found[0] is None:
            raise ValueError("a rule must return a learning rate, got None: NaN stands for the last one")
        rate, memory = jnp.asarray(found[0]), found[1]
        if _kinds(memory) != _kinds(state.memory):
            raise ValueError("a rule must return a memory of the shapes and dtypes that init returns")
        if rate.ndim or not jnp.isdtype(rate.dtype, "real floating"):
            raise ValueError(f"a rule must return one real number, got {rate.dtype}{list(rate.shape)}")
    rate = jnp.where(rate >= 0, rate.astype(last.dtype), last)
    rate = jnp.minimum(rate, seen.learning_rate.astype(last.dtype))
    updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, seen.direction)
    return updates, Ruled(inner, memory, rate)


def _kinds(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def cap(*, threshold: Threshold, every: int = 10, scale: float = 1.0) -> Rule:
    """Hold the learning rate at or below the edge of stability, or a share of it.

        eta = min(eta_sched, scale theta / lambda)

    lambda is the probe `step_sharpness`, measured at every `every`-th step or more often; what is not
    finite or not positive is passed over. theta is the threshold at a learning rate of one: 2 for gradient
    descent, 2 (1 + b) with momentum. A cap, not a target: a rate that stays below the edge lets lambda grow.
    At scale 1 it follows the edge, where lambda moves between two measurements and flips still grow a little.

    Raises ValueError for an optimizer without a threshold.

    Source: Gilmer et al. 2021 (arXiv 2110.04369); Roulet et al. 2024 (arXiv 2407.06183).

    >>> from dlf.optimizers import make_optimizer
    >>> from dlf.train import init_state, make_step
    >>> sgd = make_optimizer("sgd", learning_rate=1.0, rule=dict(name="cap"))
    >>> step_fn = make_step(lambda x, batch, step: 5 * x**2, lambda step: None, sgd)
    >>> _, series = step_fn(init_state(jnp.ones(()), sgd), {"step_sharpness": jnp.asarray(10.0)})
    >>> round(float(series["learning_rate"]), 4)
    0.2
    """
    if type(every) is not int or every < 1:
        raise ValueError(f"cap: every must be a whole number of steps from 1, got {every!r}")
    _check(scale=scale)
    if threshold is None:
        raise ValueError("cap needs the threshold of sgd, rmsprop, adam or ema, with nothing before them")

    def rate(largest: Array, seen: Seen):
        found = seen.measured["step_sharpness"]
        sound = (found > 0) & jnp.isfinite(found) & ~is_missing(found)
        largest = jnp.where(sound, found.astype(largest.dtype), largest)
        return jnp.where(largest > 0, scale * threshold(1.0, seen.step) / largest, jnp.inf), largest

    return Rule(lambda: jnp.zeros(()), rate, {"step_sharpness": every})


def cdat(*, scale: float = 2.0, decay: float = 0.9) -> Rule:
    """Take the learning rate that the curvature along the update allows.

        eta = scale n / d,    n = max(-g . u, 0),    d = |u . H u|

    u is the update at a learning rate of one; both are exponential means with weight `decay` of the past.
    At scale 1 the loss falls most along u, at 2 it stays: the edge. One Hessian product along u a step.

    Source: Roulet et al. 2024 (arXiv 2407.06183).

    >>> from dlf.optimizers import make_optimizer
    >>> from dlf.train import init_state, make_step
    >>> sgd = make_optimizer("sgd", learning_rate=1.0, rule=dict(name="cdat", decay=0.0))
    >>> step_fn = make_step(lambda x, batch, step: 5 * x**2, lambda step: None, sgd)
    >>> round(float(step_fn(init_state(jnp.ones(()), sgd))[1]["learning_rate"]), 4)
    0.2
    """
    _check(scale=scale)
    if not (isinstance(decay, Real) and 0 <= decay < 1):
        raise ValueError(f"cdat: decay must be a number of at least 0 and below 1, got {decay!r}")

    def rate(means: Array, seen: Seen):
        along = curvature_along(seen.loss_fn, seen.params, seen.direction)
        now = jnp.stack([jnp.maximum(-_dot(seen.grads, seen.direction), 0), jnp.abs(along)])
        moved = decay * means + (1 - decay) * now.astype(means.dtype)
        means = jnp.where(jnp.all(jnp.isfinite(moved)), moved, means)
        return scale * means[0] / jnp.maximum(means[1], jnp.finfo(means.dtype).tiny), means

    return Rule(lambda: jnp.zeros(2), rate, {})


def polyak(*, scale: float = 1.0) -> Rule:
    """Take Polyak's learning rate, for a loss whose minimum is zero.

        eta = F / (scale |g|^2)

    Source: Polyak 1987; of batches Loizou et al. 2021 (arXiv 2002.10542), scale 1/2.

    >>> from dlf.optimizers import make_optimizer
    >>> from dlf.train import init_state, make_step
    >>> sgd = make_optimizer("sgd", learning_rate=1.0, rule=dict(name="polyak"))
    >>> step_fn = make_step(lambda x, batch, step: 5 * x**2, lambda step: None, sgd)
    >>> round(float(step_fn(init_state(jnp.ones(()), sgd))[1]["learning_rate"]), 4)
    0.05
    """
    _check(scale=scale)

    def rate(memory: tuple, seen: Seen):
        squared = scale * _dot(seen.grads, seen.grads)
        return jnp.where(squared > 0, seen.loss / jnp.where(squared > 0, squared, 1), jnp.inf), memory

    return Rule(lambda: (), rate, {})


def critical_rate(*, scale: float = 1.0) -> Rule:
    """Hold the learning rate at or below a share of the smallest one at which the loss would rise.

        eta = scale eta_c,    eta_c = min {eta: F(theta + eta u) > F(theta)},    2 / eta_c: critical sharpness

    Eight passes through the network a step: doubled or halved from the last one until it is enclosed, then
    the geometric mean of both ends. Of the loss along one line; with momentum u need not descend, and eta_c
    is then small.

    Source: Kalra and Barkeshli 2024 (arXiv 2406.09405); arXiv 2601.16979.

    >>> from dlf.optimizers import make_optimizer
    >>> from dlf.train import init_state, make_step
    >>> sgd = make_optimizer("sgd", learning_rate=1.0, rule=dict(name="critical_rate"))
    >>> step_fn = make_step(lambda x, batch, step: 5 * x**2, lambda step: None, sgd)
    >>> abs(float(step_fn(init_state(jnp.ones(()), sgd))[1]["learning_rate"]) - 0.2) < 0.005
    True
    """
    _check(scale=scale)

    def rate(last: Array, seen: Seen):
        guess = jnp.where(last > 0, last, seen.learning_rate)

        def narrowed(_, between):
            low, high = between
            inside = jnp.where(low > 0, jnp.sqrt(low * jnp.where(jnp.isinf(high), 1, high)), high / 2)
            trial = jnp.where(jnp.isinf(high), jnp.where(low > 0, 2 * low, guess), inside)
            below = seen.loss_fn(moved(seen.params, trial, seen.direction)) <= seen.loss  # not if it is NaN
            return jnp.where(below, trial, low), jnp.where(below, high, trial)

        begin = jnp.zeros_like(guess), jnp.full_like(guess, jnp.inf)
        low, high = jax.lax.fori_loop(0, _PASSES, narrowed, begin)
        found = jnp.where(jnp.isinf(high), low, high)
        return scale * found, found

    return Rule(lambda: jnp.zeros(()), rate, {})


def feed_forward(*, turn: int, shift: int = 0) -> Rule:
    """Foresee the sharpness of a whole turn from the movement of the loss, and lower the rate where it peaks.

        eta = eta_sched min(1, mean of lambda_F / lambda_F(t)),    lambda_F = lambda_max(sum_c Gamma_c(t) B_c)

    B_c is the Hessian of class c in the space of the top eigenvectors of all (the probe `forecast`), measured
    at the first of every `turn` steps, of which the mean is taken. `shift` moves the rates by so many steps
    within the turn: with half of it, the control that has the same rates at the wrong time.

    Source: ours; only a loss whose movement is known has it.

    >>> schedule = lambda step: jnp.where(step == 0, jnp.asarray([1.5, 0.5]), jnp.asarray([0.5, 1.5]))
    >>> measured = {"forecast_matrices": jnp.asarray([[[4.0]], [[1.0]]])}  # so that lambda_F is 6.5, then 3.5
    >>> rule = feed_forward(turn=2)
    >>> seen = Seen(jnp.asarray(0), jnp.asarray(0.13), *5 * [None], schedule, measured)
    >>> round(float(rule.rate(rule.init(), seen)[0]), 4)
    0.1
    """
    if type(turn) is not int or turn < 1 or type(shift) is not int or shift < 0:
        raise ValueError(f"turn must be a whole number of steps from 1, shift from 0, got {turn} and {shift}")

    def rate(foreseen: Array, seen: Seen):
        if seen.schedule is None:
            raise ValueError("feed_forward needs the class weights of a Problem: this loss has none")
        matrices = seen.measured["forecast_matrices"]
        sound = jnp.all(jnp.isfinite(matrices) & ~is_missing(matrices))

        def renewed():
            weights = jax.vmap(seen.schedule)(seen.step + jnp.arange(turn, dtype=seen.step.dtype))
            given = jnp.where(sound, matrices, 0).astype(foreseen.dtype)
            sums = jnp.einsum("tc,cab->tab", weights, given, precision="highest")
            found = jnp.linalg.eigvalsh(sums)[:, -1]
            return jnp.where(sound & jnp.all(found > 0), found, foreseen)

        foreseen = jax.lax.cond(seen.step % turn == 0, renewed, lambda: foreseen)
        ratio = jnp.mean(foreseen) / foreseen[(seen.step + shift) % turn]
        return seen.learning_rate * jnp.minimum(ratio, 1), foreseen

    return Rule(lambda: jnp.ones(turn), rate, {"forecast_matrices": turn})


def moved(params: Params, rate: Array, direction: Params) -> Params:
    """Return params + rate direction, in the dtypes of the parameters."""
    return jax.tree.map(lambda p, u: p + rate.astype(p.dtype) * u, params, direction)


def _dot(a: Params, b: Params) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


def _check(scale: float) -> None:
    if not (isinstance(scale, Real) and type(scale) is not bool and 1e-30 < scale < 1e30):
        raise ValueError(f"scale must be a positive number below 1e30, got {scale!r}")
