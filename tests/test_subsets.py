"""Subsets, and the data sets that are cut into them: Fashion-MNIST from made files, MNIST-1D."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf import data
from dlf.data import subsets


def fashion(folder, num=40, compress=True, **change):
    rng = np.random.RandomState(1)
    folder.mkdir(parents=True)
    found = {}
    for word in ("train", "t10k"):
        images = rng.randint(0, 256, (num, 28, 28)).astype(np.uint8)
        labels = (np.arange(num) % 10).astype(np.uint8)
        found[word] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape)
            content = change.get(f"{word}-{kind}", head + array.tobytes())
            path = folder / f"{word}-{kind}-ubyte"
            if compress:
                with gzip.open(f"{path}.gz", "wb") as file:
                    file.write(content)
            else:
                path.write_bytes(content)
    return found


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_back_equal(tmp_path, compress, below):
    found = fashion(tmp_path / "made" / below, compress=compress)
    train, tests, num_classes = data.fashion_mnist(str(tmp_path / "made"), 20, 20, 40)
    assert num_classes == 10 and {name: len(of.labels) for name, of in tests.items()} == {
        "validation": 20, "test": 40,
    }  # fmt: skip
    np.testing.assert_array_equal(tests["test"].inputs[..., 0], found["t10k"][0])
    together = np.concatenate([train.inputs, tests["validation"].inputs])[..., 0]
    assert {of.tobytes() for of in together} == {of.tobytes() for of in found["train"][0]}
    pooled = data.fashion_mnist(str(tmp_path / "made"), 20, 20, 40, pooled=2).train.inputs
    assert pooled.shape == (20, 14, 14, 1) and pooled.dtype == jnp.uint8
    corner = np.asarray(train.inputs[3, :2, :2, 0], float).mean()
    assert abs(float(pooled[3, 0, 0, 0]) - corner) <= 0.5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"train-images-idx3": b"\x00\x00\x08\x03" + struct.pack(">3I", 40, 28, 28) + b"1234"}, "announces"),
        ({"train-images-idx3": b"no images"}, "does not begin"),
        ({"t10k-labels-idx1": struct.pack(">2I", 0x0801, 40) + bytes([11] * 40)}, "ten classes"),
    ],
)
def test_damaged_fashion_mnist_is_named(refused, tmp_path, change, word):
    fashion(tmp_path / "made", **change)
    refused(lambda: data.fashion_mnist(str(tmp_path / "made"), 20, 10, 40), word)


def test_half_a_compressed_file_is_named(refused, tmp_path):
    fashion(tmp_path / "made")
    path = tmp_path / "made" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:2000])
    refused(lambda: data.fashion_mnist(str(tmp_path / "made"), 20, 10, 40), "cannot be read")


def test_subsets_are_apart_stratified_and_nested():
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(5), [100, 50, 20, 20, 10]))
    validation, train = subsets.stratified(labels, (40, 60), seed=3)
    _, less = subsets.stratified(labels, (40, 30), seed=3)
    assert not {*validation} & {*train} and {*less} < {*train}
    np.testing.assert_array_equal(np.bincount(labels[validation]), [20, 10, 4, 4, 2])
    np.testing.assert_array_equal(np.bincount(labels[train]), [30, 15, 6, 6, 3])
    (other,) = subsets.stratified(labels, (40,), seed=4)
    assert {*other} != {*validation}
    (everything,) = subsets.stratified(labels, (200,), seed=0)
    np.testing.assert_array_equal(everything, np.arange(200))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (dict(num_train=4_500), "4,000"),
        (dict(num_train=3_500, num_validation=501), "3500"),
        (dict(num_train=5), "none of class"),
        (dict(num_train=0), "num_train"),
        (dict(num_test=-1), "num_test"),
    ],
)
def test_impossible_subsets_are_refused(refused, sizes, words):
    refused(lambda: data.mnist1d(**sizes), words)


def test_mnist1d_is_the_published_draw_and_leaves_the_generators_alone():
    np.random.seed(5)
    before = np.random.rand()
    np.random.seed(5)
    train, tests, _ = data.mnist1d()
    assert np.random.rand() == before
    whole = np.concatenate([train.inputs, tests["test"].inputs])
    assert whole.shape == (5000, 40, 1)
    np.testing.assert_allclose([whole.mean(), whole.std()], [0, 1], atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), data.mnist1d().train, train))
