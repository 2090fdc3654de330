"""Optimizers by name, the rate as a quantity of the run, and chains around them, against optax's own loop."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf import data, losses, models, schedules, train
from dlf.optimizers import as_optimizer, make_optimizer
from dlf.rates import check_rate

LINEAR = dict(name="linear_schedule", init_value=0.1, end_value=0.4, transition_steps=4)
COSINE = dict(name="cosine_decay_schedule", init_value=0.3, decay_steps=8)
RATES = {
    "cosine": (COSINE, lambda: optax.cosine_decay_schedule(0.3, 8)),
    "warm-up": (
        dict(name="warmup_exponential_decay_schedule", init_value=0.0, peak_value=0.2, warmup_steps=3,
             transition_steps=4, decay_rate=0.5),
        lambda: optax.warmup_exponential_decay_schedule(0.0, 0.2, 3, 4, 0.5),
    ),
    "steps, whose boundaries JSON makes words": (
        dict(name="piecewise_constant_schedule", init_value=0.4, boundaries_and_scales={"3": 0.5, "6": 0.1}),
        lambda: optax.piecewise_constant_schedule(0.4, {3: 0.5, 6: 0.1}),
    ),
    "joined": (
        dict(name="join_schedules", boundaries=(4,),
             schedules=(LINEAR, COSINE)),
        lambda: optax.join_schedules(
            [optax.linear_schedule(0.1, 0.4, 4), optax.cosine_decay_schedule(0.3, 8)], [4]
        ),
    ),
    "a function": (lambda step: 0.1 / (1 + step), lambda: lambda step: 0.1 / (1 + step)),
}  # fmt: skip


def loss(params, batch, step):
    return jnp.sum(params**4)


def descend(optimizer, num_steps=10):
    """The parameters after every step of optax's own loop."""
    params, found = jnp.asarray([1.0, -0.5]), []
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(jax.grad(loss)(params, None, 0), state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return np.stack(found)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("builder", ["sgd", "adam"])
def test_a_schedule_of_the_rate_gives_what_it_gives_in_optax(x64, name, builder):
    given, expected = RATES[name]
    optimizer, schedule = make_optimizer(builder, given), expected()
    rtol = 1e-6  # optax divides its counts in float32
    rates = [optimizer.rate(jnp.asarray(step)) for step in range(10)]
    with jax.numpy_dtype_promotion("standard"):  # optax divides integer steps, and Adam's count
        theirs = [schedule(jnp.asarray(step)) for step in range(10)]
        np.testing.assert_allclose(rates, theirs, rtol=rtol, atol=1e-8)
        path = descend(getattr(optax, builder)(schedule))
        np.testing.assert_allclose(descend(optimizer), path, rtol=10 * rtol, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "nesterov": True}])
def test_a_constant_rate_has_the_bits_of_optax(x64, settings):
    np.testing.assert_array_equal(
        descend(make_optimizer("sgd", 0.1, **settings)), descend(optax.sgd(0.1, **settings))
    )


def test_transformations_before_an_optimizer_are_those_of_a_chain(float64):
    before = (
        dict(name="clip_by_global_norm", max_norm=0.5),
        dict(name="add_decayed_weights", weight_decay=0.1),
    )
    chain = optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.1), optax.sgd(0.2))
    np.testing.assert_array_equal(descend(make_optimizer("sgd", 0.2, before=before)), descend(chain))

    def heavy_ball(learning_rate, decay):
        return optax.chain(optax.trace(decay), optax.scale(-learning_rate))

    own = make_optimizer(heavy_ball, 0.2, decay=0.9)
    np.testing.assert_array_equal(descend(own), descend(optax.sgd(0.2, momentum=0.9)))


def problem_with(optimizer):
    dataset = data.spiral(examples_per_class=4)
    model = models.mlp(3, (4,), activation="tanh", initialization="updated", use_bias=True)
    gamma = schedules.constant(3)
    problem = train.make_problem(model, losses.cross_entropy, gamma, optimizer, dataset.train)
    state = train.init_state(model.init(jax.random.key(0), dataset.train.inputs)[0], problem.optimizer)
    return problem, state


