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
from analysis.ntk import diagonal_ntk, empirical_ntk, full_ntk, ntk_operator, per_class_ntk
from dlf import models

INSTALL = "pip install --no-deps neural-tangents==0.6.5 frozendict"
ROOT = Path(__file__).parent.parent
IMPLEMENTATIONS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")


def draw(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape))


def perceptron():
    """(apply_fn, params, inputs) of a finite network with biases."""
    stax, inputs = load().stax, draw(0, 7, 2)
    init, apply_fn, _ = stax.serial(stax.Dense(16, 1.4, 0.3), stax.Relu(), stax.Dense(3, 1.2, 0.2))
    return apply_fn, jax.jit(lambda key: init(key, inputs.shape)[1])(jax.random.key(0)), inputs


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
before, loaded, namespace = [dict(vars(module)) for module in modules], set(sys.modules), dict(vars(jax))
nt = neural_tangents_import.load()
assert nt.__version__ == "0.6.5" and nt is neural_tangents_import.load()
for names, module in zip(before, modules):
    assert names == vars(module), module.__name__
# jax itself: the same names, and those of its own submodules that the library imports
new = {name for name in vars(jax) if vars(jax)[name] is not namespace.get(name)}
assert new <= {name.split(".")[1] for name in sys.modules if name.startswith("jax.")}, new
assert namespace.keys() <= vars(jax).keys()
# what no file was read for is a stand-in
added = set(sys.modules) - loaded
assert {name for name in added if sys.modules[name].__spec__ is None} == {"neural_tangents.experimental"}
assert not added & {"jax.util", "tensorflow", "tf2jax", "tests", "examples"} and not hasattr(jax, "util")
"""


# Packages called tensorflow and tf2jax, which may not be touched.
UNTOUCHED = """
import pathlib, sys, tempfile
folder = tempfile.mkdtemp()
for name in ("tensorflow", "tf2jax"):
    pathlib.Path(folder, name + ".py").write_text("raise SystemExit('TensorFlow was imported')")
sys.path.insert(0, folder)
"""

# By hand it must fail, or there would be nothing to mend; what that leaves behind must not matter.
FAILED_BEFORE = """
try:
    import neural_tangents
    raise SystemExit("neural-tangents imports by itself")
except (ImportError, AttributeError):
    pass
"""

STILL_RIGHT = """
from analysis.infinite_width import infinite_ntk
import jax.numpy as jnp
kernel = infinite_ntk((8,), "relu", "original", True)(jnp.asarray([[2.0, 0.0], [0.0, 0.0]]))
assert kernel.tolist() == [[11.5, 1.0], [1.0, 1.0]], kernel
"""

# What a machine without the library finds: everything imports, and a request for it is one line.
WITHOUT = """
import importlib.metadata, sys
sys.modules["neural_tangents"] = sys.modules["frozendict"] = None
version = importlib.metadata.version
def absent(name):
    if name == "neural-tangents":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = absent
