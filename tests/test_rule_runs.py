"""Rules of the learning rate in runs and sweeps, the probe that a cap reads, and what is refused."""

import numpy as np
import pytest

from analysis import probes
from dlf import rules, store
from experiments import build
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.sweep import fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.train import train

RULES = {
    "cap": dict(name="cap", every=4),
    "cdat": dict(name="cdat"),
    "critical_rate": dict(name="critical_rate"),
    "feed_forward": dict(name="feed_forward", turn=20),
    "polyak": dict(name="polyak", scale=4.0),
}
PROBES = {
    "cap": dict(step_sharpness=dict(every=2)),
    "feed_forward": dict(forecast=dict(every=20, num=2, tol=0.01)),
}


def with_rule(name):
    config = tiny.get_config()
    config.num_steps, config.stop_after, config.steps_per_chunk = 120, 100, 40
    config.probes = PROBES.get(name, {})
    config.optimizer.learning_rate = 4.0
    with config.unlocked():
        config.optimizer.rule = RULES[name]
    return config


@pytest.mark.parametrize("name", RULES)
def test_a_run_with_a_rule_goes_on_to_the_bit(float64, same_bits_after_kills, tmp_path, name):
    same_bits_after_kills(with_rule(name))
    found = store.load(tmp_path / "whole")
    rates = found["learning_rate"].values
    assert rates.min() < 4.0 and rates.max() <= 4.0 and len(np.unique(rates)) > 3
    np.testing.assert_allclose(found["threshold"] * rates, 2.0, rtol=1e-12)


@pytest.mark.parametrize("name", ["cap", "cdat"])
def test_a_cell_with_a_rule_is_its_run_alone_to_the_bit(float64, tmp_path, name):
    config = with_rule(name)
    train(config, tmp_path / "run")
    rates = axis("learning_rate", (2.0, 4.0), "optimizer.learning_rate")
    sweep = make_sweep(config, "rates", [rates, record("final", "loss", "accuracy")])
    fill.run(sweep, tmp_path / "sweep", fill.Settings())
    alone, cell = store.load(tmp_path / "run"), store.load(tmp_path / "sweep").sel(learning_rate=4.0)
    assert cell["loss"] == alone["loss"][-1] and cell["accuracy"] == alone["accuracy"][-1]


def test_step_sharpness_is_the_largest_eigenvalue_of_a_run(x64):
    config = tiny.get_config()
    config.float64, config.num_steps, config.steps_per_chunk = x64, 200, 200
    config.probes = dict(step_sharpness=dict(every=4), hessian=dict(every=20, num=1, tol=1e-4))
    loop, arguments = build.ready_loop(build.build(config), config.probes)
    series = loop(*arguments, 200)[2]
    found, true = np.asarray(series["step_sharpness"]), np.asarray(series["hessian_eigenvalues"])[:, 0]
    assert np.isfinite(found[::4]).mean() > 0.9 and np.isnan(found[1::4]).all()
    np.testing.assert_allclose(found[20::20], true[20::20], rtol=0.05)  # the probe's own tolerance


def test_step_sharpness_of_adam_is_the_preconditioned_one_and_one_without_a_formula_the_plain_one(standard):
    config = tiny.get_config()
    config.num_steps = config.steps_per_chunk = 60
    for name, other in (("adam", dict(tracker=dict(every=20, num=2, tol=1e-3))),
                        ("lion", dict(hessian=dict(every=20, num=1, tol=1e-3)))):  # fmt: skip
        config.optimizer = dict(name=name, learning_rate=1e-3)
        config.probes = dict(step_sharpness=dict(every=2, tol=0.01), **other)
        loop, arguments = build.ready_loop(build.build(config), config.probes)
        series = loop(*arguments, 60)[2]
        true = series["tracked_eigenvalues" if name == "adam" else "hessian_eigenvalues"][40, 0]
        assert series["step_sharpness"][40] == pytest.approx(float(true), rel=0.02)


REFUSED = {
    "no probe": (dict(probes={}), "reads step_sharpness: add a probe"),
    "a probe too seldom": (dict(probes=dict(step_sharpness=dict(every=3))), "every 4 steps"),
    "without a threshold": (dict(optimizer=dict(name="lion", learning_rate=1.0)), "rmsprop, adam or ema"),
    "clipped": (
        dict(optimizer=dict(name="sgd", learning_rate=1.0, before=(dict(name="clip", max_delta=1.0),))),
        "sgd, rmsprop, adam or ema",
    ),
    "no proportion": (
        dict(optimizer=dict(name="fromage", learning_rate=0.1), rule=dict(name="cdat")), "proportion",
    ),
    "unknown": (dict(rule=dict(name="caps")), "one of cap, cdat"),
    "unnamed": (dict(rule=dict(every=4)), "dict(name="),
    "a negative scale": (dict(rule=dict(name="cdat", scale=-1.0)), "positive"),
    "a decay of one": (dict(rule=dict(name="cdat", decay=1.0)), "below 1"),
    "updates with bounds of their own": (
        dict(optimizer=dict(name="rprop", learning_rate=1e-3), rule=dict(name="polyak")), "proportion",
    ),
    "a spacing of zero": (dict(rule=dict(name="cap", every=0)), "every must be"),
    "a threshold": (dict(rule=dict(name="cap", threshold=1.0)), "follows from the optimizer"),
    "a scale that underflows": (dict(rule=dict(name="polyak", scale=1e308)), "below 1e30"),
    "no turn": (dict(rule=dict(name="feed_forward", turn=0)), "turn"),
    "an unknown setting": (dict(rule=dict(name="cap", evry=4)), "evry"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_cannot_hold_is_refused_in_one_line_before_anything_runs(float64, tmp_path, case):
    changes, words = REFUSED[case]
    config = with_rule("cap")
    with config.unlocked():
        if "optimizer" in changes:
            config.optimizer = dict(**changes["optimizer"], rule=RULES["cap"])
        config.optimizer.rule = changes.get("rule", config.optimizer.rule)
        config.probes = changes.get("probes", config.probes)
    with pytest.raises(ConfigError) as raised:
        train(config, tmp_path / "run")
    message = str(raised.value)
    assert words in message and "optimizer" in message and "\n" not in message, message
    assert not (tmp_path / "run").exists()


OWN = {
    "memory": "return seen.loss, jnp.zeros(3)",
    "complex": "return jnp.asarray(1j), memory",
    "vector": "return jnp.ones(2), memory",
    "alone": "return seen.loss",
    "none": "return None, memory",
}


@pytest.mark.parametrize("case", OWN)
def test_a_rule_of_ones_own_that_returns_something_else_is_refused_in_one_line(float64, tmp_path, case):
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\nfrom dlf.types import Rule\n\n\ndef wild():\n    def rate(memory, seen):\n"
        f"        {OWN[case]}\n\n    return Rule(lambda: jnp.zeros(()), rate, {{}})\n"
    )
    config = with_rule("cdat")
    with config.unlocked():
        config.optimizer.rule = dict(name=f"{tmp_path / 'mine.py'}:wild")
    with pytest.raises(ConfigError) as raised:
        train(config, tmp_path / "run")
    assert "a rule must return" in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_every_rule_is_in_the_catalogue_and_tried_here():
    assert sorted(RULES) == rules.__all__ and "step_sharpness" in probes.__all__
