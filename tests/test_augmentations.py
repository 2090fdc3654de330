"""Augmentations against loops over the examples in NumPy, and in runs that are killed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf import data
from dlf.data import augmentations
from dlf.types import Batch, Dataset
from experiments.configs import tiny


def test_a_resumed_run_of_augmented_bytes_has_the_same_bits(monkeypatch, same_bits_after_kills):
    images = data.digits(num_train=40)
    of_bytes = jax.tree.map(lambda x: (40 * x + 60).astype(jnp.uint8) if x.ndim > 1 else x, images.train)
    monkeypatch.setattr(data, "made", lambda: Dataset(of_bytes, of_bytes, 10), raising=False)
    monkeypatch.setattr(data, "__all__", [*data.__all__, "made"])
    config = tiny.get_config()
    config.update(num_steps=12, steps_per_chunk=4, float64=False)
    with config.unlocked():
        config.dataset = dict(name="made")
        config.model = dict(name="myrtle", widths=(4, 4), activation="relu", normalization="weighted_batch")
        config.model.update(mean=(0.3,), std=(0.3,))
        config.batches = dict(name="minibatches", batch_size=16)
        config.batches.augment = ("flip", dict(name="pad_crop", pad=2), dict(name="cutout", side=3))
        config.probes = dict(evaluation=dict(every=4, batch_size=7, recomputed=True))
    with jax.enable_x64(False):
        same_bits_after_kills(config)


def in_numpy(name, key, images, **settings):
    """The augmentations as loops over the examples, with the same draws."""
    images, found = np.asarray(images), np.array(images)
    num = len(images)
    if name == "pad_crop":
        pad = settings["pad"]
        offsets = np.asarray(jax.random.randint(key, (num, 2), 0, 2 * pad + 1))
        for i, (top, left) in enumerate(offsets):
            for y in range(images.shape[1]):
                for x in range(images.shape[2]):
                    a, b = y + top - pad, x + left - pad
                    inside = 0 <= a < images.shape[1] and 0 <= b < images.shape[2]
                    found[i, y, x] = images[i, a, b] if inside else 0
    if name == "flip":
        coins = np.asarray(jax.random.bernoulli(key, 0.5, (num, 1, 1, 1))).ravel()
        for i in np.flatnonzero(coins):
            found[i] = images[i, :, ::-1]
    if name == "cutout":
        side, keys = settings["side"], jax.random.split(key)
        rows, columns = (
            np.asarray(jax.random.randint(of, (num, 1), 0, images.shape[axis]))[:, 0]
            for axis, of in zip((1, 2), keys, strict=True)
        )
        for i in range(num):
            top, left = rows[i] - side // 2, columns[i] - side // 2
            found[i, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 127
    if name == "shift":
        distances = np.asarray(jax.random.randint(key, (num,), -settings["most"], settings["most"] + 1))
        for i in range(num):
            found[i] = np.roll(images[i], distances[i], axis=0)
    return found


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("pad_crop", dict(pad=2), (20, 6, 5, 3)),
        ("flip", {}, (20, 4, 5, 1)),
        ("cutout", dict(side=3), (20, 6, 7, 2)),
        ("cutout", dict(side=4), (20, 6, 7, 2)),
        ("shift", dict(most=4), (20, 9, 2)),
    ],
)
def test_augmentations_are_loops_over_the_examples(name, settings, shape):
    images = jax.random.randint(jax.random.key(1), shape, 0, 256).astype(jnp.uint8)
    key = jax.random.key(2)
    found = jax.jit(lambda key, x: getattr(augmentations, name)(key, x, **settings))(key, images)
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, in_numpy(name, key, images, **settings))
    assert not np.array_equal(found, images)
    again = getattr(augmentations, name)(jax.random.key(3), images, **settings)
    assert not np.array_equal(found, again)


@pytest.mark.parametrize(
    ("steps", "shape", "words"),
    [
        ((dict(name="pad_crop", pad=4),), (2, 4, 4, 1), "pad must be from 1 to 3"),
        ((dict(name="cutout", side=5),), (2, 4, 4, 1), "side must be from 1 to 4"),
        ((dict(name="shift", most=4),), (2, 4, 1), "most must be from 1 to 3"),
        ((dict(name="flip"),), (2, 4, 1), "height, width"),
        ((dict(name="blur"),), (2, 4, 4, 1), "unknown augmentation"),
        (("flip", "crop"), (2, 4, 4, 1), "unknown augmentation 'crop'"),
        ("flip", (2, 4, 4, 1), "need a tuple of augmentations"),
    ],
)
def test_impossible_augmentations_are_refused(refused, steps, shape, words):
    batch = Batch(jnp.zeros(shape), jnp.zeros(shape[0], int))
    refused(lambda: data.minibatches(batch, 2, augment=steps, key=jax.random.key(0))(0), words)
