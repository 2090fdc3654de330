"""Every form of the NTK against the explicit Jacobian, which networks need none, and the GGN's dual."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

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


def explicit(apply_fn, params, inputs):
    """The definition of the traced kernel."""
    rows = explicit_jacobian(apply_fn, params, inputs)
    return np.einsum("pcn,qcn->pq", rows, rows) / rows.shape[1]


def measured(apply_fn, params, inputs):
    return jax.jit(partial(empirical_ntk, apply_fn))(params, inputs)


def needs_jacobian(apply_fn, params, inputs):
    """Whether any array of the computation is as large as the Jacobian."""
    jaxpr = jax.make_jaxpr(partial(empirical_ntk, apply_fn))(params, inputs)
    sizes = [variable.aval.size for eqn in jaxpr.eqns for variable in eqn.outvars]
    num_params = ravel_pytree(params)[0].size
    return max(sizes) >= len(inputs) * apply_fn(params, inputs).shape[1] * num_params


def build(module):
    """(apply_fn, params, inputs) of a flax module, parameters drawn in float64, biases not zero."""
    inputs = jnp.asarray(INPUTS)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    draw = np.random.RandomState(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.randn(*leaf.shape)), shapes)
    return lambda p, x: module.apply({"params": p}, x), params, inputs


def dense(features, **settings):
    return nn.Dense(features, param_dtype=jnp.dtype("float64"), **settings)


def network(call):
    """A module from the function of its `__call__`."""
    return type("Network", (nn.Module,), {"__call__": nn.compact(call)})()


def residual(self, x):
    h = nn.tanh(dense(5)(x))
    h = h + nn.softplus(dense(5, use_bias=False)(h)) + dense(5, name="skip")(x)
    return dense(3)(h * h.sum(axis=1, keepdims=True))


def perceptron(between=lambda h: h):
    def call(self, x):
        h = between(nn.tanh(dense(5)(x)))
        return dense(3)(h)

    return network(call)


class Scaled(nn.Dense):
    """A subclass in the NTK parametrisation."""

    def __call__(self, x):
        return super().__call__(x) / 2


def shared(self, x):
    layer = dense(4)
    return layer(nn.tanh(layer(x)))


def tied(self, x):
    """The kernel reaches the logits again, around its layer."""
    layer = dense(3)
    y = nn.tanh(layer(x))
    return dense(3)(y) + y * layer.variables["params"]["kernel"].sum()


def tied_input(self, x):
    """The kernel reaches the next layer's input only."""
    layer = dense(5)
    y = nn.tanh(layer(x))
    return dense(3)(y @ layer.variables["params"]["kernel"].T)


