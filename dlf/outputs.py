"""A loss of several outputs with targets of their own, and when an answer counts as right.

Labels are those of `dlf.data.arithmetic`: the number of a list, then a target for each output.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlf.types import Losses, Targets, Weights

Outputs = Float[Array, "examples outputs"]


def squared_error(outputs: Outputs, labels: Targets, weights: Weights, scale: float = 1.0) -> Losses:
    """Weigh the squared error of each example by its list.

        l_j = scale Gamma_{list j} sum_k (p_k(x_j) - y_jk)^2

    Raises ValueError unless there is a target for each output. A list without a weight has the loss NaN. What
    is right is `right_side`.

    >>> squared_error(jnp.ones((1, 2)), jnp.asarray([[1.0, 0.5, 0.0]]), jnp.asarray([0.0, 2.0])).tolist()
    [2.5]
    """
    found, lists = errors(outputs, labels), labels[:, 0].astype(int)
    of_list = jax.nn.one_hot(lists, len(weights), dtype=outputs.dtype) @ weights
    return scale * jnp.where((lists >= 0) & (lists < len(weights)), of_list, jnp.nan) * found


def errors(outputs: Outputs, labels: Targets) -> Losses:
    """Return the squared error of each example, summed over its outputs."""
    return jnp.sum(_differences(outputs, labels) ** 2, axis=1)


def within_tenth(outputs: Outputs, labels: Targets) -> Losses:
    """Return 1 where every output is within .1 of its target, else 0.

    >>> within_tenth(jnp.asarray([[0.82], [0.75]]), jnp.asarray([[0, 0.9], [0, 0.9]])).tolist()
    [1.0, 0.0]
    """
    return _all(jnp.abs(_differences(outputs, labels)) <= 0.1, outputs)


def right_side(outputs: Outputs, labels: Targets) -> Losses:
    """Return 1 where every output is on its target's side of .5, else 0; NaN where an output is NaN.

    >>> right_side(jnp.asarray([[0.6], [0.4]]), jnp.asarray([[0, 0.9], [0, 0.9]])).tolist()
    [1.0, 0.0]
    """
    _differences(outputs, labels)
    return _all((outputs - 0.5) * (labels[:, 1:] - 0.5) > 0, outputs)


def nearest(outputs: Outputs, answers: Float[Array, "answers outputs"]) -> Losses:
    """Return the number of the answer that is nearest to each example's outputs; NaN where one is NaN.

    >>> nearest(jnp.asarray([[0.6, 0.3]]), jnp.eye(2)).tolist()
    [0.0]
    """
    distances = jnp.sum((outputs[:, None] - answers[None]) ** 2, axis=2)
    return _known(jnp.argmin(distances, axis=1), outputs)


def _differences(outputs, labels):
    if labels.ndim != 2 or outputs.shape != (len(labels), labels.shape[1] - 1):
        targets = f"{labels.shape[1] - 1} targets" if labels.ndim == 2 else f"labels {list(labels.shape)}"
        raise ValueError(
            "labels must be [examples, 1 + outputs], a list's number, then a target for each output, got "
            f"{targets} for outputs {list(outputs.shape)}: num_outputs of the model is the number of targets"
        )
    return outputs - labels[:, 1:].astype(outputs.dtype)


def _all(right, outputs):
    return _known(jnp.all(right, axis=1), outputs)


def _known(found, outputs):
    return jnp.where(jnp.any(jnp.isnan(outputs), axis=1), jnp.nan, found.astype(outputs.dtype))


squared_error.are_right = right_side
