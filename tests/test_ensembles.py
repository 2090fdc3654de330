"""Many runs in one program: each is its single run, whatever the others do."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf import ensembles
from dlf.optimizers import make_optimizer
from dlf.recording import probe_series
from dlf.train import init_carries, init_state, make_step
from dlf.types import Probe, Series
from experiments import build
from experiments.configs import tiny

NUM_STEPS = 120
VARIABLES = ("loss", "class_weights", "validation_accuracy", "ntk_eigenvalues")
SETTINGS = ((5.0, 20, 1.0, 0), (2.0, 33, 0.5, 1), (5.0, 20, np.inf, 0), (7.5, 11, 1.5, 2))
BROKEN = 2  # the learning rate of this one is far too large
TOO_LARGE = {False: 1e30, True: 1e300}


def configure(amplitude, period, learning_rate, seed):
    config = tiny.get_config()
    config.update(float64=jax.config.jax_enable_x64, num_steps=NUM_STEPS, stop_after=100, seed=seed)
    config.dataset.update(examples_per_class=10, seed=seed)
    config.model.hidden_widths = (8,)
    config.schedule.update(amplitude=amplitude, period=period)
    config.optimizer.learning_rate = learning_rate if learning_rate < 1e3 else TOO_LARGE[config.float64]
    with config.unlocked():
        config.probes = dict(validation=dict(every=50), ntk=dict(every=7, num=2, num_examples=5))
    return config


class Replicas(NamedTuple):
    """Four runs, stacked, and what each one records, as `experiments.train` makes it."""

    assemble: Callable
    described: dict
    stacked: build.Replica
    active: jax.Array
    series: list
    programs: dict  # compiled once


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "float64"])
def replicas(request):
    """The four runs in both precisions."""
    with jax.enable_x64(request.param):
        experiments = [build.build(configure(*row)) for row in SETTINGS]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[e.replica for e in experiments])
        loop = build.make_loop(experiments[0])  # a program of their own would be the same
        series = [
            loop(e.replica, e.state, init_carries(e.run.probes, e.state), NUM_STEPS)[2] for e in experiments
        ]
        described = {name: experiments[0].series[name] for name in VARIABLES}
        active = jnp.ones(len(SETTINGS), bool)
        yield Replicas(experiments[0].assemble, described, stacked, active, series, {})


def ensemble(replicas, record, vectorized=False):
    if (record, vectorized) not in replicas.programs:
        program = ensembles.make_ensemble(
            replicas.assemble, NUM_STEPS, record, replicas.described, vectorized
        )
        replicas.programs[record, vectorized] = program
    return replicas.programs[record, vectorized]


def test_every_replica_has_the_bits_of_its_single_run(replicas):
    found = ensemble(replicas, "series")(replicas.stacked, replicas.active)
    assert found.diverged_step[BROKEN] > 0
    every = {"loss": 1, "class_weights": 1, "validation_accuracy": 50, "ntk_eigenvalues": 7}
    for number, series in enumerate(replicas.series):
        first_broken = np.flatnonzero(~np.isfinite(series["loss"]))[:1]
        np.testing.assert_array_equal(found.diverged_step[number], first_broken if len(first_broken) else -1)
        for name in VARIABLES:
            rows = found.values[name][number]
            expected = np.full_like(rows, np.nan) if number == BROKEN else series[name][:: every[name]]
            np.testing.assert_array_equal(rows, expected, err_msg=f"{name} of replica {number}")


def test_final_values_are_the_last_ones_measured(replicas):
    found = ensemble(replicas, "final")(replicas.stacked, replicas.active)
    last = {"loss": 119, "class_weights": 119, "validation_accuracy": 100, "ntk_eigenvalues": 119}
    series = replicas.series[3]
    for name, step in last.items():
        np.testing.assert_array_equal(found.values[name][3], series[name][step], err_msg=name)


def test_a_replica_that_is_not_active_is_left_out_and_changes_nothing(replicas):
    program, active = ensemble(replicas, "final"), replicas.active
    whole, part = program(replicas.stacked, active), program(replicas.stacked, active.at[1].set(False))
    for name in VARIABLES:
        assert np.isnan(part.values[name][1]).all()
        np.testing.assert_array_equal(part.values[name][0], whole.values[name][0])
        np.testing.assert_array_equal(part.values[name][3], whole.values[name][3])


def test_vectorised_over_devices_gives_the_mapped_result(replicas):
    mapped = ensemble(replicas, "final")(replicas.stacked, replicas.active)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (replicas.stacked, replicas.active))
    spread = ensembles.spread(twice)
    assert len(spread[1].sharding.device_set) == jax.device_count() == 8
    found = ensemble(replicas, "final", vectorized=True)(*spread)
    np.testing.assert_array_equal(found.diverged_step[:4], mapped.diverged_step)
    for name in VARIABLES:
        # other code, other rounding, over the short time before it grows
        np.testing.assert_allclose(found.values[name][:4], mapped.values[name], rtol=1e-3, err_msg=name)
        np.testing.assert_array_equal(found.values[name][4:], found.values[name][:4])


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_sparse_probe_is_measured_only_when_it_is_due(vectorized):
    calls = []

    def assemble(start):
        sgd = make_optimizer("sgd", 0.1)
        step_fn = make_step(lambda w, batch, step: w**2, lambda step: None, sgd)

        def measure(carry, state):
            jax.debug.callback(lambda step: calls.append(int(step)), state.step)
            return carry, {"weight": state.params}

        probe = Probe(40, lambda state: (), measure, {"weight": Series((), "1", "weight")})
        return ensembles.Run(init_state(start, sgd), step_fn, {"probe": probe})

    run = assemble(jnp.asarray(1.0))
    series = probe_series("probe", run.probes["probe"], run.state)
    program = ensembles.make_ensemble(assemble, 100, "final", series, vectorized)
    found = program(jnp.asarray([1.0, 2.0]), jnp.ones(2, bool))
    jax.effects_barrier()
    assert sorted(set(calls)) == [0, 40, 80] and len(calls) <= 6
    np.testing.assert_allclose(found.values["weight"], np.array([1.0, 2.0]) * 0.8**80, rtol=1e-4)
