"""Networks with statistics and dropout: against flax's own loop, in both modes, over a kill."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from dlf import losses, models, schedules, train
from dlf.types import Batch
from experiments.configs import tiny

KEY = jax.random.key(0)
MODES = dict(training={"train": True}, evaluation={"train": False})
POINTS = np.random.RandomState(0).randn(60, 2)
IMAGES = np.random.RandomState(1).randn(60, 4, 4, 2)


def norm(x, train):
    return nn.BatchNorm(not train, momentum=0.9, param_dtype=x.dtype, force_float32_reductions=False)(x)


class Perceptron(nn.Module):
    """What `mlp` is with batch norm, of flax's layers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(norm(nn.Dense(7, param_dtype=x.dtype)(x), train))
        x = nn.tanh(norm(nn.Dense(5, param_dtype=x.dtype)(x), train))
        return nn.Dense(3, param_dtype=x.dtype)(x)


class Convolutions(nn.Module):
    """What `myrtle` is with batch norm, of flax's layers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(norm(nn.Conv(3, (3, 3), param_dtype=x.dtype)(x), train))
        x = nn.tanh(norm(nn.Conv(4, (3, 3), param_dtype=x.dtype)(x), train))
        return nn.Dense(3, param_dtype=x.dtype)(x.mean(axis=(1, 2)))


class Own(nn.Module):
    """A user's own network: statistics of the inputs, of another momentum, in a module inside."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "shift", jnp.zeros, x.shape[1:], x.dtype)
        if train:
            mean.value = 0.5 * mean.value + 0.5 * x.mean(axis=0)
        return Perceptron(name="inside")(x - mean.value[None], train)


NETWORKS = {
    "mlp": (models.mlp(3, (7, 5), "tanh", "updated", True, normalization="batch"), Perceptron(), POINTS),
    "myrtle": (models.myrtle(3, (3, 4), "tanh", normalization="batch"), Convolutions(), IMAGES),
    "a user's own": (models.linen(Own(), **MODES), Own(), POINTS + 5),
}
NUM_STEPS, WEIGHTS = 12, schedules.triangular(3, amplitude=5.0, period=6)


def problem_of(model, inputs, batch_size=20, **settings):
    """A problem of which a step sees one part of the examples after the other."""
    batch = Batch(jnp.asarray(inputs), jnp.arange(len(inputs), dtype=jnp.int32) % 3)

    def batch_fn(step):
        first = step * batch_size % len(inputs)
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, batch_size), batch)

    sgd = dict(name="sgd", learning_rate=0.1, momentum=0.9)
    return train.make_problem(model, losses.cross_entropy, WEIGHTS, sgd, batch, batch_fn=batch_fn, **settings)


def first_state(problem):
    params, model_state = jax.jit(problem.model.init)(KEY, problem.train.inputs)
    return train.init_state(params, problem.optimizer, model_state)


