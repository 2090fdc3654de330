"""Data sets of images."""

import jax.numpy as jnp
import numpy as np

from dlf.types import Batch, Dataset

__all__ = ["digits"]


def digits(num_train: int = 1497, num_test: int = 300, seed: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, images of 8x8 grey levels, in ten classes.

    Inputs are [examples, 8, 8, 1], shifted and scaled by two numbers, so that all pixels of the
    training set together have mean 0 and standard deviation 1. The images are shuffled by `seed`;
    the first `num_test` make the test set, whatever `num_train`, the next `num_train` the training
    set: a smaller one is the beginning of a larger one.

    Raises ValueError for an empty set, more than 1,797 examples, or if scikit-learn is missing.

    Source: Alpaydin and Kaynak 1998, the test part of the UCI set "Optical recognition of
    handwritten digits".

    >>> train, test, num_classes = digits(num_train=200)
    >>> train.inputs.shape, test.inputs.shape, num_classes
    ((200, 8, 8, 1), (300, 8, 8, 1), 10)
    """
    try:
        from sklearn.datasets import load_digits  # slow to import, and needed here only
    except ImportError as error:
        raise ValueError("digits come with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    if num_train < 1 or num_test < 1 or num_train + num_test > len(labels):
        raise ValueError(
            f"need an example of each set and at most {len(labels)}, got {num_train=}, {num_test=}"
        )
    order = np.random.RandomState(seed).permutation(len(labels))
    test, train = order[:num_test], order[num_test : num_test + num_train]
    images = ((images - images[train].mean()) / images[train].std()).reshape(-1, 8, 8, 1)

    def select(rows) -> Batch:
        return Batch(jnp.asarray(images[rows]), jnp.asarray(labels[rows]))

    return Dataset(train=select(train), test=select(test), num_classes=10)
