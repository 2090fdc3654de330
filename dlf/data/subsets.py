"""Subsets of a published data set, by size and seed."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from dlf.types import Batch, Dataset


def stratified(
    labels: Integer[np.ndarray, " examples"], sizes: Sequence[int], seed: int
) -> list[Integer[np.ndarray, " size"]]:
    """Return the examples of subsets that have none in common, in ascending order.

    In each a class has its share of the examples that are left, up to one. Of the last size, a smaller subset
    is part of a larger one.

    Raises ValueError for more examples than there are, or a subset without some class.

    >>> [part.tolist() for part in stratified(np.asarray([0, 0, 1, 1, 0, 0]), (3, 3), seed=0)]
    [[1, 2, 5], [0, 3, 4]]
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"there are {len(labels):,} examples, asked were {' + '.join(map(str, sizes))}")
    rest, found = np.random.RandomState(seed).permutation(len(labels)), []
    for size in sizes:
        of_rest = labels[rest]
        counts = np.bincount(of_rest, minlength=labels.max() + 1)
        shares = size * counts / max(len(rest), 1)
        taken = shares.astype(int)
        taken[np.argsort(taken - shares, kind="stable")[: size - taken.sum()]] += 1
        if not taken.all():
            raise ValueError(f"a subset of {size} examples has none of class {taken.argmin()}: take more")
        by_class = np.argsort(of_rest, kind="stable")
        place = np.empty_like(by_class)
        place[by_class] = np.arange(len(rest)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = place < taken[of_rest]
        found.append(np.sort(rest[chosen]))
        rest = rest[~chosen]
    return found


def subsets(
    images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], sizes: Mapping[str, int], seed: int
) -> Dataset:
    """Return a data set of the published sets "train" and "test": what is trained on, "validation", "test".

    "validation" is apart from the training set, and left out if its size is 0. Raises ValueError as
    `stratified` does, or for an impossible size.
    """
    least = {"train": 1, "validation": 0, "test": 1}
    for name, size in sizes.items():
        if type(size) is not int or size < least[name]:
            raise ValueError(f"num_{name} must be a whole number of at least {least[name]}, got {size!r}")
    held_out = {"validation": sizes["validation"]} if sizes["validation"] else {}
    *validation, train = stratified(labels["train"], (*held_out.values(), sizes["train"]), seed)
    (test,) = stratified(labels["test"], (sizes["test"],), seed)

    def batch(split: str, rows: np.ndarray) -> Batch:
        return Batch(jnp.asarray(images[split][rows]), jnp.asarray(labels[split][rows]))

    tests = {name: batch("train", rows) for name, rows in zip(held_out, validation, strict=True)}
    tests["test"] = batch("test", test)
    return Dataset(batch("train", train), tests, int(labels["train"].max()) + 1)