def flax_loop(module, state, batches):
    """Train as flax's examples do, from a first state, under weighted cross-entropy."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    params, statistics, opt_state = state.params, state.model_state, optimizer.init(state.params)

    @jax.jit
    def step(params, statistics, opt_state, batch, weights):
        def loss_fn(params):
            variables = {"params": params, **statistics}
            logits, moved = module.apply(variables, batch.inputs, train=True, mutable=["batch_stats"])
            values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return (weights[batch.labels] * values).mean(), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), moved, opt_state, loss

    found = []
    for number, batch in enumerate(batches):
        weights = WEIGHTS(jnp.asarray(number, jnp.int32))
        params, statistics, opt_state, loss = step(params, statistics, opt_state, batch, weights)
        found.append(loss)
    return params, statistics, found


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_trains_as_in_flaxs_own_loop_statistics_included(x64, name):
    model, module, inputs = NETWORKS[name]
    problem = problem_of(model, inputs)
    start = first_state(problem)
    shapes = jax.eval_shape(lambda: module.init(KEY, problem.train.inputs, train=False))
    assert jax.tree.structure({"params": start.params, **start.model_state}) == jax.tree.structure(shapes)
    state, _, series = train.make_loop(train.problem_step(problem))(start, {}, NUM_STEPS)
    batches = [problem.batch_fn(jnp.asarray(step, jnp.int32)) for step in range(NUM_STEPS)]
    params, statistics, expected = flax_loop(module, start, batches)
    tolerance = dict(rtol=1e-9, atol=1e-12) if x64 else dict(rtol=2e-3, atol=1e-5)

    def close(found, value):
        assert found.dtype == problem.train.inputs.dtype
        np.testing.assert_allclose(found, value, **tolerance)

    close(series["loss"], np.asarray(expected))
    jax.tree.map(close, dict(state.params), dict(params))
    jax.tree.map(close, state.model_state, dict(statistics))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.model_state, start.model_state)
    assert min(jax.tree.leaves(moved)) > 1e-2
    evaluated = module.apply({"params": params, **statistics}, problem.train.inputs, train=False)
    close(train.frozen(problem, state)(state.params, problem.train.inputs), evaluated)


def moved_by_noise(params):
    """Parameters that are all different, scales and biases too."""
    flat, unravel = ravel_pytree(params)
    return unravel(flat + 0.3 * jnp.asarray(np.random.RandomState(2).randn(flat.size)))


@pytest.mark.parametrize("normalization", ["group", "layer"])
def test_group_and_layer_norm_are_those_of_their_formula_and_have_no_state(float64, normalization):
    model = models.mlp(3, (12,), "tanh", "updated", True, normalization=normalization)
    params, model_state = model.init(KEY, jnp.asarray(POINTS))
    assert model_state == ()
    params = moved_by_noise(params)
    logits = model.apply(params, (), jnp.asarray(POINTS))
    trained, after = model.train(params, (), jnp.asarray(POINTS), KEY)
    np.testing.assert_array_equal(trained, logits)
    assert after == ()
    (affine,) = [of for name, of in params.items() if name.endswith("Norm_0")]
    first, second = (jax.tree.map(np.asarray, params[f"Dense_{depth}"]) for depth in (0, 1))
    hidden = POINTS @ first["kernel"] + first["bias"]
    groups = hidden.reshape(60, {"group": 4, "layer": 1}[normalization], -1)  # gcd(12, 8) groups
    groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-6)
    hidden = np.tanh(groups.reshape(60, 12) * np.asarray(affine["scale"]) + np.asarray(affine["bias"]))
    np.testing.assert_allclose(logits, hidden @ second["kernel"] + second["bias"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalization", ["none", "group", "layer"])
def test_a_network_without_statistics_trains_by_a_loss_alone_as_by_a_problem(float64, normalization):
    model = models.myrtle(3, (3, 4), "tanh", normalization=normalization)
    problem = problem_of(model, IMAGES)
    start = first_state(problem)
    assert start.model_state == ()
    loss_fn = train.loss_of(problem, start)
    step_fn = train.make_step(loss_fn, problem.batch_fn, problem.optimizer)
    by_loss, _, alone = train.make_loop(step_fn)(start, {}, 4)
    by_problem, _, series = train.make_loop(train.problem_step(problem))(start, {}, 4)
    np.testing.assert_allclose(alone["loss"], series["loss"], rtol=1e-12)
    for found, expected in zip(*map(jax.tree.leaves, (by_loss.params, by_problem.params)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


class Dropped(nn.Module):
    """Nothing but dropout: its logits for inputs of one are the mask."""

    @nn.compact
    def __call__(self, x, train):
        scaled = x * self.param("scale", nn.initializers.ones, x.shape[1:], x.dtype)[None]
        return nn.Dropout(0.25, deterministic=not train)(scaled)


def masks(seed, steps):
    """The masks that a problem with this key draws at some steps."""
    problem = problem_of(models.linen(Dropped(), **MODES), np.ones((60, 3)), key=jax.random.key(seed))
    objective, state = jax.jit(train.make_objective(problem)), first_state(problem)
    at = [jnp.asarray(step, jnp.int32) for step in steps]
    return [np.asarray(objective(state.params, (), problem.train, step)[1][1]) for step in at], problem


def test_masks_of_dropout_differ_by_step_and_key_and_are_the_same_again(x64):
    (first, second, later), problem = masks(0, (0, 1, 50))
    (again, _, _), _ = masks(0, (0, 1, 50))
    (other,), _ = masks(1, (0,))
    np.testing.assert_array_equal(first, again)
    for mask in (second, later, other):
        assert 0.2 < (mask != first).mean() < 0.6  # 2 · 0.25 · 0.75 of 180
    kept = np.stack([first, second, later, other])
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.75], rtol=1e-6)
    assert (kept == 0).mean() == pytest.approx(0.25, abs=0.05)
    state = first_state(problem)
    ones = train.frozen(problem, state)(state.params, problem.train.inputs)
    np.testing.assert_array_equal(ones, np.ones((60, 3)))  # nothing is dropped, nothing is scaled


def test_the_state_is_the_same_to_the_bit_in_chunks_and_in_evaluation_it_is_fixed(float64):
    model = models.mlp(3, (7, 5), "tanh", "updated", True, normalization="batch", dropout=0.3)

    def run(chunks, seed=1):
        problem = problem_of(model, POINTS, key=jax.random.key(seed))  # functions made anew, as by a resume
        state, loop = first_state(problem), train.make_loop(train.problem_step(problem))
        for num_steps in chunks:
            state, _, _ = loop(state, {}, num_steps)
        return problem, state

    problem, whole = run([9])
    for chunks in ([4, 5], [1, 7, 1]):
        jax.tree.map(np.testing.assert_array_equal, run(chunks)[1], whole)
    _, other = run([9], seed=2)
    assert not np.array_equal(other.params["Dense_0"]["kernel"], whole.params["Dense_0"]["kernel"])
    apply_fn, inputs = jax.jit(train.frozen(problem, whole)), problem.train.inputs
    np.testing.assert_array_equal(apply_fn(whole.params, inputs), apply_fn(whole.params, inputs))
    np.testing.assert_allclose(apply_fn(whole.params, inputs[:1]), apply_fn(whole.params, inputs)[:1])


def test_a_run_with_statistics_and_dropout_goes_on_after_a_kill_with_the_same_bits(
    float64, same_bits_after_kills
):
    config = tiny.get_config()
    config.update(num_steps=30, steps_per_chunk=10)
    with config.unlocked():
        config.model.update(normalization="batch", dropout=0.2)
        config.optimizer.momentum = 0.9
        config.probes = dict(
            evaluation=dict(every=10, batch_size=7), exact=dict(name="hessian", every=15, num=1, tol=1e-3)
        )
    same_bits_after_kills(config)


class Defaults(nn.Module):
    """Evaluation is its default, as usual in flax."""

    is_frozen: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=self.is_frozen or not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(x))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_statistics_that_no_training_moves_are_refused(is_frozen):
    modes = dict(training={"train": True}, evaluation={"train": False}) if is_frozen else {}
    model = models.linen(Defaults(is_frozen), **modes)
    with pytest.raises(ValueError, match="statistics do not move in training: say by training=dict"):
        problem = problem_of(model, POINTS)
        train.make_loop(train.problem_step(problem))(first_state(problem), {}, 3)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert models.linen(nn.Dense(3)).train(params, (), jnp.ones((4, 2)), KEY)[1] == ()


@pytest.mark.parametrize("kind", ["statistics", "any state"])
def test_a_loss_that_cannot_move_a_state_is_refused_in_words(float64, kind):
    problem = problem_of(NETWORKS["mlp"][0], POINTS)
    state = first_state(problem)
    if kind == "any state":
        state = state._replace(model_state={"count": jnp.zeros((), jnp.int32)})
    loss_fn = train.loss_of(problem, state)
    step_fn = train.make_step(loss_fn, problem.batch_fn, problem.optimizer)
    with pytest.raises(ValueError, match=r"model_state holds statistics.*train a Problem") as error:
        train.make_loop(step_fn)(state, {}, 3)
    assert "\n" not in str(error.value).split("-----")[0].strip()
