"""Networks of other libraries as a Model, by a recipe of two lines each; plain functions, regression."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from analysis import operators
from analysis.linear_maps import dense
from dlf import data, losses, models, schedules, train
from dlf.types import Model

KEY, RATE = jax.random.key(0), 0.2


def problem_of(model, **settings):
    examples = data.spiral(examples_per_class=10, num_turns=0.5).train
    gamma = schedules.triangular(3, amplitude=5.0, period=6)
    return train.make_problem(model, losses.cross_entropy, gamma, optax.sgd(RATE), examples, **settings)


def trained(problem, num_steps=5):
    params, model_state = problem.model.init(KEY, problem.train.inputs)
    state = train.init_state(params, problem.optimizer, model_state)
    return train.make_loop(train.problem_step(problem))(state, {}, num_steps)


class Nnx(nnx.Module):
    """A user's own module of nnx with all that differs between training and evaluation."""

    def __init__(self, rngs, share):
        self.first, self.last = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(share, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def test_a_module_of_nnx_is_a_model_by_split_and_merge():
    net = nnx.Sequential(nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    # the recipe
    graph, params = nnx.split(net)
    model = models.stateless(
        lambda key, inputs: params, lambda params, inputs: nnx.merge(graph, params)(inputs)
    )

    problem = problem_of(model)
    state, _, series = trained(problem)
    expected = by_hand(nnx.merge(graph, params), problem)
    np.testing.assert_allclose(series["loss"], expected, rtol=1e-5)
    assert series["loss"][4] < series["loss"][0]
    matvec = operators.hessian(train.loss_of(problem, state), state.params, problem.train, state.step)
    check_dense(matvec, problem, state)


def nnx_model(share=0.0):
    # the recipe
    def pieces(key):
        return nnx.split(Nnx(nnx.Rngs(key), share), nnx.Param, nnx.BatchStat, ...)

    graph, _, _, rest = pieces(KEY)

    def call(params, statistics, inputs, key=None):
        net = nnx.merge(graph, params, statistics, rest, copy=True)
        if key is None:
            net.eval()
            return net(inputs)
        net.train()
        nnx.reseed(net, default=key)
        return net(inputs), nnx.state(net, nnx.BatchStat)

    return Model(lambda key, inputs: pieces(key)[1:3], call, call)


def test_batch_statistics_of_nnx_move_as_in_its_own_loop():
    problem = problem_of(nnx_model())
    state, _, series = trained(problem)
    net = Nnx(nnx.Rngs(KEY), 0.0)
    np.testing.assert_allclose(series["loss"], by_hand(net, problem), rtol=1e-5)
    _, after, statistics, _ = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
    assert float(jnp.abs(net.norm.var[...] - 1).max()) > 0.1  # it has moved
    for found, expected in ((state.params, after), (state.model_state, statistics)):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    net.eval()
    apply_fn, inputs = train.frozen(problem, state), problem.train.inputs
    np.testing.assert_allclose(apply_fn(state.params, inputs), net(inputs), rtol=1e-4, atol=1e-6)


def test_what_nnx_drops_depends_on_the_key_alone_and_not_in_evaluation():
    model, inputs = nnx_model(share=0.3), problem_of(nnx_model()).train.inputs
    variables = model.init(KEY, inputs)
    one, same, other = (model.train(*variables, inputs, jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any(axis=1).mean() > 0.9
    kept = nnx_model().apply(*variables, inputs)
    np.testing.assert_array_equal(model.apply(*variables, inputs), kept)
    losses_of_seeds = [trained(problem_of(model, key=jax.random.key(s)))[2]["loss"] for s in (1, 1, 2)]
    assert (losses_of_seeds[0] == losses_of_seeds[1]).all() and losses_of_seeds[0][0] != losses_of_seeds[2][0]


def by_hand(net, problem, num_steps=5):
    """Train a module of nnx as its documentation does; return the losses."""
    optimizer, (inputs, labels), found = nnx.Optimizer(net, optax.sgd(RATE), wrt=nnx.Param), problem.train, []
    net.train()
    for step in range(num_steps):
        weights = problem.schedule(jnp.asarray(step, jnp.int32))[labels]

        def loss_fn(net, weights=weights):
            values = optax.softmax_cross_entropy_with_integer_labels(net(inputs), labels)
            return (weights * values).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(net)
        optimizer.update(net, grads)
        found.append(float(loss))
    return found


def check_dense(matvec, problem, state):
    """Compare products with jax.hessian of the flat parameters."""
    flat, unravel = ravel_pytree(state.params)
    loss_fn = train.loss_of(problem, state)
    expected = jax.jit(jax.hessian(lambda p: loss_fn(unravel(p), problem.train, state.step)))(flat)
    np.testing.assert_allclose(dense(matvec, state.params), expected, rtol=1e-3, atol=1e-5)


def test_a_module_of_equinox_is_a_model_by_partition_and_combine():
    net = eqx.nn.MLP(2, 3, width_size=8, depth=1, key=KEY)
    # the recipe
    params, static = eqx.partition(net, eqx.is_inexact_array)
    model = models.stateless(
        lambda key, inputs: params, lambda params, inputs: jax.vmap(eqx.combine(params, static))(inputs)
    )

    problem = problem_of(model)
    state, _, series = trained(problem)
    assert series["loss"][4] < series["loss"][0]
    matvec = operators.hessian(train.loss_of(problem, state), state.params, problem.train, state.step)
    check_dense(matvec, problem, state)
