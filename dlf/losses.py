"""Dynamical loss functions: F(params, batch, step) with the step as an argument.

`__all__` is the catalogue that a config names a loss from. Each entry maps (logits [examples, classes],
labels [examples], weights [classes]) to unreduced losses [examples] and is linear in the weights; weights
of one give the ordinary loss. Linearity carries over to every derivative: the Hessian is
sum_i Gamma_i(t) H_i.

Other shapes and types are refused with ValueError while tracing. So are labels outside 0..C-1 where they are
known; where they are not, they make all losses of their batch NaN. With bfloat16 or float16 logits, losses
and accuracy are in the default float.

A loss of one's own takes (logits, labels, weights), too, but labels and outputs of any kind, weights in any
number (groups of examples), settings by keyword, and may have an attribute `are_right` (see `rightness_of`).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dlf.labels import are, checked, kind, largest, terms, wide
from dlf.schedules import as_step, check_schedule
from dlf.types import ApplyFn, Batch, Labels, Logits, Losses, LossFn, WeightedLoss, Weights, WeightSchedule

__all__ = ["cross_entropy", "dmse1", "dmse2"]


@jax.custom_jvp
def _at_labels(values, one_hot):
    return jnp.where(one_hot == 0, 0, values)


# The derivative is the values' own, also where these are not taken: there it is finite, and multiplied by
# zero. So gradients and Hessians do not see the mask, which would change how they round.
_at_labels.defjvp(lambda primals, tangents: (_at_labels(*primals), tangents[0]))


def cross_entropy(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh each example's cross-entropy by its class.

        l_j = -Gamma_{y_j} log softmax(f(x_j))_{y_j}        in nats, raw logits f

    A logit of -inf makes its class impossible: the loss is that over the other classes.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), the dynamical cross-entropy.

    >>> logits = jnp.zeros((2, 3))
    >>> labels = jnp.asarray([0, 1])
    >>> [round(float(l), 4) for l in cross_entropy(logits, labels, jnp.asarray([2.0, 0.5, 0.5]))]
    [2.1972, 0.5493]
    """
    logits, one_hot, weights = terms(logits, labels, weights)
    # A product with one-hot rows, not a gather: its gradient is a product too, not a scatter.
    # Classes lead, so that on CPU the sums over the few classes run along the examples.
    weighted = one_hot.T * weights[:, None]
    return -jnp.sum(weighted * _at_labels(jax.nn.log_softmax(logits.T, axis=0), one_hot.T), axis=0)


