"""neural-tangents on today's JAX against closed forms and explicit Jacobians.

Strict promotion and warnings as errors hold inside the library, too.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis.neural_tangents_import import load
from analysis.ntk import empirical_ntk
from dlf import models

INSTALL = "pip install --no-deps neural-tangents==0.6.5 frozendict"
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason=f"neural-tangents is not installed: {INSTALL}"
)


def draw(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape))


def tolerance(x64):
    return 1e-12 if x64 else 1e-5


def perceptron():
    """(apply_fn, params, inputs) of a finite network with biases."""
    stax, inputs = load().stax, draw(0, 7, 2)
    init, apply_fn, _ = stax.serial(stax.Dense(16, 1.4, 0.3), stax.Relu(), stax.Dense(3, 1.2, 0.2))
    return apply_fn, init(jax.random.key(0), inputs.shape)[1], inputs


def explicit_jacobian(apply_fn, params, inputs):
    """[examples, classes, parameters]"""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.jacobian(lambda p: apply_fn(unravel(p), inputs)))(flat))


def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (absent, f"neural-tangents is not installed: {INSTALL}"),
        (lambda name: "0.6.4", f"neural-tangents 0.6.4 is installed, not 0.6.5: {INSTALL}"),
        (lambda name: "0.6.5", f"frozendict, which neural-tangents needs, is not installed: {INSTALL}"),
    ],
    ids=["absent", "other version", "without frozendict"],
)
def test_what_is_missing_is_said_in_one_line(monkeypatch, version, message):
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        load.__wrapped__()
    assert str(error.value) == message


BEFORE_AND_AFTER = """
import sys
import jax.core, jax.interpreters.ad, jax.numpy, scipy.linalg
from analysis import neural_tangents_import
modules = jax.core, jax.interpreters.ad, jax.numpy, jax.extend.source_info_util, scipy.linalg
before, loaded = [dict(vars(module)) for module in modules], set(sys.modules)
nt = neural_tangents_import.load()
assert nt.__version__ == "0.6.5" and nt is neural_tangents_import.load()
for names, module in zip(before, modules):
    assert names == vars(module), module.__name__
