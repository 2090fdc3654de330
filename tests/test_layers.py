"""Our layers against those of lax and flax, and the warning about theirs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dlf import layers, models
from dlf.data import digits
from experiments import build
from experiments.configs import tiny


def lax_convolution(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "shape",
    [(2, 8, 8, 1), (3, 5, 7, 2), (2, 4, 1, 3), (1, 1, 1, 4)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_the_convolution_is_that_of_lax_in_value_and_derivatives(float64, monkeypatch, shape, platform):
    check_convolution(monkeypatch, shape, platform, dict(rtol=1e-11, atol=1e-11))


def test_the_convolution_is_that_of_lax_in_single_precision(monkeypatch):
    check_convolution(monkeypatch, (3, 5, 7, 2), "cpu", dict(rtol=1e-4, atol=1e-3))


def check_convolution(monkeypatch, shape, platform, tolerance):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    kernel, dkernel = (jnp.asarray(rng.normal(size=(3, 3, shape[3], 5))) for _ in range(2))
    y = jnp.asarray(rng.normal(size=(*shape[:3], 5)))

    def derivatives(convolve):
        gradient = jax.grad(lambda *primals: jnp.sum((convolve(*primals) - y) ** 2), argnums=(0, 1))
        both = jax.jit(lambda *p: (convolve(*p), jax.jvp(gradient, p, (dx, dkernel))))
        return jax.tree.leaves(both(x, kernel))

    results = zip(derivatives(layers._convolve), derivatives(lax_convolution), strict=True)
    for ours, theirs in results:
        assert ours.dtype == x.dtype
        np.testing.assert_allclose(ours, theirs, **tolerance)


def test_the_convolutional_layer_is_that_of_flax(float64):
    images = digits(num_train=5).train.inputs
    params = jax.jit(layers.Conv(6).init)(jax.random.key(0), images)
    theirs = nn.Conv(6, (3, 3), kernel_init=nn.initializers.he_normal(), param_dtype=images.dtype)
    jax.tree.map(np.testing.assert_array_equal, params, jax.jit(theirs.init)(jax.random.key(0), images))
    params["params"]["bias"] += jnp.arange(6, dtype=images.dtype)
    np.testing.assert_allclose(
        jax.jit(layers.Conv(6).apply)(params, images), theirs.apply(params, images), rtol=1e-4, atol=1e-5
    )


def convolve_in_a_loop(x, kernel):
    return lax.scan(lambda carry, _: (jax.jit(lax_convolution)(carry, kernel), None), x, length=2)[0]


def convolve_in_a_branch(x, kernel):
    return lax.cond(x.sum() > 0, lambda: jax.checkpoint(lax_convolution)(x, kernel), lambda: x)


@pytest.mark.parametrize("fn", [lax_convolution, convolve_in_a_loop, convolve_in_a_branch])
def test_a_convolution_of_lax_is_warned_of_once_wherever_it_is(monkeypatch, fn):
    shapes = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.zeros(()).dtype), jnp.zeros((3, 3, 2, 2))
    with pytest.warns(UserWarning) as warned:
        layers.warn_of_convolutions(fn, *shapes)
    (warning,) = warned
    message = str(warning.message)
    assert "12868" in message and "dlf.layers.Conv" in message and "\n" not in message
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layers.warn_of_convolutions(fn, *shapes)


def test_flax_convolutions_are_warned_of_and_ours_are_not():
    images = jnp.zeros((2, 8, 8, 1))
    with pytest.warns(UserWarning, match="12868"):
        layers.warn_of_convolutions(jax.jit(nn.Conv(2, (3, 3)).init), jax.random.key(0), images)
    model = models.myrtle(3, (2, 2), activation="relu")
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    apply_fn = models.apply_fn(model)
    layers.warn_of_convolutions(jax.jit(jax.grad(lambda p: apply_fn(p, images).sum())), params)


def test_a_configuration_with_such_a_network_is_warned_of_before_it_trains(monkeypatch, float64):
    def foreign(num_classes):
        net = nn.Sequential([nn.Conv(num_classes, (3, 3), param_dtype=float), lambda h: h.mean((1, 2))])
        return models.linen(net)

    monkeypatch.setattr(models, "foreign", foreign, raising=False)
    monkeypatch.setattr(models, "__all__", [*models.__all__, "foreign"])
    config = tiny.get_config()
    with config.unlocked():
        config.dataset = dict(name="digits", num_train=20, num_test=5)
        config.model, config.probes = dict(name="foreign"), dict()
    with pytest.warns(UserWarning, match=r"lax\.conv"):
        build.build(config)