def dmse1(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh each example's squared error by its class.

        l_j = Gamma_{y_j} sum_i (f_i(x_j) - delta_{i, y_j})^2

    Source: name and properties from Ruiz-Garcia et al. 2024 (arXiv 2410.10690); the formula is ours.

    >>> dmse1(jnp.zeros((1, 2)), jnp.asarray([1]), jnp.asarray([0.5, 1.5])).tolist()
    [1.5]
    """
    logits, one_hot, weights = terms(logits, labels, weights)
    return jnp.sum(one_hot * weights[None, :], axis=1) * jnp.sum((logits - one_hot) ** 2, axis=1)


def dmse2(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh the squared error of each output unit.

        l_j = sum_i Gamma_i (f_i(x_j) - delta_{i, y_j})^2

    Source: name and properties from Ruiz-Garcia et al. 2024 (arXiv 2410.10690); the formula is ours.

    >>> dmse2(jnp.ones((1, 2)), jnp.asarray([1]), jnp.asarray([0.5, 1.5])).tolist()
    [0.5]
    """
    logits, one_hot, weights = terms(logits, labels, weights)
    return jnp.sum(weights[None, :] * (logits - one_hot) ** 2, axis=1)


def _mean(losses, logits):
    """Return the mean of losses [examples]."""
    if not jnp.ndim(logits) or not are("real floating", losses, logits.shape[:1]):
        raise ValueError(
            f"a loss must return one real number for each example, got {kind(losses)} for outputs "
            f"{kind(logits)}: sum over outputs, not over examples, of which the mean is taken here"
        )
    if not losses.size:
        raise ValueError("the batch is empty: a mean needs an example")
    return jnp.mean(wide(losses))


def make_loss(apply_fn: ApplyFn, weighted_loss: WeightedLoss, schedule: WeightSchedule) -> LossFn:
    """Return the dynamical loss F(params, batch, step), a scalar.

        F(theta, t) = (1/P) sum_j l(f(x_j; theta), y_j, Gamma(t))        mean over P examples

    The step is an argument, so that gradient and Hessian at frozen time are one compiled function.

    Raises ValueError for a schedule or a loss that is none (`check_schedule`, `check_linear`); when it is
    called or traced, for an empty batch, a step that is no whole number, or a loss that does not return
    [examples].

    >>> from dlf.schedules import triangular
    >>> F = make_loss(lambda w, x: x @ w, cross_entropy, triangular(2, amplitude=3.0, period=4))
    >>> batch = Batch(jnp.ones((1, 1)), jnp.asarray([0]))
    >>> [round(float(F(jnp.zeros((1, 2)), batch, t)), 4) for t in (0, 2, 6)]
    [0.6931, 1.0397, 0.3466]
    """
    check_linear(weighted_loss, check_schedule(schedule))
    return Partial(_Loss(weighted_loss, schedule), _as_partial(apply_fn))


def _as_partial(fn):
    return fn if isinstance(fn, Partial) else Partial(fn)


class _Loss(NamedTuple):
    """F as a function that is equal for equal losses and schedules: what takes it is compiled once."""

    weighted_loss: WeightedLoss
    schedule: WeightSchedule

    def __call__(self, apply_fn, params, batch: Batch, step):
        logits = wide(apply_fn(params, batch.inputs))
        weights = self.schedule(as_step(step)).astype(logits.dtype)
        return _mean(self.weighted_loss(logits, batch.labels, weights), logits)


def make_class_losses(apply_fn: ApplyFn, weighted_loss: WeightedLoss, num_classes: int | None = None):
    """Return (params, batch) -> class losses [classes], so that F = Gamma(step) . l.

        l_c = dF/dGamma_c        with the factor 1/P of F, so the sum over c is the static loss

    `num_classes` is the number of weights. The catalogue's losses have one for each logit; of a loss of your
    own it must be said. Raises ValueError as F does, and without that number.

    >>> l = make_class_losses(lambda w, x: x @ w, cross_entropy)
    >>> batch = Batch(jnp.ones((4, 1)), jnp.asarray([0, 0, 0, 1]))
    >>> [round(float(c), 4) for c in l(jnp.zeros((1, 2)), batch)]
    [0.5199, 0.1733]
    """
    if num_classes is None and not _is_ours(weighted_loss):
        raise ValueError("num_classes must be the number of weights: a loss of your own does not tell it")

    check_linear(weighted_loss, num_classes or 0)
    return Partial(_ClassLosses(weighted_loss, num_classes), _as_partial(apply_fn))


class _ClassLosses(NamedTuple):
    """The class losses as a function, as in `_Loss`."""

    weighted_loss: WeightedLoss
    num_classes: int | None

    def __call__(self, apply_fn, params, batch: Batch):
        logits = wide(apply_fn(params, batch.inputs))
        units = jnp.eye(self.num_classes or logits.shape[-1], dtype=logits.dtype)
        return jax.vmap(lambda e: _mean(self.weighted_loss(logits, batch.labels, e), logits))(units)


def are_right(logits: Logits, labels: Labels) -> Losses:
    """Return 1 where the largest logit is that of the label, else 0; NaN if that cannot be told.

    It cannot with a NaN or +inf among the logits, none that is finite, or a label that is no class.

    >>> are_right(jnp.asarray([[1.0, 0.0], [1.0, 0.0], [jnp.nan, 0.0]]), jnp.asarray([0, 1, 0])).tolist()
    [1.0, 0.0, nan]
    """
    logits, labels, is_class = checked(logits, labels)
    right = (jnp.argmax(logits, axis=1) == labels).astype(logits.dtype)
    return jnp.where(is_class & jnp.isfinite(largest(logits, axis=1)), right, jnp.nan)


def accuracy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Return the fraction of examples that are right, NaN if one of them cannot be told (see `are_right`).

    >>> float(accuracy(jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), jnp.asarray([0, 1])))
    0.5
    """
    return _mean(are_right(logits, labels), logits)


def _is_ours(weighted_loss):
    while isinstance(weighted_loss, partial):
        weighted_loss = weighted_loss.func
    return weighted_loss in [globals()[name] for name in __all__]


def rightness_of(weighted_loss: WeightedLoss) -> Callable[[Logits, Labels], Losses] | None:
    """Return what tells the right examples under a loss, (logits, labels) -> [examples], or None.

    `are_right` for the catalogue's losses, else the loss's own attribute of that name: regression has none.
    Settings that `functools.partial` has bound change nothing. Raises ValueError, when it is called, for an
    attribute that does not return [examples].

    >>> def distance(outputs, labels, weights):
    ...     return weights[0] * jnp.abs(outputs - labels)
    >>> rightness_of(cross_entropy) is are_right, rightness_of(distance)
    (True, None)
    >>> distance.are_right = lambda outputs, labels: (jnp.abs(outputs - labels) < 0.1).astype(outputs.dtype)
    >>> rightness_of(partial(distance))(jnp.zeros(2), jnp.asarray([0.0, 1.0])).tolist()
    [1.0, 0.0]
    """
    while isinstance(weighted_loss, partial) and not hasattr(weighted_loss, "are_right"):
        weighted_loss = weighted_loss.func
    if _is_ours(weighted_loss):
        return are_right
    own = getattr(weighted_loss, "are_right", None)
    return own and partial(_rightness, own)


def _rightness(own, outputs, labels):
    """Return what an own `are_right` says as floats: truth values are no counts."""
    right = own(outputs, labels)
    if getattr(right, "shape", None) != outputs.shape[:1] or jnp.iscomplexobj(right):
        raise ValueError(f"are_right must return a truth value for each example, got {kind(right)}")
    return right.astype(wide(outputs).dtype)


@lru_cache(maxsize=64)
def check_linear(weighted_loss: WeightedLoss, num_classes: int) -> None:
    """Raise ValueError for a loss of classification that is not linear in so many weights.

    Tried where a loss is built, once for each, on made-up logits and labels; what takes no such is not tried.
    """
    if _is_ours(weighted_loss) or num_classes < 2:
        return
    with jax.ensure_compile_time_eval():
        logits = jnp.linspace(-1.0, 1.0, 2 * num_classes**2).reshape(-1, num_classes)
        labels = jnp.arange(2 * num_classes) % num_classes
        try:
            check_loss(weighted_loss, logits, labels, num_classes)
        except ValueError as error:
            if "not linear" in str(error):
                raise
        except Exception:  # whatever a loss of another kind raises for labels that are not its own
            return


def check_loss(weighted_loss: WeightedLoss, logits: Array, labels: Array | None, num_classes: int) -> None:
    """Try a loss on a few examples: is it a mean over examples and linear in so many weights?

    Raises ValueError if it is not, up to a thousand roundings. Nothing may be traced.

    >>> def squared(logits, labels, weights):
    ...     return cross_entropy(logits, labels, weights**2)
    >>> check_loss(squared, jnp.zeros((2, 2)), jnp.asarray([0, 1]), num_classes=2)
    Traceback (most recent call last):
    ValueError: the loss is not linear in its weights: multiply with them, as in weights[labels] * losses
    """
    logits = wide(logits)
    up = 1 + jnp.arange(num_classes, dtype=logits.dtype)

    def losses(weights, num):
        found = weighted_loss(logits[:num], None if labels is None else labels[:num], weights)
        _mean(found, logits[:num])
        return np.asarray(found)

    one, other, both = (losses(weights, len(logits)) for weights in (up, up[::-1], up + up[::-1]))
    rounding = 1e3 * float(jnp.finfo(both.dtype).eps)
    size = np.abs(both).max(where=np.isfinite(both), initial=0)
    near = partial(np.allclose, rtol=rounding, atol=rounding * size, equal_nan=True)
    scaled = (losses(scale * up, len(logits)) / scale for scale in (1e-3, 1e3))  # a floor, a ceiling
    if not near(one + other, both) or not all(near(found, one) for found in scaled):
        raise ValueError(
            "the loss is not linear in its weights: multiply with them, as in weights[labels] * losses"
        )
    if not near(losses(up, 1), one[:1]):
        raise ValueError("the loss of an example depends on others of its batch: give each a loss of its own")
