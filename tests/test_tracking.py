"""The tracker against dense matrices: identities, splits, audits, forecasts, and its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import operators, probes, tracking
from analysis.linear_maps import dense
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Batch

KEY = jax.random.key(0)
SGD = dict(name="sgd", learning_rate=0.5)


def a_problem(optimizer=SGD, amplitude=20.0, period=60, width=9):
    batch = data.spiral(examples_per_class=10, num_turns=0.5).train
    model = models.mlp(3, (width,), activation="tanh", initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=amplitude, period=period)
    problem = train.make_problem(model, losses.cross_entropy, schedule, optimizer, batch, key=KEY)
    params, _ = jax.jit(model.init)(KEY, batch.inputs)
    return problem, train.init_state(params, problem.optimizer)


@partial(jax.jit, static_argnums=0)
def _advanced(advance, state, num_steps):
    return jax.lax.fori_loop(0, num_steps, lambda _, s: advance(s), state)


def advanced(problem, state, num_steps):
    step_fn = train.problem_step(problem)
    return _advanced(lambda state: step_fn(state)[0], state, num_steps)


def loop_of(problem, chosen):
    return train.make_loop(train.problem_step(problem), chosen)


def dense_hessian(problem, state):
    matvec = operators.hessian(train.loss_of(problem, state), state.params, problem.train, state.step)
    return np.asarray(dense(matvec, state.params))


def test_the_tracked_pairs_parts_and_split_are_those_of_dense_matrices(float64):
    problem, start = a_problem(period=600)
    probe = probes.tracker(problem, every=1, num=3, tol=1e-8)
    _, _, series = loop_of(problem, {"tracker": probe})(start, {"tracker": probe.init(start)}, 41)
    state = advanced(problem, start, 40)
    row = {name: np.asarray(series[name])[40] for name in probe.series}
    values, vectors = np.linalg.eigh(dense_hessian(problem, state))
    np.testing.assert_allclose(row["tracked_eigenvalues"], values[::-1][:3], rtol=1e-7)
    weights, u = problem.schedule(state.step), vectors[:, -1]
    apply_fn, batch = train.frozen(problem, state), problem.train
    class_losses = losses.make_class_losses(apply_fn, problem.weighted_loss)
    for label in range(3):
        matvec = operators.class_hessian(class_losses, state.params, batch, jnp.asarray(label))
        matrix = dense(matvec, state.params)
        expected = float(weights[label]) * (u @ np.asarray(matrix) @ u)
        assert row["tracked_classes"][0, label] == pytest.approx(expected, rel=1e-5)
    logits_loss = losses.make_loss(lambda logits, _: logits, problem.weighted_loss, problem.schedule)
    parts = dict(tracked_gauss_newton=operators.ggn, tracked_residual_part=operators.residual)
    for name, part in parts.items():
        matvec = part(apply_fn, logits_loss, state.params, batch, state.step)
        matrix = np.asarray(dense(matvec, state.params))
        assert row[name][0] == pytest.approx(u @ matrix @ u, rel=1e-5, abs=1e-8)
    distances = np.abs(np.subtract.outer(values[::-1][:3], values[::-1][:3])) + np.diag([np.inf] * 3)
    np.testing.assert_allclose(row["tracked_gap"], distances.min(axis=1), rtol=1e-4)
    assert row["tracked_threshold"] == 4.0
    np.testing.assert_array_equal(row["tracked_kept"], [1, *(values[::-1][1:3] > 3.0)])
    # what moved from step 28 to 29, by finite differences
    state = advanced(problem, start, 28)
    now, later = dense_hessian(problem, state), dense_hessian(problem, state._replace(step=state.step + 1))
    moved = np.linalg.eigvalsh(later)[-1] - np.linalg.eigvalsh(now)[-1]  # the loss alone, exactly
    after = np.linalg.eigvalsh(dense_hessian(problem, advanced(problem, state, 1)))[-1]
    assert series["split_valid"][29, 0] == 1
    loss_moved, network_moved = float(series["loss_moved"][29, 0]), float(series["network_moved"][29, 0])
    assert loss_moved == pytest.approx(moved, rel=0.01)  # first order in the change of the weights
    assert loss_moved + network_moved == pytest.approx(after - np.linalg.eigvalsh(now)[-1], rel=1e-6)
    assert np.isnan(series["loss_moved"][0]).all() and (series["split_valid"][0] == 0).all()


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_of_adaptive_optimizers_the_preconditioned_hessian_is_tracked(float64, optimizer):
    settings = dict(name=optimizer, learning_rate=0.01)
    problem, state = a_problem(settings)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        probe = probes.tracker(problem, every=1, num=2, tol=1e-6)
        ratio = probes.stability(problem, every=1, tol=1e-6)
        loop = loop_of(problem, {"tracker": probe, "ratio": ratio})
        carries = {"tracker": probe.init(state), "ratio": ratio.init(state)}
        _, _, series = loop(state, carries, 12)
        state = advanced(problem, state, 10)
    second = jax.tree.leaves(state.opt_state[0].nu)
    correction = 1 - 0.999**10 if optimizer == "adam" else 1.0
    eps = 1e-8
    scale = [np.sqrt(v / correction) + eps if optimizer == "adam" else np.sqrt(v + eps) for v in second]
    flat = np.concatenate([np.ravel(p) for p in scale])
    expected = np.linalg.eigvalsh(dense_hessian(problem, state) / np.sqrt(np.outer(flat, flat)))[-1]
    assert series["tracked_eigenvalues"][10, 0] == pytest.approx(expected, rel=1e-4)
    assert series["tracked_classes"][10, 0].sum() == pytest.approx(expected, rel=1e-4)
    bound = 2 / 0.01 if optimizer == "rmsprop" else 2 * 1.9 / (0.1 * 0.01) * (1 - 0.9**11)
    assert series["tracked_threshold"][10] == pytest.approx(bound)
    two = series["tracked_eigenvalues"][10:12, 0] / series["tracked_threshold"][10:12]
    assert series["stability_ratio"][10] == pytest.approx(float(two.mean()), rel=1e-3)
    if optimizer == "adam":
        assert np.isnan(series["tracked_eigenvalues"][0]).all() and np.isnan(series["stability_ratio"][0])


def test_a_resumed_tracker_goes_on_with_the_same_bits(float64):
    problem, state = a_problem()
    chosen = {
        "tracker": probes.tracker(problem, every=5, num=3, tol=1e-3),
        "lyapunov": probes.lyapunov(problem, num=2),
        "forecast": probes.forecast(problem, every=20, num=2, tol=1e-3),
    }
    loop = loop_of(problem, chosen)
    carries = train.init_carries(chosen, state)
    _, _, whole = loop(state, carries, 120)
    parts = []
    for num_steps in (40, 40, 40):
        state, carries, series = loop(state, carries, num_steps)
        parts.append(series)
    for name in whole:
        together = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(together, whole[name], err_msg=name)


@jax.jit
def _track(curvatures, weights):
    size = len(curvatures)
    batch = Batch(curvatures, jnp.zeros(size, jnp.int32))

    def logits(params, inputs):
        return inputs * params[:, None] ** 2 * (size / 2)

    problem = train.make_problem(
        models.stateless(lambda key, inputs: jnp.ones(size), logits),
        lambda logits, labels, weights: logits @ weights,
        lambda step: weights[step],
        SGD,
        batch,
        key=KEY,
    )
    probe = probes.tracker(problem, every=1, num=3, tol=1e-6)
    state = train.init_state(jnp.ones(size), problem.optimizer)

    def body(carry, step):
        return probe.measure(carry, state._replace(step=step))

    return jax.lax.scan(body, probe.init(state), jnp.arange(len(weights), dtype=jnp.int32))[1]


def track(curvatures, weights_of_step, num_steps):
    """Track a parabola whose Hessian is the diagonal of curvatures [size, classes] @ weights."""
    rest = 0.01 * np.arange(35 - len(curvatures))[:, None] * np.ones((1, 2))
    weights = np.stack([weights_of_step(step) for step in range(31)])  # one program for all tests
    rows = _track(jnp.concatenate([jnp.asarray(curvatures), rest]), jnp.asarray(weights))
    return {name: np.asarray(row)[:num_steps] for name, row in rows.items()}


def test_a_crossing_keeps_the_identities_and_is_flagged(float64):
    def weights(step):
        return np.array([1.45 - 0.1 * step, 0.55 + 0.1 * step])

    rows = track([[2.0, 0.0], [0.0, 2.0], [0.5, 0.5]], weights, 10)  # they pass between steps 4 and 5
    assert rows["tracked_identity"][4].tolist() == [0, 1, 2]
    assert rows["tracked_identity"][5].tolist() == [1, 0, 2]
    assert rows["tracked_crossing"].sum(axis=0).tolist() == [1, 1, 0]
    assert rows["tracked_crossing"][5, :2].tolist() == [1, 1]
    np.testing.assert_allclose(rows["tracked_eigenvalues"][9, :2], [2.9, 1.1], rtol=1e-6)
    assert rows["tracked_gap"][9, 0] == pytest.approx(1.8, rel=1e-5)
    # the loss moved, the network did not; the split follows the identity through the crossing
    np.testing.assert_allclose(rows["loss_moved"][6:, 0], 0.2, rtol=1e-5)
    np.testing.assert_allclose(rows["network_moved"][6:, 0], 0, atol=1e-5)
    # valid where the gap exceeds the change, not at the crossing
    assert rows["split_valid"][[2, 5, 8], 0].tolist() == [1, 0, 1]


def test_a_degenerate_eigenvalue_has_no_gap_and_no_valid_split(float64):
    rows = track([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5]], lambda step: np.ones(2), 3)
    np.testing.assert_allclose(rows["tracked_eigenvalues"][2], [3, 3, 1], rtol=1e-6)
    np.testing.assert_allclose(rows["tracked_gap"][2], [0, 0, 2], atol=1e-5)
    assert rows["split_valid"][2].tolist() == [0, 0, 1]


def test_every_tenth_measurement_is_audited_and_a_newcomer_gets_a_number(float64):
    def weights(step):
        return np.array([0.1, 1.9] if step >= 11 else [1.9, 0.1])

    rows = track([[1.5, 1.5], [1.0, 1.0], [0.5, 0.5], [0.0, 2.5]], weights, 31)
    audits = np.flatnonzero(np.isfinite(rows["tracked_audit"]))
    assert audits.tolist() == [9, 19, 29]
    np.testing.assert_allclose(rows["tracked_audit"][audits], 0, atol=1e-6)
    assert rows["tracked_eigenvalues"][11, 0] == pytest.approx(4.75, rel=1e-6)
    assert rows["tracked_identity"][-1, 0] == 3  # a newcomer
    assert (rows["tracked_matvecs"][audits] > rows["tracked_matvecs"][audits - 1]).all()


def test_the_forecast_is_a_lower_bound_and_close_through_the_whole_cycle(float64):
    problem, state = a_problem(amplitude=70.0)
    state = advanced(problem, state, 300)
    probe = probes.forecast(problem, every=1, num=3, tol=1e-6)
    _, rows = jax.jit(probe.measure)((), state)
    steps = np.arange(300, 480, 6)
    weights = np.asarray(jax.vmap(problem.schedule)(jnp.asarray(steps, jnp.int32)))
    found = tracking.forecast(np.asarray(rows["forecast_matrices"]), weights)
    frozen = [state._replace(step=jnp.asarray(step, jnp.int32)) for step in steps]
    exact = np.array([np.linalg.eigvalsh(dense_hessian(problem, s))[-1] for s in frozen])
    assert (found <= exact * (1 + 1e-9)).all()
    assert (found >= 0.9 * exact).all()


def test_of_each_class_its_own_examples_are_enough(float64):
    """Of 10, 6 and 3 in any order: exact with ten of each; with fewer the first ones count."""
    batch = data.spiral(examples_per_class=10, num_turns=0.5).train
    rows = np.random.RandomState(0).permutation(np.r_[0:10, 10:16, 20:23])
    batch = Batch(batch.inputs[rows], batch.labels[rows])
    apply_fn = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]  # noqa: E731
    params = {"a": jnp.asarray(np.random.RandomState(1).randn(2, 5)), "b": jnp.eye(5, 3)}

    def matrices(batch, **settings):
        class_losses = losses.make_class_losses(apply_fn, losses.cross_entropy)
        found = tracking.class_subspace(class_losses, params, batch, num=2, tol=1e-10, key=KEY, **settings)
        return jnp.linalg.eigvalsh(found)  # the basis may turn within its space

    np.testing.assert_allclose(matrices(batch, examples_per_class=10), matrices(batch), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(matrices(batch, examples_per_class=99), matrices(batch), rtol=1e-8, atol=1e-12)
    labels = np.asarray(batch.labels)
    kept = np.sort(np.concatenate([np.flatnonzero(labels == of)[:3] for of in range(3)]))
    few = Batch(batch.inputs[kept], batch.labels[kept])  # each class 3 / 9 of these, of all its own share
    shares = np.asarray([10, 6, 3])[:, None] / len(labels) / (3 / 9)
    np.testing.assert_allclose(
        matrices(batch, examples_per_class=3), shares * matrices(few), rtol=1e-8, atol=1e-12
    )


def test_bad_settings_get_one_line():
    problem, _ = a_problem()
    with pytest.raises(ValueError, match="at least 2, since a gap needs two, got 1"):
        probes.tracker(problem, every=1, num=1, tol=1e-3)
    with pytest.raises(ValueError, match="every must be"):
        probes.tracker(problem, every=0, num=2, tol=1e-3)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="examples_per_class must be a whole number of at least 1"):
            probes.forecast(problem, every=1, num=1, tol=0.1, examples_per_class=wrong)
    with pytest.raises(ValueError, match="tol must be positive"):
        probes.stability(problem, every=1, tol=0.0)
    lion = problem._replace(optimizer=optimizers.make_optimizer("lion", learning_rate=0.1))
    with pytest.raises(ValueError, match="step_multipliers needs no formula"):
        probes.tracker(lion, every=1, num=2, tol=1e-3)
