"""Every form of the NTK against the explicit Jacobian, its memory, its operator and the GGN's dual."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import dense as dense_matrix
from analysis.ntk import (
    diagonal_ntk,
    empirical_ntk,
    full_ntk,
    ggn_ntk_duality,
    kernel_target_alignment,
    ntk_operator,
    per_class_ntk,
    spectrum,
)
from dlf import data, losses, models, schedules

INPUTS = np.random.RandomState(0).randn(7, 4)


def explicit_jacobian(apply_fn, params, inputs):
    """The Jacobian [examples, classes, parameters] of each example alone."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda p, x: apply_fn(unravel(p), x[None])[0])
    return np.asarray(jax.jit(jax.vmap(jacobian, in_axes=(None, 0)))(flat, inputs))


FORMS = {
    empirical_ntk: lambda rows: np.einsum("pcn,qcn->pq", rows, rows) / rows.shape[1],
    full_ntk: lambda rows: np.einsum("pcn,qdn->pcqd", rows, rows).reshape(2 * [rows[:, :, 0].size]),
    per_class_ntk: lambda rows: np.einsum("pcn,qcn->cpq", rows, rows),
    diagonal_ntk: lambda rows: np.einsum("pcn,pcn->p", rows, rows) / rows.shape[1],
}
TRACED = (empirical_ntk, diagonal_ntk)
ROUTES = {
    "layers": lambda model, p, x: model(p, x),
    "jacobian": lambda model, p, x: model(p, x) * (1 + p["Dense_1"]["bias"].sum()),
}


@pytest.fixture(params=ROUTES)
def problem(request):
    """(apply_fn, params, inputs) of a perceptron, for the layers' route and for the Jacobian's."""

    def make(num_examples=7, hidden_width=5):
        model = models.mlp(3, (hidden_width,), activation="tanh", initialization="updated", use_bias=True)
        inputs = jnp.asarray(np.random.RandomState(0).randn(num_examples, 2))
        params, _ = jax.jit(model.init)(jax.random.key(1), inputs)
        return partial(ROUTES[request.param], models.apply_fn(model)), params, inputs

    return make


def draw_weights(*shape):
    return jnp.asarray(np.random.RandomState(2).uniform(0.1, 3, shape))


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def kernels_of(apply_fn, params, inputs, sizes, weights=None):
    """Forms with batch sizes {form: sizes}, in one program: {form: [kernel of each size]}."""

    def measure(params, inputs, weights):
        return [
            [form(apply_fn, params, inputs, weights=weights, batch_size=size) for size in sizes[form]]
            for form in sizes
        ]

    return dict(zip(sizes, jax.jit(measure)(params, inputs, weights), strict=True))


def check_symmetric_and_positive_semi_definite(kernel):
    values, eps = np.linalg.eigvalsh(kernel)[::-1], float(jnp.finfo(kernel.dtype).eps)
    assert values[-1] >= -10 * eps * len(kernel) * values[0]
    assert_close(kernel, np.asarray(kernel).T, 4 * eps)


def test_each_form_contracts_the_jacobian_whatever_the_block(float64, problem):
    apply_fn, params, inputs = problem(num_examples=40)
    rows = explicit_jacobian(apply_fn, params, inputs)
    sizes = {form: (None, 1, 9, 40) if form in TRACED else (None, 9) for form in FORMS}
    found = kernels_of(apply_fn, params, inputs, sizes)
    for form, (whole, *batched) in found.items():
        assert_close(whole, FORMS[form](rows), 1e-13)
        for kernel in batched:
            assert_close(kernel, whole, 1e-12)
    for form in (empirical_ntk, full_ntk):  # of 33 parameters: the full kernel has 87 zero eigenvalues
        for kernel in found[form]:
            check_symmetric_and_positive_semi_definite(kernel)


def test_weights_scale_the_jacobian_by_their_roots(float64, problem):
    apply_fn, params, inputs = problem()
    jacobian = explicit_jacobian(apply_fn, params, inputs)
    of_examples = {form: (None, 3) if form is empirical_ntk else (3,) for form in FORMS}
    of_outputs = {full_ntk: (None, 3), per_class_ntk: (3,)}
    for shape, sizes in (((7,), of_examples), ((7, 3), of_outputs)):
        weights = draw_weights(*shape)
        rows = jacobian * np.sqrt(weights).reshape(7, -1, 1)
        for form, kernels in kernels_of(apply_fn, params, inputs, sizes, weights).items():
            for kernel in kernels:
                assert_close(kernel, FORMS[form](rows), 1e-12)