def scanned(self, x):
    layers = nn.scan(
        lambda module, carry, _: (nn.tanh(dense(4)(carry)), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=2,
    )
    return layers(self, x, None)[0]


def three_axes(self, x):
    return dense(3)(nn.tanh(dense(5)(x.reshape(-1, 2, 2)))).sum(axis=1)


def convolution(self, x):
    kernel = nn.Conv(3, (2,), padding="VALID", param_dtype=jnp.dtype("float64"))
    return dense(3)(nn.tanh(kernel(x[..., None])).reshape(len(x), -1))


def intercepted(self, x):
    def double(call, args, kwargs, context):
        return 2 * call(*args, **kwargs)

    with nn.intercept_methods(double):
        return dense(3)(x)


def norm(h):
    return nn.LayerNorm(param_dtype=h.dtype, force_float32_reductions=False)(h)


def doubled_product(*operands, **settings):
    return jax.lax.dot_general(*operands, **settings) * 2


def input_gradient(model, p, x):
    return jax.vmap(jax.grad(lambda x: nn.softplus(model(p, x[None])).sum()))(x)


LAYERED = {"residual": residual, "linear": lambda self, x: dense(3)(dense(5)(x))}
OTHER = {
    "convolution": network(convolution),
    "layer norm": perceptron(between=norm),
    "shared layer": network(shared),
    "kernel used outside": network(tied),
    "kernel in a later input": network(tied_input),
    "three axes": network(three_axes),
    "scan": network(scanned),
    "remat": network(lambda self, x: dense(3)(nn.tanh(nn.remat(nn.Dense)(5, param_dtype=x.dtype)(x)))),
    "jit": network(lambda self, x: dense(3)(nn.tanh(nn.jit(nn.Dense)(5, param_dtype=x.dtype)(x)))),
    "weight norm": network(lambda self, x: nn.WeightNorm(dense(3), param_dtype=x.dtype)(x)),
    "subclass": network(lambda self, x: Scaled(3, param_dtype=x.dtype)(x)),
    "dot_general": network(lambda self, x: dense(3, dot_general=doubled_product)(x)),
    "interceptor": network(intercepted),
}


@pytest.mark.parametrize(
    ("hidden", "activation", "use_bias"), [((), "relu", True), ((9,), "relu", True), ((9, 5), "tanh", False)]
)
def test_a_perceptron_needs_no_jacobian(x64, hidden, activation, use_bias):
    model = models.mlp(3, hidden, activation=activation, initialization="updated", use_bias=use_bias)
    inputs = jnp.asarray(INPUTS)
    params = model.init(jax.random.key(1), inputs)
    assert not needs_jacobian(model.apply, params, inputs)
    kernel = measured(model.apply, params, inputs)
    np.testing.assert_allclose(kernel, explicit(model.apply, params, inputs), rtol=1e-12 if x64 else 1e-4)


@pytest.mark.parametrize("name", LAYERED)
def test_a_network_of_dense_layers_needs_no_jacobian(float64, name):
    problem = build(network(LAYERED[name]))
    assert not needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


@pytest.mark.parametrize("name", OTHER)
def test_any_other_network_takes_its_jacobian(float64, name):
    problem = build(OTHER[name])
    assert needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, p, x: model(jax.tree.map(lambda leaf: 2 * leaf, p), x),
        lambda model, p, x: model(jax.lax.stop_gradient(p), x) + model(p, x),
        lambda model, p, x: model(p, x) + model(p, -x),
        lambda model, p, x: jax.jit(lambda x: model(p, x))(x),
        lambda model, p, x: jax.vmap(lambda x: model(p, x[None])[0])(x),
        lambda model, p, x: jax.lax.map(lambda x: model(p, x[None])[0], x),
        input_gradient,
        lambda model, p, x: model(p, x) * p["Dense_0"]["kernel"].sum(),
        lambda model, p, x: jnp.tanh(x @ p["Dense_0"]["kernel"]) @ p["Dense_1"]["kernel"],
    ],
    ids=["scaled", "frozen", "twice", "jit", "vmap", "map", "gradient", "outside", "no module"],
)
def test_a_function_around_a_network_is_differentiated_as_it_is(float64, change):
    model, params, inputs = build(perceptron())
    problem = partial(change, model), params, inputs
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12, atol=1e-12)


def test_frozen_parameters_elsewhere_and_unused_ones_do_not_count(float64):
    model, params, inputs = build(perceptron())

    def change(p, x):
        return model(p["net"], x) - model(params, 2 * x)

    problem = change, {"net": params, "rest": inputs}, inputs
    assert not needs_jacobian(*problem)
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


def test_examples_that_a_network_mixes_are_taken_one_by_one(float64):
    problem = build(perceptron(between=lambda h: h - h.mean(axis=0, keepdims=True) / 2))
    np.testing.assert_allclose(measured(*problem), explicit(*problem), rtol=1e-12)


def test_a_jitted_network_is_left_as_it_was(float64):
    model, params, inputs = build(perceptron())
    jitted = jax.jit(model)
    np.testing.assert_allclose(
        empirical_ntk(jitted, params, inputs), explicit(model, params, inputs), rtol=1e-12
    )
    np.testing.assert_array_equal(
        jitted(params, inputs[:1]), jax.jit(lambda p, x: model(p, x))(params, inputs[:1])
    )


def test_the_kernel_can_be_mapped_looped_over_and_differentiated(float64):
    model, params, inputs = build(perceptron())
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    expected = [explicit(model, jax.tree.map(lambda leaf, i=i: leaf[i], stacked), inputs) for i in range(2)]
    kernel = partial(empirical_ntk, model)
    np.testing.assert_allclose(jax.vmap(kernel, in_axes=(0, None))(stacked, inputs), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.lax.map(lambda p: kernel(p, inputs), stacked), expected, rtol=1e-12)
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda p: kernel(unravel(p), inputs)[0, 1])(flat)
    step = 1e-5 * jnp.ones_like(flat)
    change = kernel(unravel(flat + step), inputs)[0, 1] - kernel(unravel(flat - step), inputs)[0, 1]
    np.testing.assert_allclose(gradient @ step, change / 2, rtol=1e-7)


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
        params = model.init(jax.random.key(1), inputs)
        return partial(ROUTES[request.param], model.apply), params, inputs

    return make


