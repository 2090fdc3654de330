"""Optimizers by their optax names, and the preconditioners that their states hold."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from dlf import rates, rules
from dlf.recording import is_missing, missing
from dlf.thresholds import threshold
from dlf.types import Optimizer, Params

# Of transformations of the gradient: what turns it around otherwise, and weights of the past, which sum up.
_POSITIVE = {
    "max_norm", "max_delta", "clipping_threshold", "k", "clipping", "threshold", "step_size", "weight_decay",
}  # fmt: skip
_BELOW_ONE = {"decay", "momentum", "b1", "b2"}
_ABSOLUTE = {"fromage", "rprop"}  # whose updates have a size of their own, or bounds
# The states of optax that count updates for their learning rate.
_INJECTED = optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState
_COUNTING = optax.ScaleByScheduleState | _INJECTED


def make_optimizer(
    name: str | Callable[..., optax.GradientTransformation],
    learning_rate: float | Array | Mapping[str, Any] | optax.Schedule,
    *,
    before: Sequence[Mapping[str, Any]] = (),
    rule: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Optimizer:
    """Build an optimizer by its optax name and keyword arguments.

    The learning rate is a number, which may be traced, an optax schedule (its step comes as a floating
    number), or the name of one with its arguments: dict(name="cosine_decay_schedule", init_value=0.1,
    decay_steps=1000). Beside optax's optimizers
    there is "ema", plain momentum as an exponential mean: `optax.ema` followed by the learning rate; or
    `name` is a function of one's own that takes `learning_rate` and returns a transformation. `before` are
    transformations of optax for the gradient, by name and arguments, in their order: clipping, weight decay.
    A `rule` of `dlf.rules`, by name and arguments, holds the learning rate down; an empty one is none.

    Raises ValueError for a name that optax does not have, a learning rate that is not positive or that the
    working precision cannot hold, TypeError for a setting that the function does not take.

    >>> make_optimizer("adam", learning_rate=0.1, b1=0.5).init({"w": jnp.zeros(2)})[0].count.item()
    0
    >>> cosine = dict(name="cosine_decay_schedule", init_value=0.1, decay_steps=100)
    >>> sgd = make_optimizer("sgd", cosine, before=(dict(name="clip_by_global_norm", max_norm=1.0),))
    >>> round(float(sgd.rate(jnp.asarray(50))), 4)
    0.05
    """
    chain = {"before": before} if before else {}
    given = dict(name=name, learning_rate=learning_rate, **chain, **settings)
    rate = rates.rate(learning_rate)
    if callable(learning_rate) or isinstance(learning_rate, Mapping):
        learning_rate = given["learning_rate"] = rate
    if rule is None or (isinstance(rule, Mapping) and not rule):
        return Optimizer(*_transform(name, learning_rate, before, settings), rate, given)
    chosen = rules.make_rule(rule, threshold_of(given))
    unit = _transform(name, 1.0, before, settings)

    def init(params: Params) -> rules.Ruled:
        _check_proportional(name, params, unit, _transform(name, 0.5, before, settings))
        return rules.Ruled(unit.init(params), chosen.init(), missing((), jnp.result_type(float)))

    return Optimizer(init, unit.update, rate, given, chosen)


def _check_proportional(name, params, unit, half):
    """Raise ValueError unless at half the learning rate the second update is half as large."""
    if name in _ABSOLUTE:
        raise ValueError(f"a rule needs updates in proportion to the learning rate: not those of {name}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        return
    second = []
    for of in (unit, half):
        state = of.init(params)
        _, state = of.update(params, state, params)
        second.append(of.update(params, state, params)[0])
    for whole, part in zip(*map(jax.tree.leaves, second), strict=True):
        if not jnp.allclose(part, whole / 2, rtol=1e-3, atol=0, equal_nan=True):
            raise ValueError(f"a rule needs updates in proportion to the learning rate: not those of {name}")


def _transform(name, learning_rate, before, settings):
    """Return the transformation of optax at a learning rate."""
    if callable(name):
        found = name(learning_rate=learning_rate, **settings)
        if not (hasattr(found, "init") and hasattr(found, "update")):
            raise ValueError(f"an optimizer must be a transformation of optax, got {type(found).__name__}")
    elif name == "ema":
        found = optax.chain(optax.ema(**settings), optax.scale_by_learning_rate(learning_rate))
    else:
        names = [*rates.named(_is_optimizer), "ema"]
        if name not in names:
            raise ValueError(f"unknown optimizer {name!r}: one of {', '.join(names)}")
        found = getattr(optax, name)(learning_rate=learning_rate, **settings)
    if isinstance(before, Mapping):
        raise ValueError("before must be a tuple of dict(name=..., ...), one for each transformation")
    if before:
        found = optax.chain(
            *map(_transformation, before), optax.GradientTransformation(found.init, found.update)
        )
    return optax.GradientTransformation(found.init, found.update)  # of MultiSteps, say, which is no tuple


def as_optimizer(optimizer: Mapping[str, Any] | Optimizer | optax.GradientTransformation) -> Optimizer:
    """Return an optimizer from what `make_optimizer` takes, or from any transformation of optax.

    Of the latter nothing is known but what it does: no learning rate, no formula.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, Mapping):
        return make_optimizer(**optimizer)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer must be dict(name=..., learning_rate=...) or one of optax, got {kind}")
    return Optimizer(optimizer.init, optimizer.update, None, {"name": "a transformation of optax"})


