"""Losses that are no mean in few examples or by little, and batches of no arrays: refused when built."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import operators
from dlf.types import Batch

STEP = jnp.asarray(17, jnp.int32)


def each(w, batch):
    return optax.softmax_cross_entropy_with_integer_labels(batch.inputs @ w, batch.labels)


def of_rows(w, batch, step):
    """Return the mean over those examples that are not empty, as of padded data."""
    real = (jnp.abs(batch.inputs).sum(axis=1) > 0).astype(w.dtype)
    return jnp.sum(each(w, batch) * real) / jnp.sum(real)


def from_place(first):
    def loss(w, batch, step):
        late = (jnp.arange(len(batch.inputs)) >= first).astype(w.dtype)
        return jnp.mean(each(w, batch) * (1 + late))

    return loss


RARELY = {  # in few examples, at late places, weakly
    "padding at the end": of_rows,
    "places from the tenth on": from_place(9),
    "late places": from_place(70),
    "a weak square of the mean": lambda w, b, t: jnp.mean(each(w, b)) + 1e-3 * jnp.mean(b.inputs @ w) ** 2,
}


@pytest.mark.parametrize("name", RARELY)
def test_what_is_no_mean_in_few_examples_or_by_little_is_refused_too(x64, name):
    rng = np.random.RandomState(2)
    batch, w = (
        jax.tree.map(jnp.asarray, Batch(rng.randn(400, 2), rng.randint(0, 3, 400))),
        jnp.asarray(rng.randn(2, 3)),
    )
    if "padding" in name:
        batch = batch._replace(inputs=batch.inputs.at[-20:].set(0))
    with pytest.raises(ValueError, match="leave batch_size out"):
        operators.hessian(RARELY[name], w, batch, STEP, batch_size=100)
    operators.hessian(lambda w, b, t: jnp.mean(each(w, b)), w, batch, STEP, batch_size=100)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (Batch(None, None), "inputs must be an array with an axis of examples, got NoneType"),
        (Batch(np.ones((4, 2)), [0, 1, 2, 0]), "labels must be an array with an axis of examples, got list"),
        (Batch(np.ones((4, 2)), np.asarray(1)), "labels must be an array with an axis of examples"),
        (Batch(3.0, np.zeros(4, int)), "inputs must be an array"),
    ],
)
def test_what_is_no_batch_of_arrays_is_refused(float64, batch, words):
    with pytest.raises(ValueError, match=words):
        operators.hessian(lambda w, b, t: jnp.mean(each(w, b)), jnp.ones((2, 3)), batch, STEP)
