"""Data sets, and what a step sees of one.

`__all__` is the catalogue that a config names a data set from.
"""

import jax.numpy as jnp
import numpy as np

from dlf.types import Batch, BatchFn, Dataset

__all__ = ["digits", "spiral"]


def spiral(
    num_classes: int = 3,
    examples_per_class: int = 100,
    num_turns: float = 2.0,
    noise: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Draw interleaved spiral arms in the plane, one arm a class.

        x = (r cos a, r sin a),  r = linspace(0, 1),  a = linspace(0, 2 pi turns) + 2 pi j / C + noise

    `noise` is the standard deviation of the angle in radians. Inputs are [examples, 2], arm after
    arm, neither shuffled nor scaled. With the default arguments the training set is exactly the
    authors' (numpy's RandomState(0)); the test set is the next draw of the noise on the same arms.

    Raises ValueError for fewer than two classes, no examples, or impossible turns or noise.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' notebook; the test set is ours.

    >>> train, test, num_classes = spiral()
    >>> train.inputs.shape, num_classes, [round(float(v), 4) for v in train.inputs[50]]
    ((300, 2), 3, [0.5017, -0.0583])
    """
    if num_classes < 2 or examples_per_class < 1:
        raise ValueError(
            f"need two classes and an example of each, got {num_classes=}, {examples_per_class=}"
        )
    if not (np.isfinite(num_turns) and np.isfinite(noise) and noise >= 0):
        raise ValueError(f"need finite turns and noise of at least 0, got {num_turns=}, {noise=}")
    rng = np.random.RandomState(seed)
    radius = np.linspace(0.0, 1.0, examples_per_class)

    def draw() -> Batch:
        arms = []
        for arm in range(num_classes):
            start = 2 * np.pi * arm / num_classes
            angle = np.linspace(start, start + 2 * np.pi * num_turns, examples_per_class)
            angle = angle + noise * rng.randn(examples_per_class)
            arms.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))
        labels = np.repeat(np.arange(num_classes), examples_per_class)
        return Batch(jnp.asarray(np.concatenate(arms)), jnp.asarray(labels))

    return Dataset(train=draw(), test=draw(), num_classes=num_classes)


def digits(num_train: int = 1497, num_test: int = 300, seed: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, images of 8x8 grey levels, in ten classes.

    Inputs are [examples, 8, 8, 1], shifted and scaled by two numbers, so that all pixels of the
    training set together have mean 0 and standard deviation 1. The images are shuffled by `seed`;
    the first `num_test` make the test set, whatever `num_train`, the next `num_train` the training
    set: a smaller one is the beginning of a larger one.

    Raises ValueError for an empty set, more than 1,797 examples, or if scikit-learn is missing.

    Source: Alpaydin and Kaynak 1998, test part of the UCI set "Optical recognition of handwritten digits".

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


def full_batch(batch: Batch) -> BatchFn:
    """Return the whole batch at every step.

    >>> full_batch(spiral().train)(3).labels.shape
    (300,)
    """
    return lambda step: batch
