"""Networks against jax.example_libraries.stax, whose layers the authors' draw descends from."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ModifyScopeVariableError
from jax import lax
from jax.example_libraries import stax

from dlf import models
from dlf.data import binary_addition, digits, facts, spiral

ARGUMENTS = {
    "mlp": dict(hidden_widths=(16, 8), activation="relu", initialization="original", use_bias=True),
    "myrtle": dict(widths=(4, 8), activation="relu"),
    "wide_resnet": dict(depth=10, widen_factor=1),
    "logistic_mlp": dict(hidden_widths=(7,), num_outputs=3),
    "clauses": dict(),
}
OWN_INPUTS = {"logistic_mlp": facts, "clauses": partial(binary_addition, 4, (1,))}


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
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 2)))
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
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    for layer, (kernel, bias) in (("Dense_0", first), ("Dense_1", second)):
        np.testing.assert_array_equal(params[layer]["kernel"], kernel)
        np.testing.assert_array_equal(params[layer]["bias"], bias)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_the_logits_are_a_chain_of_matrix_products(float64, activation):
    functions = {
        "relu": lambda h: np.maximum(h, 0),
        "tanh": np.tanh,
        "softplus": lambda h: np.logaddexp(h, 0),
    }
    model = models.mlp(3, (7, 5), activation=activation, initialization="updated", use_bias=True)
    inputs = spiral().train.inputs
    params, model_state = jax.jit(model.init)(jax.random.key(3), inputs)
    assert model_state == ()
    hidden = np.asarray(inputs)
    for depth in range(3):
        if depth:
            hidden = functions[activation](hidden)
        layer = params[f"Dense_{depth}"]
        hidden = hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    logits = jax.jit(model.apply)(params, model_state, inputs)
    np.testing.assert_allclose(logits, hidden, rtol=1e-12, atol=1e-13)


def test_without_biases_there_are_none(float64):
    model = models.mlp(3, (7,), activation="relu", initialization="original", use_bias=False)
    params, _ = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2)))
    assert all(set(layer) == {"kernel"} for layer in params.values())
    np.testing.assert_array_equal(model.apply(params, (), jnp.zeros((4, 2))), np.zeros((4, 3)))


def test_images_are_flattened_for_the_mlp(float64):
    model = models.mlp(10, **ARGUMENTS["mlp"])
    images = digits(num_train=20).train.inputs
    rows = images.reshape(20, 64)
    init = jax.jit(model.init)
    params, _ = init(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, params, init(jax.random.key(0), rows)[0])
    np.testing.assert_array_equal(model.apply(params, (), images), model.apply(params, (), rows))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("mlp", "activation", "rellu"), ("mlp", "initialization", "orginal"), ("myrtle", "activation", "rellu")],
)
def test_an_unknown_name_is_refused(name, setting, value):
    with pytest.raises(ValueError, match=f"unknown {setting} '{value}'"):
        getattr(models, name)(3, **ARGUMENTS[name] | {setting: value})


def test_impossible_settings_and_inputs_are_refused():
    with pytest.raises(TypeError, match="use_bias"):  # whether there are biases must be said
        models.mlp(3, (7,), activation="relu", initialization="original")
    with pytest.raises(ValueError, match="must be positive integers, got \\(4, 0, 3\\)"):
        models.myrtle(3, (4, 0), activation="relu")
    with pytest.raises(ValueError, match="need images"):
        models.myrtle(3, (4, 8), activation="relu").init(jax.random.key(0), spiral().train.inputs)


@pytest.mark.parametrize("name", models.__all__)
def test_every_model_maps_inputs_to_logits_in_the_working_precision(x64, name):
    model = getattr(models, name)(3, **ARGUMENTS[name])
    inputs = OWN_INPUTS.get(name, partial(digits, num_train=30))().train.inputs[:17]
    params, model_state = jax.jit(model.init)(jax.random.key(0), inputs)
    apply = jax.jit(models.apply_fn(model, model_state))
    logits = apply(params, inputs)
    assert logits.shape == (17, 5 if name == "clauses" else 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, logits))} == {inputs.dtype}
    # examples do not interact: the NTK and every batched mean rest on it
    tolerance = dict(rtol=1e-12, atol=1e-13) if x64 else dict(rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(apply(params, inputs[:7]), logits[:7], **tolerance)


def test_four_convolutions_make_myrtle5_of_cifar_images(float64):
    pool = stax.AvgPool((2, 2), strides=(2, 2))
    convolutions = [stax.Conv(width, (3, 3), padding="SAME") for width in (4, 8, 8, 16)]
    first, second, third, fourth = ([convolution, stax.Relu] for convolution in convolutions)
    layers = [*first, *second, pool, *third, pool, *fourth, pool, pool, pool, stax.Flatten, stax.Dense(10)]
    init, apply = stax.serial(*layers)
    model = models.myrtle(10, (4, 8, 8, 16), activation="relu")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)))
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)

    ours = iter(params[name] for name in ("Conv_0", "Conv_1", "Conv_2", "Conv_3", "Dense_0"))
    theirs = []
    for leaves in jax.eval_shape(lambda key: init(key, images.shape)[1], jax.random.key(0)):
        layer = next(ours) if leaves else {}
        theirs.append((layer["kernel"], layer["bias"].reshape(leaves[1].shape)) if leaves else ())
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(apply)(theirs, images)
    np.testing.assert_allclose(jax.jit(model.apply)(params, (), images), expected, rtol=1e-11)


def convolved(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_pooling_leaves_an_odd_last_row_and_column_out(float64):
    rng = np.random.default_rng(0)
    model, images = models.myrtle(3, (2, 4), activation="tanh"), jnp.asarray(rng.normal(size=(3, 5, 7, 1)))
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    first, second, last = (params[name] for name in ("Conv_0", "Conv_1", "Dense_0"))
    hidden = np.tanh(convolved(images, first["kernel"]) + first["bias"][None, None, None])
    hidden = np.tanh(convolved(hidden, second["kernel"]) + second["bias"][None, None, None])
    # the mean of the means of the squares of 2x2 pixels
    logits = hidden[:, :4, :6].mean(axis=(1, 2)) @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(jax.jit(model.apply)(params, (), images), logits, rtol=1e-11)


def test_the_signal_keeps_its_size_at_the_start_of_myrtle():
    model = models.myrtle(10, (64, 64), activation="relu")
    params, _ = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert float(params["Conv_1"]["kernel"].var()) == pytest.approx(2 / (9 * 64), rel=0.05)
    assert float(params["Dense_0"]["kernel"].var()) == pytest.approx(1 / 64, rel=0.15)
    assert not any(layer["bias"].any() for layer in params.values())


class Noisy(nn.Module):
    """A network with all that differs between training and evaluation."""

    width: int = 8

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.width, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(not train, param_dtype=x.dtype, force_float32_reductions=False)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, param_dtype=x.dtype)(x)


MODES = dict(training={"train": True}, evaluation={"train": False})


@pytest.fixture
def noisy(float64):
    """(module, params, model_state, inputs) with batch statistics of some training behind it."""
    module, inputs = Noisy(), spiral(examples_per_class=20).train.inputs
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), inputs)
    key = {"dropout": jax.random.key(1)}
    train = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]))
    _, state = train(variables, inputs, rngs=key)
    return module, variables["params"], state, inputs


def test_the_functions_of_a_module_are_its_calls_in_both_modes(noisy):
    module, params, state, inputs = noisy
    model, key = models.linen(module, **MODES), jax.random.key(1)
    drawn, first = jax.jit(model.init)(jax.random.key(0), inputs)
    jax.tree.map(np.testing.assert_array_equal, drawn, params)
    assert not first["batch_stats"]["BatchNorm_0"]["mean"].any()
    logits, moved = jax.jit(model.train)(params, first, inputs, key)
    jax.tree.map(np.testing.assert_array_equal, moved, dict(state))
    expected, _ = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]))(
        {"params": params, **first}, inputs, rngs={"dropout": key}
    )
    np.testing.assert_array_equal(logits, expected)


def test_a_frozen_network_is_a_function_of_parameters_and_single_examples(noisy):
    module, params, state, inputs = noisy
    before = jax.tree.map(np.array, state)
    apply_fn = models.apply_fn(models.linen(module, **MODES), state)
    logits = apply_fn(params, inputs)
    np.testing.assert_array_equal(logits, module.apply({"params": params, **state}, inputs, train=False))
    np.testing.assert_array_equal(logits, apply_fn(params, inputs))
    np.testing.assert_allclose(apply_fn(params, inputs[3:9]), logits[3:9], rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert np.any(state["batch_stats"]["BatchNorm_0"]["mean"] != 0)


def test_a_frozen_network_is_an_argument_that_compiles_once(noisy):
    module, params, state, inputs = noisy
    traced = []

    @jax.jit
    def compiled(apply_fn, params):
        traced.append(None)
        return apply_fn(params, inputs)

    first = compiled(models.apply_fn(models.linen(module, **MODES), state), params)
    others = jax.tree.map(lambda leaf: leaf + 1, state)
    second = compiled(models.apply_fn(models.linen(Noisy(), **MODES), others), params)
    assert len(traced) == 1
    assert not np.array_equal(first, second)


def test_a_fixed_key_makes_a_fixed_dropout_mask(float64):
    modes, ones = (dict(deterministic=False), dict(deterministic=True)), jnp.ones((4, 16))
    model = models.linen(nn.Dropout(0.5), training=modes[0], evaluation=modes[1])
    first, same, other = (model.train({}, (), ones, jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert model.init(jax.random.key(0), ones) == ({}, ())
    np.testing.assert_array_equal(model.apply({}, (), ones), ones)


def test_an_evaluation_that_would_change_the_state_is_refused(noisy):
    module, params, state, inputs = noisy
    apply_fn = models.apply_fn(models.linen(module, evaluation={"train": True}), state)
    with pytest.raises(ModifyScopeVariableError):
        apply_fn(params, inputs)