# what no file was read for is a stand-in
added = set(sys.modules) - loaded
assert {name for name in added if sys.modules[name].__spec__ is None} == {"neural_tangents.experimental"}
assert not added & {"jax.util", "tensorflow", "tests", "examples"} and not hasattr(jax, "util")
"""


@needs_library
def test_importing_it_leaves_everything_else_as_it_was():
    # A process of its own, since here the library may be imported already.
    command = [sys.executable, "-W", "error", "-c", BEFORE_AND_AFTER]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_library
def test_infinite_relu_network_has_arc_cosine_kernels(x64):
    stax = load().stax
    inputs, (w, b) = draw(0, 6, 4), (1.5, 0.3)
    *_, kernel_fn = stax.serial(stax.Dense(1, w, b), stax.Relu(), stax.Dense(1, w, b))
    kernel = kernel_fn(inputs, None, ("nngp", "ntk"))

    x = np.random.RandomState(0).randn(6, 4)
    first = w**2 * x @ x.T / 4 + b**2
    norms = np.sqrt(np.outer(first.diagonal(), first.diagonal()))
    angle = np.arccos(np.clip(first / norms, -1, 1))
    nngp = w**2 * norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) + b**2
    ntk = nngp + first * w**2 * (np.pi - angle) / (2 * np.pi)
    rtol = float(jnp.finfo(inputs.dtype).eps) ** 0.5  # of the angle between a point and itself
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=rtol)
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=rtol)


def check_kernels(implementation, apply_fn, params, inputs, tolerance):
    """Compare a traced and a full kernel with the contraction of explicit Jacobians."""
    nt = load()
    choice = nt.NtkImplementation[implementation]
    traced = nt.empirical_ntk_fn(apply_fn, vmap_axes=0, implementation=choice)
    full = nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=choice)
    kernels = jax.jit(lambda p, x: (traced(x, None, p), full(x, x[:3], p)))(params, inputs)

    rows = explicit_jacobian(apply_fn, params, inputs)
    expected = (
        np.einsum("icp,jcp->ij", rows, rows) / rows.shape[1],
        np.einsum("icp,jdp->ijcd", rows, rows[:3]),
    )
    for kernel, value in zip(kernels, expected, strict=True):
        np.testing.assert_allclose(kernel, value, rtol=tolerance, atol=tolerance * np.abs(value).max())


@needs_library
@pytest.mark.parametrize(
    "implementation", ["JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"]
)
def test_empirical_ntk_is_the_contraction_of_explicit_jacobians(implementation, x64):
    check_kernels(implementation, *perceptron(), tolerance(x64))


@needs_library
def test_the_implementation_can_be_left_to_the_library(float64):
    check_kernels("AUTO", *perceptron(), tolerance(True))


@needs_library
def test_structured_derivatives_of_a_convolution_with_normalisation(float64):
    stax, inputs = load().stax, draw(0, 5, 4, 4, 2)
    layers = stax.Conv(4, (3, 3), padding="SAME", b_std=0.3), stax.Relu(), stax.LayerNorm(), stax.Flatten()
    init, apply_fn, _ = stax.serial(*layers, stax.Dense(3))
    params = init(jax.random.key(0), inputs.shape)[1]
    check_kernels("STRUCTURED_DERIVATIVES", apply_fn, params, inputs, tolerance(True))


@needs_library
def test_structured_derivatives_of_our_network_give_our_kernel(x64):
    nt, inputs = load(), draw(0, 7, 2)
    model = models.mlp(3, (16,), activation="relu", initialization="updated", use_bias=True)
    params = model.init(jax.random.PRNGKey(0), inputs)
    structured = nt.NtkImplementation.STRUCTURED_DERIVATIVES
    kernel_fn = nt.empirical_ntk_fn(model.apply, implementation=structured)
    theirs = jax.jit(lambda p, x: kernel_fn(x, None, p))(params, inputs)
    ours = jax.jit(partial(empirical_ntk, model.apply))(params, inputs)
    np.testing.assert_allclose(theirs, ours, rtol=tolerance(x64), atol=tolerance(x64))


@needs_library
def test_linearized_network_is_the_tangent(x64):
    apply_fn, params, inputs = perceptron()
    flat, unravel = ravel_pytree(params)
    moved = unravel(flat + draw(1, flat.size))
    tangent = explicit_jacobian(apply_fn, params, inputs) @ draw(1, flat.size)
    for linear in (load().linearize(apply_fn, params), load().taylor_expand(apply_fn, params, 1)):
        found = jax.jit(linear)(moved, inputs)
        np.testing.assert_allclose(found, apply_fn(params, inputs) + tangent, rtol=10 * tolerance(x64))


@needs_library
def test_predicted_training_is_the_linear_flow(x64):
    nt = load()
    apply_fn, params, inputs = perceptron()
    start, targets, time = apply_fn(params, inputs), draw(2, 7, 3), 2.0
    kernel = nt.empirical_ntk_fn(apply_fn)(inputs, None, params)
    predict = nt.predict.gradient_descent_mse(kernel, targets)

    # d(f - y)/dt = -kernel (f - y) / (examples classes)
    values, vectors = np.linalg.eigh(np.asarray(kernel, start.dtype))
    flow = (vectors * np.exp(-time * values / targets.size)) @ vectors.T
    np.testing.assert_allclose(predict(time, start), targets + flow @ (start - targets), atol=tolerance(x64))
    stable = nt.predict.max_learning_rate(kernel, y_train_size=targets.size)
    np.testing.assert_allclose(stable, 2 * targets.size / values[-1], rtol=tolerance(x64))
