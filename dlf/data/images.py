"""Data sets of images in grey, from packages of Python's and Debian's."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dlf.data import formats
from dlf.data.subsets import stratified, subsets
from dlf.types import Batch, Dataset

__all__ = ["digits", "fashion_mnist"]

FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)  # of its training set, from 0 to 1

_FASHION = {"train": "train", "test": "t10k"}  # and the words in the names of its files
_FASHION_PLACES = (
    "/usr/share/datasets/fashion-mnist", "/usr/local/share/datasets/fashion-mnist", "data/FashionMNIST/raw",
    "data/fashion-mnist",
)  # fmt: skip


def digits(num_train: int = 1497, num_test: int = 300, seed: int = 0, num_validation: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, images of 8x8 grey levels, in ten classes.

    Inputs are [examples, 8, 8, 1], shifted and scaled by two numbers, so that all pixels of the
    training set together have mean 0 and standard deviation 1. The images are shuffled by `seed`;
    the first `num_test` make the test set, whatever `num_train`, the next `num_train` the training
    set: a smaller one is the beginning of a larger one. With `num_validation` there are three sets,
    "validation" and "test" to test on, each with every class's share (see `dlf.data.subsets.stratified`).

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
    sizes = num_test, num_validation, num_train
    if min(num_train, num_test, num_validation + 1) < 1 or sum(sizes) > len(labels):
        raise ValueError(
            f"need an example of each set and at most {len(labels)}, got {num_train=}, {num_test=}"
            + (f", {num_validation=}" if num_validation else "")
        )
    if num_validation:
        test, validation, train = stratified(labels, sizes, seed)
    else:
        order = np.random.RandomState(seed).permutation(len(labels))
        test, train = order[:num_test], order[num_test : num_test + num_train]
    images = ((images - images[train].mean()) / images[train].std()).reshape(-1, 8, 8, 1)

    def select(rows) -> Batch:
        return Batch(jnp.asarray(images[rows]), jnp.asarray(labels[rows]))

    tests = {"validation": select(validation), "test": select(test)} if num_validation else select(test)
    return Dataset(train=select(train), test=tests, num_classes=10)


def fashion_mnist(
    path: str = "",
    num_train: int = 55_000,
    num_validation: int = 5_000,
    num_test: int = 10_000,
    pooled: int = 1,
    seed: int = 0,
) -> Dataset:
    """Return Fashion-MNIST, grey images of clothes of 28x28 pixels in ten classes, as bytes.

    The four files (idx, compressed or not) are looked for in `path`, in FashionMNIST/raw below it, where
    Debian's package dataset-fashion-mnist puts them, and in ./data. `pooled` squares of pixels become their
    mean: with 2, images are 14x14. Subsets as those of `cifar10`; networks take the bytes as they are, with
    `FASHION_MEAN` and `FASHION_STD` as settings.

    Raises ValueError where it is not found or damaged, or for an impossible subset.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
    """
    asked = [Path(path), Path(path) / "FashionMNIST" / "raw"] if path else []
    looked = [*asked, *map(Path, _FASHION_PLACES)]
    found = (files for place in looked if (files := _fashion_files(place)))
    if (files := next(found, None)) is None:
        where = ", ".join(map(str, looked))
        raise ValueError(
            f"Fashion-MNIST was not found: looked for train-images-idx3-ubyte(.gz) and the like in {where}: "
            "install Debian's dataset-fashion-mnist or set dataset.path"
        )
    if type(pooled) is not int or not 1 <= pooled <= 28 or 28 % pooled:
        raise ValueError(f"pooled must divide 28, got {pooled!r}")
    images, labels = {}, {}
    for split, (of_images, of_labels) in files.items():
        images[split], labels[split] = _idx(of_images), _idx(of_labels)
        num = len(labels[split])
        if images[split].shape != (num, 28, 28) or labels[split].ndim != 1 or labels[split].max() > 9:
            raise ValueError(f"{of_images}: not images of 28x28 pixels in ten classes, one for each label")
        squares = images[split].reshape(num, 28 // pooled, pooled, 28 // pooled, pooled, 1)
        images[split] = np.rint(squares.mean(axis=(2, 4))).astype(np.uint8)
        labels[split] = labels[split].astype(np.int64)
    return subsets(images, labels, dict(train=num_train, validation=num_validation, test=num_test), seed)


def _fashion_files(place: Path) -> dict[str, list[Path]]:
    """Return images and labels of both sets in a folder, nothing if one is missing."""
    found = {}
    for split, word in _FASHION.items():
        names = f"{word}-images-idx3-ubyte", f"{word}-labels-idx1-ubyte"
        choices = [[place / f"{name}{ending}" for ending in ("", ".gz")] for name in names]
        found[split] = [next((path for path in of if path.is_file()), None) for of in choices]
    return found if all(all(of) for of in found.values()) else {}


def _idx(path: Path) -> np.ndarray:
    try:
        return formats.idx(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