def rate_of(optimizer: Optimizer, opt_state: PyTree, step: Array) -> Array:
    """Return the learning rate that an optimizer of known rate applies next, at its own count of updates.

    The count is the step, but where a wrapper leaves updates out (optax's MultiSteps, sam, and those with a
    condition). NaN where parts of the optimizer count otherwise than each other. Of a rule it is the rate
    applied last, before the first step that of the schedule.

    >>> halving = make_optimizer("sgd", lambda count: 0.5**count)
    >>> float(rate_of(halving, optax.ScaleByScheduleState(jnp.asarray(2)), jnp.asarray(7)))
    0.25
    """
    if isinstance(opt_state, rules.Ruled):
        return jnp.where(is_missing(opt_state.rate), optimizer.rate(step), opt_state.rate)
    counts = jnp.asarray([*_counts(opt_state)] or [step])
    rate = optimizer.rate(counts[0])
    return jnp.where(jnp.all(counts == counts[0]), rate, jnp.asarray(jnp.nan, rate.dtype))


def threshold_of(settings: Mapping[str, Any]) -> Callable[[Array | float, Array], Array] | None:
    """Return (learning rate, step) -> threshold of an optimizer's settings, None without a formula."""
    given = {key: value for key, value in settings.items() if key != "learning_rate"}
    try:
        threshold(learning_rate=1.0, **given)
    except (TypeError, ValueError):
        return None
    return lambda rate, step: jnp.asarray(threshold(learning_rate=rate, step=step, **given))


def _counts(opt_state: PyTree) -> Iterator[Array]:
    for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, _COUNTING)):
        if isinstance(node, _COUNTING):
            yield node.count
        if isinstance(node, _INJECTED):
            yield from _counts(node.inner_state)


def _transformation(section: Mapping[str, Any]) -> optax.GradientTransformation:
    if not isinstance(section, Mapping):
        raise ValueError(f"before must be a tuple of dict(name=..., ...), got {section!r} in it")
    given = dict(section)
    name = given.pop("name", None)
    for key in _POSITIVE & given.keys():
        if not given[key] > 0:
            raise ValueError(f"before: {key} of {name} must be positive, got {given[key]}")
    for key in _BELOW_ONE & given.keys():
        if not 0 <= given[key] < 1:
            raise ValueError(f"before: {key} of {name} must be at least 0 and below 1, got {given[key]}")
    builder = name if callable(name) else getattr(optax, str(name), None)
    if inspect.isfunction(builder) and "learning_rate" in inspect.signature(builder).parameters:
        raise ValueError(f"before: {name!r} takes a learning rate, of which there is one: leave it out")
    found = builder(**given) if inspect.isfunction(builder) else None
    if not isinstance(found, optax.GradientTransformation):
        raise ValueError(f"before: {section.get('name')!r} is no transformation of optax")
    return found


def _is_optimizer(name: str, builder: Any) -> bool:
    # without building blocks, and lbfgs, whose update asks for the loss as a function
    takes_rate = next(iter(inspect.signature(builder).parameters), "") == "learning_rate"
    return takes_rate and not name.startswith(("_", "scale_by_", "lbfgs"))


def adam_preconditioner(
    opt_state: PyTree, *, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> Params:
    """Return the P of optax's Adam from its state, with the optimizer's own settings.

        P = sqrt(nu / (1 - b2^count) + eps_root) + eps        after `count` >= 1 updates

    The state may lie in those of wrappers: injected hyper-parameters are read there, parameters that Adam
    does not train have P = inf. Before the first update P is NaN where the count is traced. Adamax, RAdam
    and Yogi keep states of the same type, which nothing in them tells apart: this P is not theirs.

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

    def find(tree, settings):
        for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind | _INJECTED)):
            if isinstance(node, _INJECTED):
                own = {key: value for key, value in node.hyperparams.items() if key in settings}
                yield from find(node.inner_state, settings | own)
            elif isinstance(node, kind):
                yield node, settings

    found = [*find(opt_state, settings)]
    if len(found) != 1:
        raise ValueError(f"the optimizer's state must hold that of one {name}, found {len(found)}")
    for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.PartitionState)):
        for group, of in getattr(node, "inner_states", {}).items():
            if not (isinstance(of.inner_state, optax.EmptyState) or [*find(of, settings)]):
                raise ValueError(f"the parameters {group!r} are moved otherwise: there is no one {name}")
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
