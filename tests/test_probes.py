"""The probes of the training loop against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import operators, probes
from analysis.linear_maps import dense
from analysis.ntk import empirical_ntk
from dlf import data, losses, models, schedules, train


def test_probes_measure_what_the_dense_matrices_say(float64):
    batch = data.spiral(examples_per_class=10).train
    model = models.mlp(3, (9,), activation="tanh", initialization="updated", use_bias=True)
    schedule = schedules.triangular(3, amplitude=70.0, period=40)
    apply_fn = models.apply_fn(model)
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, schedule)
    params, _ = model.init(jax.random.key(2), batch.inputs)
    sgd = dict(name="sgd", learning_rate=1.0)
    problem = train.make_problem(model, losses.cross_entropy, schedule, sgd, batch, key=jax.random.key(3))
    state = train.init_state(params, problem.optimizer)
    state = state._replace(step=jnp.asarray(17, jnp.int32))

    probe = probes.hessian(problem, every=1, num=3, tol=1e-3)
    _, rows = probe.measure(probe.init(state), state)
    full = dense(operators.hessian(loss_fn, params, batch, state.step), params)
    distance = np.abs(rows["hessian_eigenvalues"] - np.linalg.eigvalsh(full)[::-1][:3])
    assert (distance <= rows["hessian_residuals"]).all()
    assert rows["hessian_converged"] == 1
    assert float(rows["hessian_residuals"].max()) <= 1e-3 * float(rows["hessian_eigenvalues"][0])
    assert set(rows) == set(probe.series)

    probe = probes.ntk(problem, every=1, num=3, num_examples=7)
    _, rows = probe.measure(probe.init(state), state)
    kernel = empirical_ntk(apply_fn, params, batch.inputs[:7])
    np.testing.assert_allclose(rows["ntk_eigenvalues"], np.linalg.eigvalsh(kernel)[::-1][:3], rtol=1e-10)
    assert set(rows) == set(probe.series)

    probe = probes.kernel(problem, every=1, num_examples=7)
    _, rows = probe.measure(probe.init(state), state)
    chosen = batch.inputs[jnp.asarray([0, 4, 8, 12, 17, 21, 25])]  # of 30, all three classes
    np.testing.assert_array_equal(rows["empirical_ntk"], empirical_ntk(apply_fn, params, chosen))
    assert set(rows) == set(probe.series)
    with pytest.raises(ValueError, match="num_examples must be at most 30, got 31"):
        probes.kernel(problem, every=1, num_examples=31).measure((), state)
