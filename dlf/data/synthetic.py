"""Data sets that are drawn."""

import jax.numpy as jnp
import numpy as np

from dlf import memory
from dlf.types import Batch, Dataset

__all__ = ["spiral"]


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
