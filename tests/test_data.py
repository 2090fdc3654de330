"""The spiral against an independent reading of the paper's recipe."""

import jax
import numpy as np
import pytest

from dlf import data


def test_the_training_set_is_the_authors_to_the_bit(float64):
    rng = np.random.RandomState(0)
    inputs = []
    for arm in range(3):
        r = np.linspace(0, 1, 100)
        t = np.linspace(2 * np.pi * arm / 3, 2 * np.pi * arm / 3 + 4 * np.pi, 100) + 0.2 * rng.randn(100)
        inputs += [(r[k] * np.cos(t[k]), r[k] * np.sin(t[k])) for k in range(100)]
    train = data.spiral().train
    np.testing.assert_array_equal(train.inputs, inputs)
    np.testing.assert_array_equal(train.labels, [0] * 100 + [1] * 100 + [2] * 100)


def test_the_test_set_is_a_new_draw_of_the_noise_on_the_same_arms(float64):
    train, test, _ = data.spiral()
    np.testing.assert_array_equal(train.labels, test.labels)
    radii = [np.hypot(*np.asarray(batch.inputs).T) for batch in (train, test)]
    np.testing.assert_allclose(radii[0], radii[1], atol=1e-15)
    angles = [np.arctan2(*np.asarray(batch.inputs).T[::-1]) for batch in (train, test)]
    difference = np.angle(np.exp(1j * (angles[0] - angles[1])))[radii[0] > 0]
    # two independent draws of 0.2: their difference has 0.2 sqrt(2), here from 297 samples
    assert difference.std() == pytest.approx(0.2 * 2**0.5, rel=0.15)


@pytest.mark.parametrize("name", data.__all__)
def test_every_data_set_has_the_working_precision_and_all_classes(x64, name):
    train, test, num_classes = getattr(data, name)()
    for batch in (train, test):
        assert batch.inputs.dtype == (np.float64 if x64 else np.float32)
        assert len(batch.inputs) == len(batch.labels)
        assert set(np.asarray(batch.labels)) == set(range(num_classes))


def test_a_full_batch_ignores_the_step(x64):
    train = data.spiral().train
    batch_fn = data.full_batch(train)
    assert batch_fn(jax.numpy.asarray(0)) is batch_fn(jax.numpy.asarray(9))
