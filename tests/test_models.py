"""Networks against jax.example_libraries.stax, whose layers the authors' draw descends from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax

from dlf import models
from dlf.data import spiral

ARGUMENTS = {"mlp": dict(hidden_widths=(16, 8), activation="relu", initialization="original", use_bias=True)}


def authors_draw(key, shapes):
    """The recipe of the authors' first notebook, layer by layer."""
    layers = []
    with jax.threefry_partitionable(False):
        for depth, (fan_in, fan_out) in enumerate(shapes):
            if depth:
                key, _ = jax.random.split(key)
            key, layer = jax.random.split(key)
            key_w, _ = jax.random.split(layer)
            layers.append(jax.random.normal(key_w, (fan_in, fan_out)) / np.sqrt(fan_in))
    return layers


def test_the_original_draw_is_the_authors_to_the_bit(float64):
    model = models.mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    first, second = authors_draw(jax.random.PRNGKey(0), [(2, 100), (100, 3)])
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], first)
    np.testing.assert_array_equal(params["Dense_1"]["kernel"], second)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], np.zeros(100))
    np.testing.assert_array_equal(params["Dense_1"]["bias"], np.zeros(3))


def test_the_updated_draw_is_that_of_stax_to_the_bit(float64):
    with jax.threefry_partitionable(False):
        init, _ = stax.serial(stax.Dense(100), stax.Relu, stax.Dense(3))
        _, (first, _, second) = init(jax.random.PRNGKey(0), (-1, 2))
    model = models.mlp(3, (100,), activation="relu", initialization="updated", use_bias=True)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    for layer, (kernel, bias) in (("Dense_0", first), ("Dense_1", second)):
        np.testing.assert_array_equal(params[layer]["kernel"], kernel)
        np.testing.assert_array_equal(params[layer]["bias"], bias)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_the_logits_are_a_chain_of_matrix_products(x64, activation):
    functions = {
        "relu": lambda h: np.maximum(h, 0),
        "tanh": np.tanh,
        "softplus": lambda h: np.logaddexp(h, 0),
    }
    model = models.mlp(3, (7, 5), activation=activation, initialization="updated", use_bias=True)
    inputs = spiral().train.inputs
    params = model.init(jax.random.key(3), inputs)
    hidden = np.asarray(inputs)
    for depth in range(3):
        if depth:
            hidden = functions[activation](hidden)
        layer = params[f"Dense_{depth}"]
        hidden = hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    logits = model.apply(params, inputs)
    np.testing.assert_allclose(logits, hidden, rtol=1e-12 if x64 else 1e-4, atol=1e-13 if x64 else 1e-6)


def test_without_biases_there_are_none(x64):
    model = models.mlp(3, (7,), activation="relu", initialization="original", use_bias=False)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    assert all(set(layer) == {"kernel"} for layer in params.values())
    np.testing.assert_array_equal(model.apply(params, jnp.zeros((4, 2))), np.zeros((4, 3)))


def test_whether_there_are_biases_must_be_said():
    with pytest.raises(TypeError, match="use_bias"):
        models.mlp(3, (7,), activation="relu", initialization="original")


@pytest.mark.parametrize(("setting", "value"), [("activation", "rellu"), ("initialization", "orginal")])
def test_an_unknown_name_is_refused(setting, value):
    settings = ARGUMENTS["mlp"] | {setting: value}
    with pytest.raises(ValueError, match=f"unknown {setting} '{value}'"):
        models.mlp(3, **settings)


@pytest.mark.parametrize("name", models.__all__)
def test_every_model_maps_inputs_to_logits_in_the_working_precision(x64, name):
    model = getattr(models, name)(3, **ARGUMENTS[name])
    inputs = spiral().train.inputs
    params = model.init(jax.random.key(0), inputs)
    logits = model.apply(params, inputs)
    assert logits.shape == (300, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, logits))} == {inputs.dtype}
    # examples do not interact: the NTK and every batched mean rest on it
    np.testing.assert_allclose(model.apply(params, inputs[:7]), logits[:7], rtol=1e-12 if x64 else 1e-4)
