"""What a step sees of a data set."""

from dlf.types import Batch, BatchFn


def full_batch(batch: Batch) -> BatchFn:
    """Return the whole batch at every step.

    >>> from dlf.data import spiral
    >>> full_batch(spiral().train)(3).labels.shape
    (300,)
    """
    return lambda step: batch
