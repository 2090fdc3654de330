"""The loop against an independent NumPy implementation, and its promises about bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import probes
from dlf import data, losses, models, optimizers, recording, schedules, train
from dlf.types import Probe

SCHEDULE = dict(amplitude=70.0, period=60, hold_step=True)


def setup(use_bias=True, width=100, learning_rate=1.0, **schedule):
    """The spiral run as functions: (state, step_fn, problem)."""
    dataset = data.spiral()
    model = models.mlp(3, (width,), activation="relu", initialization="original", use_bias=use_bias)
    gamma = schedules.triangular(3, **(SCHEDULE | schedule))
    sgd, key = dict(name="sgd", learning_rate=learning_rate), jax.random.key(1)
    problem = train.make_problem(model, losses.cross_entropy, gamma, sgd, dataset.train, key=key)
    params, _ = jax.jit(model.init)(jax.random.key(0), dataset.train.inputs)
    return train.init_state(params, problem.optimizer), train.problem_step(problem), problem


def numpy_run(params, num_steps, amplitude, period):
    """Plain NumPy gradient descent with hand-written derivatives and a stateful class counter."""
    x, y = (np.asarray(part) for part in data.spiral().train)
    (w1, b1), (w2, b2) = (
        (np.array(params[f"Dense_{depth}"]["kernel"]), np.array(params[f"Dense_{depth}"]["bias"]))
        for depth in (0, 1)
    )
    emphasised, tau, rows = 0, 0, []
    for _ in range(num_steps):
        rising = tau < period / 2
        w = np.ones(3)
        w[emphasised] += 2 * (amplitude - 1) * (tau if rising else period - tau) / period
        gamma = 3 * w / w.sum()
        h = x @ w1 + b1
        a = np.maximum(h, 0)
        f = a @ w2 + b2
        p = np.exp(f - f.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        log_p = np.log(p[np.arange(300), y])
        rows.append([(-gamma[y] * log_p).mean(), -log_p.mean(), (f.argmax(1) == y).mean(), *gamma])
        d = (p - np.eye(3)[y]) * gamma[y][:, None] / 300
        back = (d @ w2.T) * (h > 0)
        w2, b2 = w2 - a.T @ d, b2 - d.sum(0)
        w1, b1 = w1 - x.T @ back, b1 - back.sum(0)
        tau += 1
        if tau > period:
            tau, emphasised = 0, (emphasised + 1) % 3
    return np.array(rows)


def test_the_first_steps_are_those_of_an_independent_implementation(float64):
    state, step_fn, _ = setup(amplitude=5.0)
    _, _, series = train.make_loop(step_fn)(state, {}, 300)
    expected = numpy_run(state.params, 300, 5.0, 60)
    np.testing.assert_allclose(series["loss"], expected[:, 0], rtol=1e-9)  # rounding grows with steps
    np.testing.assert_allclose(series["static_loss"], expected[:, 1], rtol=1e-9)
    np.testing.assert_allclose(series["accuracy"], expected[:, 2], rtol=1e-12)
    np.testing.assert_allclose(series["class_weights"], expected[:, 3:], rtol=1e-12)
    np.testing.assert_array_equal(series["learning_rate"], np.ones(300))


def test_all_series_and_states_keep_the_working_precision(x64):
    state, step_fn, problem = setup(width=8)
    chosen = {
        "hessian": probes.hessian(problem, every=2, num=2, tol=1e-3),
        "ntk": probes.ntk(problem, every=1, num=2, num_examples=5),
    }
    dtype = jnp.dtype("float64" if x64 else "float32")
    after, _, series = train.make_loop(step_fn, chosen)(state, train.init_carries(chosen, state), 4)
    assert {rows.dtype for rows in series.values()} == {dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {dtype}
    assert after.step.dtype == jnp.int32 and after.step == 4


def test_a_row_holds_what_was_true_before_its_update(float64):
    state, step_fn, problem = setup(width=8)
    _, _, series = train.make_loop(step_fn)(state, {}, 3)
    loss_fn, advance = jax.jit(train.loss_of(problem, state)), jax.jit(lambda state: step_fn(state)[0])
    for step in range(3):
        loss = loss_fn(state.params, problem.train, state.step)
        np.testing.assert_allclose(series["loss"][step], loss)
        state = advance(state)


def measured(problem, hessian_every, ntk_every):
    return {
        "hessian": probes.hessian(problem, every=hessian_every, num=3, tol=1e-3),
        "ntk": probes.ntk(problem, every=ntk_every, num=3, num_examples=50),
    }


def run(loop, state, chosen, chunks):
    carries, parts = train.init_carries(chosen, state), []
    for num_steps in chunks:
        state, carries, series = loop(state, carries, num_steps)
        parts.append({name: np.asarray(rows) for name, rows in series.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_neither_the_chunk_length_nor_the_probe_spacing_changes_a_bit(x64):
    state, step_fn, problem = setup()
    chosen = measured(problem, hessian_every=5, ntk_every=1)
    loop = train.make_loop(step_fn, chosen)
    whole = run(loop, state, chosen, [128])
    for chunks in ([64, 64], [1, 63, 64]):
        for name, rows in run(loop, state, chosen, chunks).items():
            np.testing.assert_array_equal(rows, whole[name], err_msg=f"{name} in chunks {chunks}")
    alone = run(train.make_loop(step_fn), state, {}, [128])
    chosen = measured(problem, hessian_every=25, ntk_every=4)
    sparse = run(train.make_loop(step_fn, chosen), state, chosen, [128])
    for name, rows in alone.items():
        np.testing.assert_array_equal(whole[name], rows)
        np.testing.assert_array_equal(sparse[name], rows)
    for name, every in (("hessian_eigenvalues", 25), ("hessian_residuals", 25), ("ntk_eigenvalues", 4)):
        np.testing.assert_array_equal(whole[name][::every], sparse[name][::every])
        assert np.isnan(sparse[name][1:every]).all()
        assert np.isfinite(sparse[name][::every]).all()


def test_the_network_learns_and_without_biases_it_does_not(float64):
    final = {}
    for use_bias in (True, False):
        state, step_fn, _ = setup(use_bias=use_bias, period=5000)
        loop = train.make_loop(step_fn)
        _, _, series = loop(state, {}, 65_000)
        final[use_bias] = float(series["accuracy"][-1])
    assert final[True] > 0.9
    assert final[False] < 0.5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sgd", dict(momentum=0.9, nesterov=True)),
        ("adam", dict(b1=0.8)),
        ("rmsprop", dict(decay=0.9)),
        ("adamw", dict(weight_decay=0.1)),
    ],
)
def test_optimizers_are_those_of_optax(float64, name, settings):
    optimizer = optimizers.make_optimizer(name, learning_rate=0.1, **settings)
    reference = getattr(optax, name)(0.1, **settings)
    params = jnp.asarray([1.0, -2.0])
    state = train.init_state(params, optimizer)
    step_fn = train.make_step(lambda w, batch, step: jnp.sum(w**4), lambda step: None, optimizer)
    opt_state, update, step = reference.init(params), jax.jit(reference.update), jax.jit(step_fn)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int32 count
        for _ in range(5):
            state, _ = step(state)
            updates, opt_state = update(4 * params**3, opt_state, params)
            params = params + updates
    np.testing.assert_allclose(state.params, params, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "learning_rate", "message"),
    [
        ("sdg", 1.0, "unknown optimizer 'sdg': one of .*sgd"),
        ("sgd", 0.0, "positive"),
        ("sgd", -1.0, "positive"),
    ],
)
def test_impossible_optimizers_are_refused(name, learning_rate, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make_optimizer(name, learning_rate=learning_rate)


def test_the_learning_rate_may_be_traced_or_scheduled(float64):
    def final(learning_rate):
        optimizer = optimizers.make_optimizer("sgd", learning_rate=learning_rate)
        step_fn = train.make_step(lambda w, batch, step: jnp.sum(w**2), lambda step: None, optimizer)
        return step_fn(train.init_state(jnp.ones(1), optimizer))[0].params

    np.testing.assert_allclose(jax.vmap(final)(jnp.asarray([0.0, 0.25]))[:, 0], [1.0, 0.5])
    np.testing.assert_allclose(final(optax.constant_schedule(0.25)), [0.5])


def test_two_series_of_one_name_are_refused(float64):
    state, step_fn, problem = setup(width=8)
    ntk = probes.ntk(problem, every=1, num=1, num_examples=2)
    own = Probe(1, lambda state: (), lambda carry, state: (carry, {"loss": state.params["w"]}), {})
    for two, name in (({"a": ntk, "b": ntk}, "ntk_eigenvalues"), ({"a": own}, "loss")):
        loop = train.make_loop(step_fn, two)
        carries = train.init_carries(two, state)
        state = state._replace(params=state.params | {"w": jnp.ones(())})
        with pytest.raises(ValueError, match=f"two series of one name: {name}"):
            loop(state, carries, 3)


def test_a_loop_of_ones_own_may_call_its_series_as_it_likes(float64):
    optimizer = optimizers.make_optimizer("sgd", learning_rate=0.25)
    state = train.init_state(jnp.ones(2), optimizer)
    descend = train.make_step(lambda w, batch, step: jnp.sum(w**2), lambda step: None, optimizer)

    def step_fn(state):
        after, series = descend(state)
        return after, series | {"gradient": 2 * state.params}

    own = Probe(1, lambda state: (), lambda carry, state: (carry, {"accuracy": state.params[0]}), {})
    series = train.make_loop(step_fn, {"own": own})(state, {"own": ()}, 2)[2]
    assert series["accuracy"].tolist() == [1.0, 0.5]
    described = recording.step_series(step_fn, state)
    assert list(described) == ["loss", "learning_rate", "gradient"]
    assert described["gradient"].dims == ("gradient_0",) and described["gradient"].shape == (2,)


def test_a_step_of_a_problem_records_what_it_descends_and_what_is_added(float64):
    state, _, problem = setup(width=8, learning_rate=0.3)
    step_fn = train.problem_step(problem, lambda state: {"doubled": 2 * state.params["Dense_1"]["bias"]})
    described = recording.step_series(step_fn, state)
    assert set(described) == set(recording.SERIES) | {"doubled"}
    assert described["class_weights"].dims == ("class",) and described["doubled"].dims == ("doubled_0",)
    after, rows = jax.jit(step_fn)(state)
    np.testing.assert_array_equal(rows["learning_rate"], 0.3)
    _, rows = jax.jit(step_fn)(after)
    np.testing.assert_array_equal(rows["doubled"], 2 * after.params["Dense_1"]["bias"])
    unknown = problem._replace(optimizer=optimizers.as_optimizer(optax.sgd(0.3)))
    series = recording.step_series(train.problem_step(unknown), state)
    assert set(series) == set(recording.SERIES) - {"threshold", "learning_rate"}  # only its owner knows it


def test_a_loop_that_runs_again_does_not_compile_again(float64):
    state, step_fn, _ = setup(width=8)
    traced = []

    def counted(state):
        traced.append(None)
        return step_fn(state)

    loop = train.make_loop(counted)
    state, _, _ = loop(state, {}, 10)
    first = len(traced)
    for _ in range(2):
        state, _, _ = loop(state, {}, 10)
    assert len(traced) == first > 0


@pytest.mark.parametrize("num_rows", [16_385, 32_769])
def test_canary_for_code_that_jax_compiles_wrongly(x64, num_rows):
    """jax 0.10.2 gave other numbers compiled than not (jax issue 39103)."""
    rng = np.random.RandomState(0)
    matrix, rows = jnp.asarray(rng.randn(3, 3)), jnp.asarray(rng.randn(num_rows, 3))
    squares = jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))
    expected = ((np.asarray(rows) @ np.asarray(matrix).T) ** 2).sum(1)
    np.testing.assert_allclose(jax.jit(squares)(rows), expected, rtol=1e-12 if x64 else 2e-5)
    np.testing.assert_allclose(squares(rows), expected, rtol=1e-12 if x64 else 2e-5)
