"""Evaluation against one big batch, recomputed statistics by hand, batch sharpness by dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis import probes
from analysis.probes.evaluations import recomputed_state
from dlf import losses, models, recording, schedules, train
from dlf.types import Batch, Model

KEY, RNG = jax.random.key(0), np.random.RandomState(0)
TRAIN, VALIDATION, SHIFTED = RNG.randn(60, 2), RNG.randn(23, 2), 1 + RNG.randn(10, 2)
LABELS = {"validation": RNG.randint(0, 3, 23), "shifted": RNG.randint(0, 2, 10)}  # the latter without class 2
WEIGHTS = schedules.triangular(3, amplitude=5.0, period=6)


def batch(inputs, labels):
    return Batch(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32))


def a_problem(loss=losses.cross_entropy, hidden_widths=(7, 5), size=20, **settings):
    """A network with batch norm, and its state after two steps, of which each sees another part."""
    model = models.mlp(3, hidden_widths, "tanh", "updated", True, normalization="batch", **settings)
    train_set = batch(TRAIN, np.arange(60) % 3)
    tests = {
        "validation": batch(VALIDATION, LABELS["validation"]),
        "shifted": batch(SHIFTED, LABELS["shifted"]),
    }

    def batch_fn(step):
        first = step * size % 60
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), train_set)

    sgd = dict(name="sgd", learning_rate=0.5)
    problem = train.make_problem(
        model, loss, WEIGHTS, sgd, train_set, batch_fn=batch_fn, tests=tests, key=KEY
    )
    params, model_state = jax.jit(model.init)(KEY, train_set.inputs)
    state = train.init_state(params, problem.optimizer, model_state)
    return problem, train.make_loop(train.problem_step(problem))(state, {}, 2)[0]


def measured(probe, state):
    _, rows = jax.jit(probe.measure)(probe.init(state), state)
    assert set(rows) == set(probe.series)
    assert recording.probe_series("probe", probe, state).keys() == rows.keys()
    return jax.tree.map(np.asarray, rows)


def losses_by_hand(loss, logits, labels):
    if loss is losses.cross_entropy:
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return ((logits - np.eye(3)[labels]) ** 2).sum(axis=1)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dmse1])
def test_evaluation_in_parts_of_any_size_is_that_of_one_big_batch(x64, loss):
    problem, state = a_problem(loss)
    whole = measured(probes.evaluation(problem, every=1), state)
    apply_fn, tolerance = train.frozen(problem, state), dict(rtol=1e-12) if x64 else dict(rtol=1e-5)
    for name, examples in problem.tests.items():
        logits, labels = np.asarray(apply_fn(state.params, examples.inputs)), LABELS[name]
        right = logits.argmax(axis=1) == labels
        expected = losses_by_hand(loss, logits, labels).mean()
        np.testing.assert_allclose(whole[f"{name}_loss"], expected, **tolerance)
        np.testing.assert_allclose(whole[f"{name}_accuracy"], right.mean(), **tolerance)
        for label in set(labels):
            found = whole[f"{name}_class_accuracy"][label]
            np.testing.assert_allclose(found, right[labels == label].mean(), **tolerance)
    assert np.isnan(whole["shifted_class_accuracy"]).tolist() == [False, False, True]
    assert np.isfinite(whole["validation_class_accuracy"]).all() and 0 < whole["validation_accuracy"] < 1
    for batch_size in (1, 7, 10, 12, 40):  # ragged, whole, of one set or both
        rows = measured(probes.evaluation(problem, every=1, batch_size=batch_size), state)
        for name in whole:
            np.testing.assert_allclose(rows[name], whole[name], **tolerance, err_msg=f"{name}, {batch_size}")
            assert rows[name].dtype == problem.train.inputs.dtype
    simple = measured(probes.validation(problem, every=1), state)
    np.testing.assert_allclose(simple["validation_accuracy"], whole["validation_accuracy"], **tolerance)


def test_evaluation_needs_test_sets_and_a_batch_size_that_can_be():
    problem, _ = a_problem()
    with pytest.raises(ValueError, match="there is no test set"):
        probes.evaluation(problem._replace(tests={}), every=1)
    with pytest.raises(ValueError, match="there is no test set 'validation'"):
        probes.validation(problem._replace(tests={"shifted": problem.tests["shifted"]}), every=1)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be from 1"):
            probes.evaluation(problem, every=1, batch_size=batch_size)


def by_hand(params, x):
    """Mean and variance of both hidden layers."""
    params, found = jax.tree.map(np.asarray, params), {}
    for depth in range(2):
        layer, norm = params[f"Dense_{depth}"], params[f"BatchNorm_{depth}"]
        x = x @ layer["kernel"] + layer["bias"]
        found[f"BatchNorm_{depth}"] = x.mean(axis=0), x.var(axis=0)
        x = np.tanh((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"])
    return found


def test_recomputed_statistics_are_those_of_the_training_set_by_hand(x64):
    problem, state = a_problem()
    found = jax.jit(lambda state: recomputed_state(problem, state))(state)
    tolerance = dict(rtol=1e-10, atol=1e-12) if x64 else dict(rtol=1e-3, atol=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(state.model_state)
    for name, (mean, var) in by_hand(state.params, TRAIN).items():
        statistics = found["batch_stats"][name]
        np.testing.assert_allclose(statistics["mean"], mean, **tolerance, err_msg=name)
        np.testing.assert_allclose(statistics["var"], var, **tolerance, err_msg=name)
        assert statistics["var"].dtype == problem.train.inputs.dtype
        assert np.abs(state.model_state["batch_stats"][name]["var"] - var).max() > 0.01  # the running ones


def test_truth_values_and_half_precision_of_an_own_loss_are_counted_and_summed_as_numbers(x64):
    def own(logits, labels, weights):
        return (1_000 * losses.cross_entropy(logits, labels, weights)).astype("float16")

    def count(logits, labels):
        return logits.argmax(axis=1).astype(labels.dtype) == labels

    own.are_right = count
    problem, state = a_problem()
    problem = problem._replace(weighted_loss=own)
    for batch_size in (None, 7):
        rows = measured(probes.evaluation(problem, every=1, batch_size=batch_size), state)
        logits = np.asarray(train.frozen(problem, state)(state.params, problem.tests["validation"].inputs))
        right, labels = logits.argmax(axis=1) == LABELS["validation"], LABELS["validation"]
        expected = [right[labels == label].mean() for label in range(3)]
        np.testing.assert_allclose(rows["validation_class_accuracy"], expected, rtol=1e-6)
        np.testing.assert_allclose(rows["validation_accuracy"], right.mean(), rtol=1e-6)
        mean = 1_000 * losses_by_hand(losses.cross_entropy, logits, labels).mean()
        np.testing.assert_allclose(rows["validation_loss"], mean, rtol=2e-3)  # of half precision
        assert rows["validation_loss"].dtype == jnp.result_type(float)
    own.are_right = lambda logits, labels: jnp.mean(count(logits, labels))
    with pytest.raises(ValueError, match="a truth value for each example, got float"):
        measured(probes.evaluation(problem, every=1), state)


def test_labels_of_a_short_type_count_more_classes_than_they_can_name():
    labels = np.arange(600) % 200
    few = Batch(jnp.ones((600, 1)), jnp.asarray(labels, jnp.uint8))
    model = models.stateless(lambda key, x: jnp.zeros((1, 300)), lambda params, x: x @ params)
    problem = train.make_problem(
        model, losses.cross_entropy, schedules.constant(300), dict(name="sgd", learning_rate=0.1), few,
        tests={"far": few},
    )  # fmt: skip
    state = train.init_state(jnp.zeros((1, 300)), problem.optimizer)
    rows = measured(probes.evaluation(problem, every=1), state)
    assert np.isfinite(rows["far_class_accuracy"]).tolist() == [label < 200 for label in range(300)]
    assert rows["far_class_accuracy"][:3].tolist() == [1, 0, 0]


def test_parts_of_a_network_that_couples_its_examples_are_refused_by_every_probe():
    problem, _ = a_problem()
    alone = problem.model.apply

    def coupled(params, model_state, x):
        return alone(params, model_state, x - x.mean(0)[None])

    problem = problem._replace(model=problem.model._replace(apply=coupled))
    pairs, first = dict(every=1, num=2, tol=1e-3), dict(every=1, num_examples=10)
    settings = dict(hessian=pairs, tracker=pairs, forecast=pairs, stability=dict(every=1, tol=1e-3),
                    ntk=first | dict(num=1), kernel=first, evaluation=dict(every=1))  # fmt: skip
    for name, given in settings.items():
        getattr(probes, name)(problem, **given)
        with pytest.raises(ValueError, match="couples or tells apart the examples"):
            getattr(probes, name)(problem, **given, batch_size=5)


def test_recomputed_statistics_do_not_depend_on_the_running_ones_and_leave_counters_alone(float64):
    def moved(params, model_state, inputs, key):
        mean = 0.75 * model_state["mean"] + 0.25 * inputs.mean(axis=0)
        return inputs - mean[None], {"mean": mean, "count": model_state["count"] + 1}

    def logits(params, model_state, inputs):
        return inputs - model_state["mean"][None]

    first = {"mean": jnp.asarray([3.0, -100.0]), "count": jnp.asarray(7, jnp.int32)}
    model = Model(lambda key, inputs: (jnp.ones(1), first), logits, moved)
    problem, _ = a_problem()
    problem = problem._replace(model=model)
    found = recomputed_state(problem, train.init_state(jnp.ones(1), problem.optimizer, first))
    np.testing.assert_allclose(found["mean"], TRAIN.mean(axis=0), rtol=1e-12)
    assert found["count"] == 7 and found["count"].dtype == jnp.int32


def test_an_evaluation_may_recompute_the_statistics_first(float64):
    problem, state = a_problem()
    running, exact = (
        measured(probes.evaluation(problem, every=1, recomputed=recomputed), state)
        for recomputed in (False, True)
    )
    of_layers = by_hand(state.params, TRAIN)
    statistics = {name: {"mean": jnp.asarray(m), "var": jnp.asarray(v)} for name, (m, v) in of_layers.items()}
    logits = problem.model.apply(state.params, {"batch_stats": statistics}, jnp.asarray(VALIDATION))
    expected = losses_by_hand(losses.cross_entropy, np.asarray(logits), LABELS["validation"]).mean()
    np.testing.assert_allclose(exact["validation_loss"], expected, rtol=1e-9)
    assert abs(running["validation_loss"] - expected) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_batch_sharpness_is_that_of_dense_matrices_with_its_standard_error(float64, dropout):
    problem, state = a_problem(hidden_widths=(4,), size=15, dropout=dropout)
    flat, unravel = ravel_pytree(state.params)
    weights, found = WEIGHTS(state.step), []
    drawn = jax.random.fold_in(KEY, train._TRAINING)

    @jax.jit
    def derivatives(examples, step):  # each batch has the masks of its own step, all the weights of this one
        def loss(p):
            key = jax.random.fold_in(drawn, step)
            logits, _ = problem.model.train(unravel(p), state.model_state, examples.inputs, key)
            values = jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(15), examples.labels]
            return (weights[examples.labels] * values).mean()

        return jax.grad(loss)(flat), jax.hessian(loss)(flat)

    for number in range(4):
        examples = problem.batch_fn(state.step + number)
        g, h = map(np.asarray, derivatives(examples, state.step + number))
        found.append(g @ h @ g / (g @ g))
    rows = measured(probes.batch_sharpness(problem, every=1, num_batches=4), state)
    np.testing.assert_allclose(rows["batch_sharpness"], np.mean(found), rtol=1e-9)
    np.testing.assert_allclose(rows["batch_sharpness_error"], np.std(found, ddof=1) / 2, rtol=1e-9)
    assert np.std(found) > 1e-3
    alone = measured(probes.batch_sharpness(problem, every=1, num_batches=1), state)
    np.testing.assert_allclose(alone["batch_sharpness"], found[0], rtol=1e-9)
    assert np.isnan(alone["batch_sharpness_error"])