def test_a_batched_kernel_can_be_mapped_and_differentiated_forward(float64, problem):
    apply_fn, params, inputs = problem()
    whole, batched = (partial(empirical_ntk, apply_fn, inputs=inputs, batch_size=size) for size in (None, 3))

    def slope(kernel, scale):
        scaled = jax.tree.map(lambda leaf: scale * leaf, params)
        return jax.jvp(lambda p: kernel(params=p), (scaled,), (params,))[1]

    scales = jnp.asarray([1.0, 2.0])
    expected, found = (jax.jit(jax.vmap(partial(slope, kernel)))(scales) for kernel in (whole, batched))
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_whole_with_many_examples(problem, form):
    """The sum over classes by a reduction crashed the compiler of jaxlib 0.10.1, from 128 examples on."""
    apply_fn, params, inputs = problem(num_examples=150)
    expected = FORMS[form](explicit_jacobian(apply_fn, params, inputs))
    for batch_size in (None, 140):
        found = jax.jit(partial(form, apply_fn, batch_size=batch_size))(params, inputs)
        assert found.dtype == inputs.dtype
        assert_close(found, expected, 1e-5)
        if form in (empirical_ntk, full_ntk):
            check_symmetric_and_positive_semi_definite(found)


@pytest.mark.parametrize(
    ("problem", "form"),
    [*(("jacobian", form) for form in FORMS), ("layers", empirical_ntk), ("layers", ntk_operator)],
    indirect=["problem"],
)
def test_memory_of_a_batched_form_does_not_grow_with_the_jacobian(float64, problem, form):
    def temporary_bytes(num_examples):
        apply_fn, params, inputs = problem(num_examples, hidden_width=3000)

        def measure(params, inputs):
            found = form(apply_fn, params, inputs, batch_size=2)
            return found(jnp.ones((num_examples, 3))) if form is ntk_operator else found

        compiled = jax.jit(measure).lower(params, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes, ravel_pytree(params)[0].nbytes

    (few, gradient_bytes), (many, _) = temporary_bytes(24), temporary_bytes(48)
    block_bytes, kernel_bytes = 2 * 3 * gradient_bytes, 8 * (3 * 24) ** 2
    # Two blocks and the transpose of each, the kernel, and the parameters, padded or transposed, too. With
    # jax 0.12 all of them are alive at once; 0.10 writes one block transposed.
    assert few < 4 * block_bytes + kernel_bytes + gradient_bytes
    assert many - few < block_bytes / 10


@pytest.mark.parametrize("problem", ["layers"], indirect=True)
def test_the_operator_is_the_full_kernel(x64, problem):
    apply_fn, params, inputs = problem()
    for weights, batch_size in ((None, None), (draw_weights(7), 7), (draw_weights(7, 3), 3)):
        kernel = jax.jit(partial(full_ntk, apply_fn))(params, inputs, weights=weights)
        matvec = ntk_operator(apply_fn, params, inputs, weights=weights, batch_size=batch_size)
        assert_close(dense_matrix(matvec, jnp.zeros((7, 3))), kernel, 1e-12 if x64 else 1e-5)


@pytest.mark.parametrize("problem", ["layers"], indirect=True)
def test_the_largest_eigenvalues_need_no_kernel(float64, problem):
    apply_fn, params, inputs = problem()
    matvec = ntk_operator(apply_fn, params, inputs, batch_size=3)
    pairs = top_eigenpairs(matvec, jnp.zeros((7, 3)), num=3, tol=1e-9, key=jax.random.key(0))
    assert bool(pairs.converged)
    assert_close(pairs.values, spectrum(jax.jit(partial(full_ntk, apply_fn))(params, inputs))[:3], 1e-9)


@pytest.mark.parametrize("problem", ["layers"], indirect=True)
def test_a_compiled_function_takes_the_operator_at_any_parameters(float64, problem):
    apply_fn, params, inputs = problem()
    traces = []

    @jax.jit
    def square(matvec, v):
        traces.append(v)
        return matvec(matvec(v))

    v, full = jnp.ones((7, 3)), jax.jit(partial(full_ntk, apply_fn))
    for scale in (1.0, 2.0):
        scaled = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        kernel = full(scaled, inputs)
        matvec = ntk_operator(apply_fn, scaled, inputs, batch_size=3)
        assert_close(square(matvec, v).reshape(-1), kernel @ (kernel @ v.reshape(-1)), 1e-12)
    assert len(traces) == 1


def test_a_kernel_of_the_labels_is_aligned_with_them(x64):
    labels = jnp.asarray([0, 1, 2, 1, 0, 0])
    one_hot = jax.nn.one_hot(labels, 3)
    tolerance = {"rtol": 1e-13 if x64 else 1e-5}
    gram = one_hot @ one_hot.T
    np.testing.assert_allclose(kernel_target_alignment(gram, labels), 1, **tolerance)
    np.testing.assert_allclose(kernel_target_alignment(-2 * gram + 5, labels), -1, **tolerance)
    kernel = jnp.asarray(INPUTS[:6] @ INPUTS[:6].T)
    centring = np.eye(6) - 1 / 6
    centred, target = (np.asarray(centring @ np.asarray(m) @ centring) for m in (kernel, gram))
    expected = np.sum(centred * target) / np.linalg.norm(centred) / np.linalg.norm(target)
    assert 0 < expected < 1
    np.testing.assert_allclose(kernel_target_alignment(kernel, labels), expected, **tolerance)
    np.testing.assert_allclose(kernel_target_alignment(3 * kernel + 7, labels), expected, **tolerance)


def test_labels_of_one_class_have_no_alignment(x64):
    assert jnp.isnan(kernel_target_alignment(jnp.asarray(INPUTS @ INPUTS.T), jnp.zeros(7, int)))


LOSSES = [*(getattr(losses, name) for name in losses.__all__), lambda *case: -losses.dmse1(*case)]
SCHEDULE = schedules.triangular(3, amplitude=70.0, period=40)
MODEL = models.mlp(3, (6,), activation="tanh", initialization="updated", use_bias=True)


def logits_loss(number, logits, batch, step):
    """F of the logits under one of the losses, so that one program serves all."""
    return jnp.mean(jax.lax.switch(number, LOSSES, logits, batch.labels, SCHEDULE(step)))


@partial(jax.jit, static_argnames=("num", "tol"))
def duality(params, batch, number, tol, num=5):
    loss, step = Partial(logits_loss, number), jnp.asarray(17, jnp.int32)
    key = jax.random.key(3)
    return ggn_ntk_duality(models.apply_fn(MODEL), loss, params, batch, step, num=num, tol=tol, key=key)


def test_ggn_and_full_kernel_have_one_spectrum_unless_the_loss_is_not_convex_in_the_logits(x64):
    batch = data.spiral(examples_per_class=8).train
    params, _ = jax.jit(MODEL.init)(jax.random.key(2), batch.inputs)
    tol = 1e-9 if x64 else 1e-4
    for number in range(len(losses.__all__)):
        found = duality(params, batch, jnp.asarray(number), tol)
        assert found.ggn_eigenvalues.shape == found.ntk_eigenvalues.shape == (5,)
        assert found.ntk_eigenvalues[-1] > 0
        assert found.difference < tol
    assert duality(params, batch, jnp.asarray(len(LOSSES) - 1), tol).difference == jnp.inf


@pytest.mark.parametrize("problem", ["layers"], indirect=True)
@pytest.mark.parametrize("form", [*FORMS, ntk_operator])
def test_impossible_arguments_are_refused(float64, problem, form):
    apply_fn, params, inputs = problem()
    for batch_size in (0, 8, -1):
        with pytest.raises(ValueError, match=f"batch_size must be from 1 to 7.*got {batch_size}"):
            form(apply_fn, params, inputs, batch_size=batch_size)
    with pytest.raises(ValueError, match="inputs are empty"):
        form(apply_fn, params, inputs[:0])
    shapes = [(7, 1), (7, 4), (7, 3)] if form in TRACED else [(7, 1), (7, 4)]
    for shape in shapes:
        with pytest.raises(ValueError, match=r"weights must have the shape \(7,\)"):
            form(apply_fn, params, inputs, weights=jnp.ones(shape))


def test_more_eigenvalues_than_logits_are_refused():
    batch = data.spiral(examples_per_class=8).train
    params, _ = jax.eval_shape(MODEL.init, jax.random.key(2), batch.inputs)
    with pytest.raises(ValueError, match="num must be at most 72, the number of logits, got 73"):
        jax.eval_shape(partial(duality, tol=1e-4, num=73), params, batch, 0)
