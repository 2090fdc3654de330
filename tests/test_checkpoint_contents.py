"""What a checkpoint gives back: every leaf as it was, or one line that names the leaf that is another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf import train
from dlf.store import StoreError, checkpoints
from dlf.types import TrainState


def state(w, **more):
    params = {"w": w, **more}
    return TrainState(jnp.asarray(0), params, (), optax.sgd(0.1).init(params))


@pytest.fixture
def saved(tmp_path, float64):
    """A checkpoint of two float64 numbers."""
    checkpoints.save(tmp_path / "checkpoints", 1, state(jnp.asarray([1 / 3, 16777217.0])))
    return tmp_path / "checkpoints"


def test_the_same_template_gives_the_same_bits(saved):
    found = checkpoints.load(saved, 1, state(jnp.zeros(2)))
    assert found.params["w"].tolist() == [1 / 3, 16777217.0] and found.params["w"].dtype == jnp.float64


@pytest.mark.parametrize(
    "like, words",
    [
        (lambda: state(jnp.zeros(2, jnp.float32)), "params/w is float64[2], expected float32[2]"),
        (lambda: state(jnp.zeros(2, jnp.bfloat16)), "params/w is float64[2], expected bfloat16[2]"),
        (lambda: state(jnp.zeros(2, jnp.int64)), "params/w is float64[2], expected int64[2]"),
        (lambda: state(jnp.zeros(3)), "params/w is float64[2], expected float64[3]"),
        (lambda: state(jnp.zeros(1)), "params/w is float64[2], expected float64[1]"),
        (lambda: state(jnp.zeros((1, 2))), "params/w is float64[2], expected float64[1, 2]"),
        (lambda: state(jnp.zeros(2), z=jnp.zeros(1)), "params/z is no such array, expected float64[1]"),
        (lambda: TrainState(jnp.asarray(0), {}, (), ()), "params/w is float64[2], expected none"),
        (lambda: (state(jnp.zeros(2)), {}), "params/w is float64[2], expected none"),
        (
            lambda: state(jax.random.key(0)),
            "params/w is float64[2], expected uint32[2]",
        ),
    ],
)
def test_a_template_of_another_shape_dtype_or_structure_is_refused_by_the_leaf(saved, like, words):
    with pytest.raises(StoreError) as error:
        checkpoints.load(saved, 1, like())
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys_come_back_as_they_were(tmp_path, impl):
    keys = {"new": jax.random.key(5, impl=impl), "many": jax.random.split(jax.random.key(1), 3)}
    keys |= {"old": jax.random.PRNGKey(7), "none": None}
    checkpoints.save(tmp_path / "checkpoints", 2, keys)
    like = {"new": jax.random.key(0, impl=impl), "many": jax.random.split(jax.random.key(0), 3)}
    like |= {"old": jax.random.PRNGKey(0), "none": None}
    found = checkpoints.load(tmp_path / "checkpoints", 2, like)
    assert found["new"].dtype == keys["new"].dtype and found["old"].tolist() == [0, 7]
    assert jax.random.normal(found["new"], 3).tolist() == jax.random.normal(keys["new"], 3).tolist()
    assert (jax.random.key_data(found["many"]) == jax.random.key_data(keys["many"])).all()


WRAPPED = {
    "noise": lambda: optax.noisy_sgd(0.1, key=jax.random.key(3)),
    "masked": lambda: optax.masked(optax.adam(0.1), {"a": True, "b": False}),
    "two optimizers": lambda: optax.multi_transform(
        {"adam": optax.adam(0.1), "still": optax.set_to_zero()}, {"a": "adam", "b": "still"}
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.2, 5)),
    "several steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_optimizer_goes_on_from_a_checkpoint_to_the_bit(tmp_path, name):
    optimizer = WRAPPED[name]()
    params = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([0.5])}
    step_fn = train.make_step(
        lambda p, batch, step: jnp.sum(p["a"] ** 4) + jnp.sum(p["b"] ** 2), lambda step: None, optimizer
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's own
        loop, first = train.make_loop(step_fn), train.init_state(params, optimizer)
        middle = loop(first, {}, 3)[0]
        checkpoints.save(tmp_path / "checkpoints", 3, middle)
        found = checkpoints.load(tmp_path / "checkpoints", 3, first)
        ends = [loop(start, {}, 4)[0] for start in (middle, found)]
    assert jax.tree.structure(found) == jax.tree.structure(middle)
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(
            *(
                jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in (one, other)
            )
        )