import analysis.probes, analysis.figures, experiments.train, experiments.figure
import experiments.benchmark.eigenpairs
sys.argv = ["figure", "lazy_rich", "--scale=smoke", "--workdir=" + __import__("tempfile").mkdtemp()]
experiments.figure.main()
"""


def run_python(*parts):
    """Run a program of its own, since here the library may be imported already."""
    command = [sys.executable, "-W", "error", "-c", "".join(parts)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_importing_it_leaves_everything_else_as_it_was_and_touches_no_tensorflow():
    done = run_python(UNTOUCHED, BEFORE_AND_AFTER)
    assert done.returncode == 0, done.stderr


def test_an_import_by_hand_that_failed_before_does_not_matter():
    done = run_python(FAILED_BEFORE, STILL_RIGHT)
    assert done.returncode == 0, done.stderr


def test_without_it_everything_imports_and_a_request_for_it_gets_one_line():
    done = run_python(WITHOUT)
    assert (done.returncode, done.stderr) == (2, f"error: neural-tangents is not installed: {INSTALL}\n")


def test_what_needs_tensorflow_says_that_it_is_left_out():
    with pytest.raises(AttributeError) as error:
        load().experimental.get_apply_fn_and_params  # noqa: B018, the access is what is tested
    name = "neural_tangents.experimental.get_apply_fn_and_params"
    assert str(error.value) == f"{name} is left out: it would import TensorFlow"


def test_the_set_up_installs_it_as_the_message_says():
    makefile = (ROOT / "Makefile").read_text()
    assert f"--no-deps {INSTALL.split()[3]}\n" in makefile
    assert "ntk = frozendict\n" in (ROOT / "setup.cfg").read_text()


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


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "AUTO"])
def test_empirical_ntk_is_the_contraction_of_explicit_jacobians(float64, implementation):
    check_kernels(implementation, *perceptron(), 1e-12)


def test_empirical_ntk_keeps_single_precision():
    check_kernels("STRUCTURED_DERIVATIVES", *perceptron(), 1e-5)


def test_structured_derivatives_of_a_convolution_with_normalisation(float64):
    stax, inputs = load().stax, draw(0, 5, 4, 4, 2)
    layers = stax.Conv(4, (3, 3), padding="SAME", b_std=0.3), stax.Relu(), stax.LayerNorm(), stax.Flatten()
    init, apply_fn, _ = stax.serial(*layers, stax.Dense(3))
    params = jax.jit(lambda key: init(key, inputs.shape)[1])(jax.random.key(0))
    check_kernels("STRUCTURED_DERIVATIVES", apply_fn, params, inputs, 1e-12)


NETWORKS = {
    "perceptron": (models.mlp(3, (16,), "relu", "updated", True), (2,)),
    "deep": (models.mlp(3, (7, 6), "tanh", "original", False), (2,)),
    "convolutions": (models.myrtle(3, (3, 4), "gelu"), (4, 4, 2)),
}


@pytest.fixture(params=NETWORKS)
def ours(request, float64):
    """(apply_fn, params, inputs) of one of our networks."""
    model, shape = NETWORKS[request.param]
    inputs = draw(0, 5, *shape)
    return models.apply_fn(model), jax.jit(model.init)(jax.random.PRNGKey(0), inputs)[0], inputs


def close(found, expected):
    """Compare kernels that are summed in another order."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_our_kernels_are_theirs_by_each_implementation_and_with_weights(ours):
    nt, (apply_fn, params, inputs) = load(), ours
    weights = jnp.abs(draw(3, 5, 3))  # one for each output

    @jax.jit
    def by_us(params, inputs):
        forms = [
            form(apply_fn, params, inputs) for form in (empirical_ntk, full_ntk, per_class_ntk, diagonal_ntk)
        ]
        return [*forms, full_ntk(apply_fn, params, inputs, weights=weights)]

    @partial(jax.jit, static_argnums=0)
    def theirs(implementation, params, inputs):
        choice = dict(implementation=implementation, vmap_axes=0)
        traced = nt.empirical_ntk_fn(apply_fn, **choice)
        full = nt.empirical_ntk_fn(apply_fn, trace_axes=(), **choice)
        of_classes = nt.empirical_ntk_fn(apply_fn, trace_axes=(), diagonal_axes=(1,), **choice)
        return [kernel_fn(inputs, None, params) for kernel_fn in (traced, full, of_classes)]

    def flat(full):  # [example, other, class, other class]
        return np.asarray(full).transpose(0, 2, 1, 3).reshape(15, 15)

    found = by_us(params, inputs)
    for name in IMPLEMENTATIONS:
        traced, full, of_classes = map(np.asarray, theirs(nt.NtkImplementation[name], params, inputs))
        close(found[0], traced)
        close(found[1], flat(full))
        close(found[2], of_classes.transpose(2, 0, 1))
        close(found[3], traced.diagonal())
    kernel_fn = nt.empirical_ntk_fn(lambda p, x: jnp.sqrt(weights) * apply_fn(p, x), trace_axes=())
    close(found[4], flat(jax.jit(lambda p, x: kernel_fn(x, None, p))(params, inputs)))


def test_our_operator_is_their_product_without_a_kernel(ours):
    apply_fn, params, inputs = ours
    product = jax.jit(lambda p, x, v: load().empirical_ntk_vp_fn(apply_fn, x, None, p)(v))
    vector = draw(4, 5, 3)
    close(ntk_operator(apply_fn, params, inputs)(vector), product(params, inputs, vector))


def test_linearized_network_is_the_tangent(float64):
    apply_fn, params, inputs = perceptron()
    flat, unravel = ravel_pytree(params)
    moved = unravel(flat + draw(1, flat.size))
    tangent = explicit_jacobian(apply_fn, params, inputs) @ draw(1, flat.size)
    for linear in (load().linearize(apply_fn, params), load().taylor_expand(apply_fn, params, 1)):
        found = jax.jit(linear)(moved, inputs)
        np.testing.assert_allclose(found, apply_fn(params, inputs) + tangent, rtol=1e-11)


def test_predicted_training_is_the_linear_flow(float64):
    nt = load()
    apply_fn, params, inputs = perceptron()
    start, targets, time = apply_fn(params, inputs), draw(2, 7, 3), 2.0
    kernel = nt.empirical_ntk_fn(apply_fn)(inputs, None, params)
    predict = nt.predict.gradient_descent_mse(kernel, targets)

    # d(f - y)/dt = -kernel (f - y) / (examples classes)
    values, vectors = np.linalg.eigh(np.asarray(kernel, start.dtype))
    flow = (vectors * np.exp(-time * values / targets.size)) @ vectors.T
    np.testing.assert_allclose(predict(time, start), targets + flow @ (start - targets), atol=1e-12)
    stable = nt.predict.max_learning_rate(kernel, y_train_size=targets.size)
    np.testing.assert_allclose(stable, 2 * targets.size / values[-1], rtol=1e-12)