def test_a_step_records_the_rate_and_an_object_of_optax_has_none(x64):
    problem, state = problem_with(dict(name="sgd", learning_rate=COSINE))
    _, _, series = train.make_loop(train.problem_step(problem))(state, {}, 9)
    with jax.numpy_dtype_promotion("standard"):
        expected = [optax.cosine_decay_schedule(0.3, 8)(step) for step in range(9)]
    np.testing.assert_allclose(series["learning_rate"], expected, rtol=1e-6, atol=1e-9)
    problem, state = problem_with(optax.chain(optax.clip(1.0), optax.sgd(0.1)))
    _, _, series = train.make_loop(train.problem_step(problem))(state, {}, 9)
    assert "learning_rate" not in series and series["loss"][-1] < series["loss"][0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(name="sgd", learning_rate=dict(name="cosine")), "unknown schedule of the learning rate 'cos"),
        (dict(name="sgd", learning_rate=dict(init_value=0.1)), "unknown schedule of the learning rate None"),
        (dict(name="sgd", learning_rate=-1.0), "must be positive"),
        (dict(name="sgd", learning_rate=1e308), "does not fit float32"),
        (dict(name="sgd", learning_rate=1e-320), "does not fit float32"),
        (dict(name="sgdd", learning_rate=0.1), "unknown optimizer 'sgdd'"),
        (dict(name="sgd", learning_rate=0.1, before=(dict(name="tree"),)), "'tree' is no transformation"),
        (dict(name="sgd", learning_rate=0.1, before=(COSINE,)), "is no transformation"),
        (dict(name=lambda learning_rate: 3, learning_rate=0.1), "must be a transformation of optax, got int"),
    ],
)  # fmt: skip
def test_an_impossible_optimizer_is_refused(given, words):
    with jax.enable_x64(False), pytest.raises(ValueError, match=words):
        as_optimizer(given)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lambda step: 0.1 - step / 50, "is -0.02 at step 6"),
        (lambda step: 1 / (step - 3), "at step"),
        (lambda step: 0 * step, "is 0 at every step"),
        (lambda step: jnp.ones(2) + step, "one number a step"),
    ],
)
def test_a_rate_that_cannot_be_is_refused_before_the_run(float64, schedule, words):
    with pytest.raises(ValueError, match=words):
        check_rate(make_optimizer("sgd", schedule), 10)
    check_rate(make_optimizer("sgd", dict(name="linear_schedule", init_value=0.0, end_value=1.0,
                                          transition_steps=5)), 10)  # fmt: skip


@pytest.mark.parametrize("power", [1, 0.5, 2])
def test_rates_that_end_at_zero_are_taken_whatever_the_length(x64, power):
    for num_steps in (3, 7, 9, 10, 49, 59, 60, 100, 301):
        decay = dict(init_value=0.5, end_value=0.0, power=power, transition_steps=num_steps)
        check_rate(make_optimizer("sgd", dict(name="polynomial_schedule", **decay)), num_steps + 3)


@pytest.mark.parametrize(
    "before",
    [
        dict(name="scale", step_size=-1.0),
        dict(name="adaptive_grad_clip", clipping=-0.1),
        dict(name="clip_by_block_rms", threshold=-1.0),
        dict(name="trace", decay=2.0),
        dict(name="add_decayed_weights", weight_decay=-0.1),
        dict(name="ema", decay=1.5),
    ],
    ids=lambda of: of["name"],
)
def test_transformations_that_climb_or_grow_are_refused(before):
    with pytest.raises(ValueError, match=r"before: .* must be (positive|at least 0 and below 1), got"):
        make_optimizer("sgd", 0.5, before=(before,))


@pytest.mark.parametrize("change", [lambda g: g[None], lambda g: g.ravel()[:1]])
def test_updates_of_another_shape_are_refused(change):
    def own(learning_rate):
        return optax.stateless(lambda updates, params: jax.tree.map(change, updates))

    problem, state = problem_with(dict(name=own, learning_rate=0.1))
    with pytest.raises(ValueError, match="updates of the structure and shapes of the parameters"):
        train.problem_step(problem)(state)


def test_a_rate_of_whole_numbers_or_of_half_precision_is_taken_in_the_working_precision(x64):
    for rate in (lambda step: 1, lambda step: jnp.asarray(1, "bfloat16"), lambda step: step**0):
        problem, state = problem_with(dict(name="sgd", learning_rate=rate))
        found = train.make_loop(train.problem_step(problem))(state, {}, 2)[2]["learning_rate"]
        assert found.tolist() == [1, 1] and found.dtype == jnp.result_type(float)


def test_updates_and_states_of_another_kind_are_refused():
    def growing(grads, state, params):
        return grads, (jnp.append(state[0], 0),)

    def turning(grads, state, params):
        return jax.tree.map(lambda g: jax.lax.complex(g, g), grads), state

    for update, words in ((growing, "must return a state of the"), (turning, "complex updates")):
        own = optax.GradientTransformation(lambda params: (jnp.zeros(1),), update)
        problem, state = problem_with(own)
        with pytest.raises(ValueError, match=words):
            train.make_loop(train.problem_step(problem))(state, {}, 2)


