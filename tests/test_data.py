"""The spiral against an independent reading of the paper's recipe, digits against their source."""

import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

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


FROM_FILES = {"cifar10", "fashion_mnist"}  # see test_images.py


@pytest.mark.parametrize("name", sorted({*data.__all__} - FROM_FILES))
def test_every_data_set_has_the_working_precision_and_all_classes(x64, name):
    train, test, num_classes = getattr(data, name)()
    tests = test.values() if isinstance(test, dict) else [test]
    for batch in (train, *tests):
        assert batch.inputs.dtype == (np.float64 if x64 else np.float32)
        assert len(batch.inputs) == len(batch.labels)
        found = set(np.asarray(batch.labels if batch.labels.ndim == 1 else batch.labels[:, 0]))
        assert found == set(range(num_classes)) or (batch.labels.ndim > 1 and batch is not train)


def test_both_sets_together_are_all_digits_shuffled_and_scaled(float64):
    train, test, _ = data.digits()
    assert train.inputs.mean() == pytest.approx(0, abs=1e-13)
    assert train.inputs.std() == pytest.approx(1)
    images, labels = load_digits(return_X_y=True)
    inputs = np.concatenate([train.inputs, test.inputs]).reshape(-1, 64)
    grey = np.rint((inputs - inputs.min()) * 16 / np.ptp(inputs))  # 0 and 16 both occur
    ours = np.column_stack([grey, np.concatenate([train.labels, test.labels])])
    theirs = np.column_stack([images, labels])
    assert not np.array_equal(ours, theirs)
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in (ours, theirs)))


def test_fewer_training_digits_are_the_first_and_leave_the_test_set():
    many, few = data.digits(), data.digits(num_train=100)
    np.testing.assert_array_equal(few.train.labels, many.train.labels[:100])
    np.testing.assert_array_equal(few.test.labels, many.test.labels)
    assert float(few.train.inputs.std()) == pytest.approx(1)
    assert not np.array_equal(data.digits(seed=1).test.labels, many.test.labels)


@pytest.mark.parametrize("sizes", [dict(num_train=0), dict(num_test=0), dict(num_train=1500)], ids=str)
def test_impossible_numbers_of_digits_are_refused(sizes):
    with pytest.raises(ValueError, match="at most 1797"):
        data.digits(**sizes)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        data.digits()


def test_a_full_batch_ignores_the_step(x64):
    train = data.spiral().train
    batch_fn = data.full_batch(train)
    assert batch_fn(jax.numpy.asarray(0)) is batch_fn(jax.numpy.asarray(9))
