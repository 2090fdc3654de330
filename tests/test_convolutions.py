"""Convolutions against those of lax, in value and all derivatives, and the warning about those of lax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from dlf import convolutions, models
from experiments import build
from experiments.configs import tiny

TOLERANCE = dict(rtol=1e-3, atol=1e-3)  # float32, sums of up to 100 terms


def same(ours, theirs, args, **tolerance):
    found, expected = (jax.jit(fn)(*args) for fn in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)


@pytest.mark.parametrize(
    ("platform", "taps"), [("cpu", 1), ("cpu", 2), ("cpu", 3), ("cpu", 5), ("gpu", 3)], ids=str
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(9,), (8,), (2,), (6, 7), (5, 6), (1, 4), (1, 1)], ids=str)
def test_convolutions_of_any_kind_are_those_of_lax(
    x64, lax_convolution, monkeypatch, sides, stride, taps, platform
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(2, *sides, 3)), float) for _ in range(2))
    kernel, dkernel = (jnp.asarray(rng.normal(size=((taps,) * len(sides) + (3, 4))), float) for _ in range(2))

    def derivatives(convolve):
        def loss(*primals):
            return jnp.sum(jnp.tanh(convolve(*primals, stride)))

        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.jit(lambda *p: (convolve(*p, stride), jax.jvp(gradient, p, (dx, dkernel))))(x, kernel)

    tolerance = dict(rtol=1e-10, atol=1e-10) if x64 else dict(rtol=1e-3, atol=1e-3)
    found, expected = derivatives(convolutions.convolve), derivatives(lax_convolution)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def gradient(convolve):
    return jax.grad(lambda *args: jnp.sum(jnp.tanh(convolve(*args))), argnums=(0, 1))


def product(convolve):
    return lambda *args: jax.jvp(gradient(convolve), args, args)


def gradient_of_gradient(convolve):
    return jax.grad(lambda *args: sum(jnp.sum(of**2) for of in gradient(convolve)(*args)), argnums=(0, 1))


@pytest.mark.parametrize("derivative", [lambda fn: fn, gradient, product, gradient_of_gradient])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)], ids=str)
def test_batches_of_convolutions_are_convolutions_of_each(lax_convolution, axes, derivative):
    rng = np.random.default_rng(0)
    shapes = ((4, 6, 5, 3), (3, 3, 3, 2))
    args = [
        rng.normal(size=shape if axis is None else (*shape[:axis], 3, *shape[axis:])).astype("f")
        for shape, axis in zip(shapes, axes, strict=True)
    ]

    def batches(convolve):
        return jax.vmap(derivative(convolve), in_axes=axes)

    def differentiated(convolve):
        return derivative(jax.vmap(convolve, in_axes=axes))

    for of in (batches, differentiated):
        same(of(convolutions.convolve), of(lax_convolution), args, **TOLERANCE)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_a_batch_may_be_empty_and_shapes_that_do_not_fit_are_refused_when_traced(lax_convolution, axes):
    shapes = (2, 4, 5, 3), (3, 3, 3, 2)
    args = [
        np.zeros(shape if axis is None else (0, *shape), "f")
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    same(*(jax.vmap(of, in_axes=axes) for of in (convolutions.convolve, lax_convolution)), args)
    with pytest.raises(ValueError, match="feature"):
        jax.eval_shape(convolutions.convolve, np.zeros((2, 4, 5, 2), "f"), np.zeros(shapes[1], "f"))


def test_jacobians_and_hessians_of_a_convolution_are_those_of_lax(lax_convolution):
    rng = np.random.default_rng(0)
    args = rng.normal(size=(2, 4, 3)).astype("f"), rng.normal(size=(3, 3, 2)).astype("f")
    for of in (jax.jacrev, jax.jacfwd, jax.hessian):

        def derivatives(convolve, of=of):
            return of(lambda *args: jnp.tanh(convolve(*args)).sum(axis=1), argnums=(0, 1))

        same(derivatives(convolutions.convolve), derivatives(lax_convolution), args, **TOLERANCE)


def test_derivatives_over_devices_are_summed(lax_convolution):
    # a primitive of one's own that shard_map does not know left each device its own sum, in silence
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    args = rng.normal(size=(3, 3, 3, 2)).astype("f"), rng.normal(size=(4, 6, 6, 3)).astype("f")

    def gradient_and_product(convolve, mean=lambda x: x):
        grad = jax.grad(lambda kernel, x: mean(jnp.mean(jnp.tanh(convolve(x, kernel)) ** 2)))
        return lambda kernel, x: jax.jvp(lambda kernel: grad(kernel, x), (kernel,), (jnp.ones_like(kernel),))

    specs = dict(mesh=mesh, in_specs=(P(), P("device")), out_specs=P())
    ours = gradient_and_product(convolutions.convolve, lambda x: lax.pmean(x, "device"))
    same(jax.shard_map(ours, **specs), gradient_and_product(lax_convolution), args, rtol=1e-3, atol=1e-4)


def in_a_loop(convolve):
    return lambda x, kernel: lax.scan(lambda carry, _: (jax.jit(convolve)(carry, kernel), None), x, length=2)


def in_a_branch(convolve):
    return lambda x, kernel: lax.cond(x.sum() > 0, lambda: jax.checkpoint(convolve)(x, kernel), lambda: x)


@pytest.mark.parametrize("wrap", [lambda convolve: convolve, in_a_loop, in_a_branch])
def test_a_convolution_of_lax_is_warned_of_once_wherever_it_is(lax_convolution, monkeypatch, wrap):
    shapes = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.zeros(()).dtype), jnp.zeros((3, 3, 2, 2))
    with pytest.warns(UserWarning) as warned:
        convolutions.warn_of_convolutions(wrap(lax_convolution), *shapes)
    (warning,) = warned
    message = str(warning.message)
    assert "12868" in message and "dlf.layers.Conv" in message and "\n" not in message
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    convolutions.warn_of_convolutions(wrap(lax_convolution), *shapes)


def test_flax_convolutions_are_warned_of_and_ours_are_not():
    images = jnp.zeros((2, 8, 8, 1))
    with pytest.warns(UserWarning, match="12868"):
        convolutions.warn_of_convolutions(jax.jit(nn.Conv(2, (3, 3)).init), jax.random.key(0), images)
    model = models.myrtle(3, (2, 2), activation="relu")
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    apply_fn = models.apply_fn(model)
    convolutions.warn_of_convolutions(jax.jit(jax.grad(lambda p: apply_fn(p, images).sum())), params)


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