# what make_problem is given, outside of the shape checks of these tests: the words that it is refused with
REFUSED = {
    "optimizer='sgd'": "optimizer must be dict",
    "train=dataset": "train must be a Batch, got Dataset",
    "model=abs": "model must be a Model",
    "tests=dataset.test": "tests must be a Mapping",
    "optimizer=sgd | dict(learning_rate=True)": "must be a number or a schedule",
    "optimizer=sgd | dict(learning_rate=None)": "must be a number or a schedule, got None",
    "optimizer=sgd | dict(learning_rate=1j)": "must be a number or a schedule, got 1j",
    "optimizer=sgd | dict(learning_rate=dict(name='constant_schedule', value=1e-320))": "is 0 at every step",
    "optimizer=sgd | dict(learning_rate=dict(name='cosine_decay_schedule', init_value=0.1, decay_steps=9,"
    " alpha=-3.0))": "always that: it is -0.3",
    "optimizer=sgd | dict(learning_rate=dict(name='join_schedules', schedules=(0.1,), boundaries=()))": (
        "schedules must be functions or dict"
    ),
    "tests={'far': dataset.test._replace(labels=dataset.test.labels[:5])}": "far: need a label for each",
    "tests={'far': dataset.test._replace(inputs=dataset.test.inputs[:, :1])}": "of train, [2], got [1]",
    "tests={'far': dataset.test._replace(labels=None)}": "far has no labels, which tell what is right",
    "train=dataset.train._replace(labels=[0, 1])": "labels must be an array",
    "train=dataset.train._replace(labels=None)": "labels must be integers",
    "optimizer=sgd | dict(learning_rate=jnp.ones(2))": "must be a number or a schedule",
    "optimizer=sgd | dict(learning_rate=lambda step: 0 * step - 0.5)": "is -0.5 at step 0",
    "optimizer=sgd | dict(before=(dict(name='sgd'),))": "'sgd' takes a learning rate, of which there is one",
    "optimizer=sgd | dict(before=(dict(name='scale_by_learning_rate'),))": "takes a learning rate",
    "optimizer=sgd | dict(learning_rate=lambda step: 0.1 + 0j)": "must be a real number, got complex64",
    "optimizer=sgd | dict(learning_rate=lambda step: step > 3)": "must be a real number, got bool",
    "optimizer=sgd | dict(learning_rate=lambda step: 'x')": "must be a number, got str",
    "optimizer=sgd | dict(learning_rate=dict(name=lambda: 1))": "a function step -> rate, got int",
    "schedule=None": "must be a function step -> weights, got NoneType",
    "schedule=lambda step: 1.0": "a real floating array [classes] of 32 or 64 bits",
    "schedule=lambda step: (jnp.ones(3),)": "one for each class, got tuple",
    "schedule=lambda step: jnp.ones(3, 'bfloat16')": "of 32 or 64 bits, one for each class, got bfloat16[3]",
    "tests={'far': tuple(dataset.test)}": "tests must be Batches with examples",
    "tests={'so far': dataset.test}": "under names such as 'far', got 'so far'",
    "train=dataset.train._replace(labels=dataset.train.labels.at[1].set(7))": "labels must be from 0",
    "tests={'far': dataset.test._replace(labels=dataset.test.labels.at[1].set(-1))}": "labels must be from 0",
    "tests={3: dataset.test}": "under names such as 'far', got 3",
    "tests={'far': Batch(dataset.test.inputs[:0], dataset.test.labels[:0])}": "far is empty",
    "optimizer=sgd | dict(before=dict(name='clip'))": "before must be a tuple",
    "weighted_loss=lambda f, y, w: losses.cross_entropy(f, y, w**2)": "not linear in its weights",
}
TRIED = """
import sys, jax.numpy as jnp
from dlf import data, losses, models, schedules, train
from dlf.types import Batch
dataset, sgd = data.spiral(examples_per_class=4), dict(name="sgd", learning_rate=0.1)
sound = dict(model=models.mlp(3, (4,), activation="tanh", initialization="updated", use_bias=True),
             train=dataset.train, weighted_loss=losses.cross_entropy, schedule=schedules.constant(3),
             optimizer=sgd)
train.make_problem(**sound)
for given in sys.argv[1:]:
    try:
        train.make_problem(**sound | eval(f"dict({given})"))
    except ValueError as error:
        print(error)
    else:
        print("taken")
"""


def test_what_makes_no_problem_is_refused_in_one_line():
    command = [sys.executable, "-c", TRIED, *REFUSED]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSED), done.stderr
    for line, words in zip(lines, REFUSED.values(), strict=True):
        assert words in line


def test_a_loss_that_is_not_linear_is_told_where_it_is_built(float64):
    def squared(logits, labels, weights):
        return losses.cross_entropy(logits, labels, weights**2)

    for make in (
        lambda: losses.make_loss(lambda w, x: x @ w, squared, schedules.constant(3)),
        lambda: losses.make_class_losses(lambda w, x: x @ w, squared, 3),
    ):
        with pytest.raises(ValueError, match="not linear in its weights"):
            make()
