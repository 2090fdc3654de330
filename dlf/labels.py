"""What logits, labels and weights of a classification must be: checked while tracing, free at run time."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def is_wide(dtype) -> bool:
    """Return whether a dtype is real floating of at least 32 bits."""
    return jnp.isdtype(dtype, "real floating") and jnp.finfo(dtype).bits >= 32


def wide(values: Array) -> Array:
    """Return real values in at least 32 bits: losses of half precision are computed in the default float."""
    is_half = jnp.isdtype(values.dtype, "real floating") and not is_wide(values.dtype)
    return values.astype(float) if is_half else values


def largest(values: Array, axis: int | None = None) -> Array:
    """Return the maximum, NaN where there is one: XLA's own on CPU loses it in large arrays.

    >>> largest(jnp.asarray([[1.0, jnp.nan], [1.0, 2.0]]), axis=1).tolist()
    [nan, 2.0]
    """
    return jnp.where(jnp.any(jnp.isnan(values), axis=axis), jnp.nan, jnp.max(values, axis=axis))


def kind(value):
    """Return dtype and shape in words."""
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def check_batch(batch, name="the data set"):
    """Raise ValueError for a batch of no arrays or no examples, or with another number of labels, if any."""
    for what, values in batch._asdict().items():
        if not getattr(values, "shape", ()) and not (what == "labels" and values is None):
            raise ValueError(f"{name}: {what} must be an array with an axis of examples, got {kind(values)}")
    if not len(batch.inputs):
        raise ValueError(f"{name} is empty: all that is computed is a mean over its examples")
    if batch.labels is not None and len(batch.labels) != len(batch.inputs):
        numbers = f"{len(batch.inputs)} and {len(batch.labels)}"
        raise ValueError(f"{name}: need a label for each input, got {numbers}")


def are(kind, values, shape):
    """Return whether values are an array of this kind of dtype and this shape."""
    return getattr(values, "shape", None) == shape and jnp.isdtype(values.dtype, kind)


def checked(logits, labels):
    """Return logits to compute with, labels, and which of them are classes."""
    num_examples, num_classes = logits.shape if jnp.ndim(logits) == 2 else (0, 0)
    if num_classes < 2 or not are("real floating", logits, logits.shape):
        raise ValueError(
            f"logits must be real [examples, classes] with two classes or more, got {kind(logits)}: "
            "make one logit f two, (0, f), or give a loss of your own"
        )
    if not are("integral", labels, (num_examples,)):
        raise ValueError(
            f"labels must be integers [{num_examples}], one for each example, got {kind(labels)}: take "
            "labels.argmax(1) of one-hot rows, labels[:, 0] of a column"
        )
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        wrong = values[(values < 0) | (values >= num_classes)]
        if wrong.size:
            raise ValueError(
                f"labels must be from 0 to {num_classes - 1} for {num_classes} logits, got {wrong[0]}: "
                "number the classes from 0, and leave out examples without a label"
            )
    labels = jnp.asarray(labels).astype(int)  # a short type cannot count many classes
    return wide(logits), labels, (labels >= 0) & (labels < num_classes)


def terms(logits, labels, weights):
    """Return logits to compute with, one-hot labels, and weights: NaN if a label is no class."""
    logits, labels, is_class = checked(logits, labels)
    if not are("real floating", weights, logits.shape[1:]):
        raise ValueError(
            f"weights must be real [{logits.shape[1]}], one for each logit, got {kind(weights)}: build the "
            f"schedule for {logits.shape[1]} classes, or give a loss of your own"
        )
    # NaN by the few weights: among the one-hot rows it would change the rounding of the Hessian of sound data
    weights = jnp.where(jnp.all(is_class), weights.astype(logits.dtype), jnp.nan)
    labels = jnp.where(is_class, labels, 0)  # a row of zeros would have a loss of zero, whatever the weights
    return logits, jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype), weights