def draw_weights(*shape):
    return jnp.asarray(np.random.RandomState(2).uniform(0.1, 3, shape))


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_contracts_the_jacobian_whatever_the_block(x64, problem, form):
    apply_fn, params, inputs = problem()
    whole = jax.jit(partial(form, apply_fn))(params, inputs)
    assert_close(whole, FORMS[form](explicit_jacobian(apply_fn, params, inputs)), 1e-13 if x64 else 1e-5)
    for batch_size in (1, 3, 7) if x64 else (3,):
        batched = jax.jit(partial(form, apply_fn, batch_size=batch_size))(params, inputs)
        assert_close(batched, whole, 1e-12 if x64 else 1e-5)


@pytest.mark.parametrize(
    ("form", "shape"),
    [*((form, (7,)) for form in FORMS), (full_ntk, (7, 3)), (per_class_ntk, (7, 3))],
)
def test_weights_scale_the_jacobian_by_their_roots(float64, problem, form, shape):
    apply_fn, params, inputs = problem()
    weights = draw_weights(*shape)
    rows = explicit_jacobian(apply_fn, params, inputs) * np.sqrt(weights).reshape(7, -1, 1)
    for batch_size in (None, 3):
        found = jax.jit(partial(form, apply_fn, batch_size=batch_size))(params, inputs, weights=weights)
        assert_close(found, FORMS[form](rows), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_any_network_has_every_form(float64, form):
    for network_name in ("convolution", "kernel used outside"):
        apply_fn, params, inputs = build(OTHER[network_name])
        expected = FORMS[form](explicit_jacobian(apply_fn, params, inputs))
        assert_close(jax.jit(partial(form, apply_fn))(params, inputs), expected, 1e-13)


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


def test_kernels_are_symmetric_and_positive_semi_definite_to_rounding(x64, problem):
    apply_fn, params, inputs = problem(num_examples=40)
    for form in (empirical_ntk, full_ntk):  # of 33 parameters: the full kernel has 87 zero eigenvalues
        for batch_size in (None, 9):
            kernel = jax.jit(partial(form, apply_fn, batch_size=batch_size))(params, inputs)
            values = spectrum(kernel)
            assert values[-1] >= -10 * jnp.finfo(kernel.dtype).eps * len(kernel) * values[0]
            assert_close(kernel, np.asarray(kernel).T, 4 * float(jnp.finfo(kernel.dtype).eps))


@pytest.mark.parametrize("form", [*FORMS, ntk_operator])
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


def duality(loss, num=5, tol=1e-9):
    dataset = data.spiral(examples_per_class=8)
    model = models.mlp(3, (6,), activation="tanh", initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=70.0, period=40)
    logits_loss = losses.make_loss(lambda logits, inputs: logits, loss, schedule)
    params = model.init(jax.random.key(2), dataset.train.inputs)
    step = jnp.asarray(17, jnp.int32)
    compare = partial(ggn_ntk_duality, model.apply, logits_loss, num=num, tol=tol, key=jax.random.key(3))
    return jax.jit(compare)(params, dataset.train, step)


@pytest.mark.parametrize("name", losses.__all__)
def test_ggn_and_full_kernel_have_one_spectrum(x64, name):
    found = duality(getattr(losses, name), tol=1e-9 if x64 else 1e-4)
    assert found.ggn_eigenvalues.shape == found.ntk_eigenvalues.shape == (5,)
    assert found.ntk_eigenvalues[-1] > 0
    assert found.difference < (1e-9 if x64 else 1e-4)


def test_a_loss_that_is_not_convex_in_the_logits_has_no_dual(float64):
    assert duality(lambda *case: -losses.dmse1(*case)).difference == jnp.inf


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


def test_more_eigenvalues_than_logits_are_refused(float64):
    with pytest.raises(ValueError, match="num must be at most 72, the number of logits, got 73"):
        duality(losses.dmse1, num=73)
