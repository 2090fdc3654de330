"""Data sets that are drawn."""

import random
from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from dlf import memory
from dlf.data.subsets import subsets
from dlf.types import Batch, Dataset

__all__ = ["mnist1d", "spiral"]


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

    Raises ValueError for fewer than two classes, no examples, impossible turns or noise, or
    more than fits into memory.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' notebook; the test set is ours.

    >>> train, test, num_classes = spiral()
    >>> train.inputs.shape, num_classes, [round(float(v), 4) for v in train.inputs[50]]
    ((300, 2), 3, [0.5017, -0.0583])
    """
    if num_classes < 2 or examples_per_class < 1:
        raise ValueError(f"need two classes with an example each, got {num_classes=}, {examples_per_class=}")
    if not (np.isfinite(num_turns) and np.isfinite(noise) and noise >= 0):
        raise ValueError(f"need finite turns and noise of at least 0, got {num_turns=}, {noise=}")
    memory.require(f"{num_classes=} times {examples_per_class=}", 48.0 * num_classes * examples_per_class)
    rng = np.random.RandomState(seed)
    radius = np.linspace(0.0, 1.0, examples_per_class)[:, None]
    start = 2 * np.pi * np.arange(num_classes) / num_classes
    angles = np.linspace(start, start + 2 * np.pi * num_turns, examples_per_class)
    labels = jnp.asarray(np.repeat(np.arange(num_classes), examples_per_class))

    def draw() -> Batch:
        angle = angles + noise * rng.randn(num_classes, examples_per_class).T
        arms = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        return Batch(jnp.asarray(arms.swapaxes(0, 1).reshape(-1, 2)), labels)

    return Dataset(train=draw(), test=draw(), num_classes=num_classes)


def mnist1d(num_train: int = 4_000, num_validation: int = 0, num_test: int = 1_000, seed: int = 0) -> Dataset:
    """Return MNIST-1D: signals of 40 points, ten digits drawn as curves, moved, sheared and noisy.

    Inputs are [examples, 40, 1], of which all 5,000 together have mean 0 and standard deviation 1, labels the
    digits. The published draw, with its 4,000 to train on; subsets as those of `cifar10`.

    Raises ValueError for an impossible subset, or if the package is missing.

    Source: Greydanus and Kobak 2020 (arXiv 2011.14439), whose package draws it.

    >>> train, tests, num_classes = mnist1d(num_train=1_000, num_validation=1_000)
    >>> train.inputs.shape, {name: len(of.inputs) for name, of in tests.items()}, num_classes
    ((1000, 40, 1), {'validation': 1000, 'test': 1000}, 10)
    """
    drawn = _mnist1d()
    images = {"train": drawn["x"][..., None], "test": drawn["x_test"][..., None]}
    labels = {"train": drawn["y"], "test": drawn["y_test"]}
    return subsets(images, labels, dict(train=num_train, validation=num_validation, test=num_test), seed)


@lru_cache(maxsize=1)
def _mnist1d() -> dict[str, np.ndarray]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ValueError("MNIST-1D comes with its package: pip install mnist1d (extra `data`)") from error
    before = random.getstate(), np.random.get_state()
    try:
        return make_dataset(get_dataset_args())  # by the global generators, which it seeds
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
