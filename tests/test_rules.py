"""Rules of the learning rate against known curvature, in runs and sweeps, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import probes
from dlf import rules, store
from dlf.optimizers import make_optimizer
from dlf.recording import missing
from dlf.steps import descend
from dlf.train import init_carries, init_state, make_loop, make_step
from dlf.types import Probe, Series
from experiments import build
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.sweep import fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.train import train

CURVATURES = np.asarray([10.0, 1.0])
FIRST = np.asarray([1.0, -2.0])
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


def quadratic(params, batch, step):
    return jnp.sum(jnp.asarray(CURVATURES, params.dtype) * params**2) / 2


def told(name, rows):
    """A probe that measures what it is told, step by step, and then nothing."""
    rows = jnp.asarray(rows)
    rows = jnp.concatenate([rows, missing((1, *rows.shape[1:]), rows.dtype)])

    def measure(carry, state):
        return carry, {name: rows[jnp.minimum(state.step, len(rows) - 1)]}

    dims = tuple(f"axis_{i}" for i in range(rows.ndim - 1))
    return {"told": Probe(1, lambda state: (), measure, {name: Series(dims, "nat", name)})}


def follow(rule, probes={}, num_steps=6, name="sgd", learning_rate=1.0, step_of=make_step, **settings):
    """The series of a run on the quadratic loss, with the parameters before every step."""
    optimizer = make_optimizer(name, learning_rate, rule=rule, **settings)
    state = init_state(jnp.asarray(FIRST), optimizer)
    loop = make_loop(step_of(quadratic, lambda step: None, optimizer), probes)
    carries, rows, params = init_carries(probes, state), [], []
    for _ in range(num_steps):
        params.append(np.asarray(state.params))
        state, carries, series = loop(state, carries, 1)
        rows.append(series["learning_rate"][0])
    return np.asarray(rows), np.asarray(params)


@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [
        ("sgd", {}, 0.2),
        ("sgd", dict(momentum=0.9), 0.38),
        ("sgd", dict(momentum=0.5, nesterov=True), 0.15),
        ("ema", dict(decay=0.5, debias=False), 0.6),
    ],
)
def test_a_cap_is_the_edge_of_stability(x64, name, settings, bound):
    rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]), name=name, **settings)
    np.testing.assert_allclose(rates, bound, rtol=1e-6)


def test_a_cap_keeps_the_last_sound_measurement(x64):
    found = told("step_sharpness", [jnp.nan, -1.0, 10.0, jnp.nan, -3.0, 0.0, jnp.inf, 40.0, 0.5])
    rates, _ = follow(dict(name="cap"), found, num_steps=11)
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.05, 1, 1, 1], rtol=1e-6)


def test_a_cap_never_lifts_the_rate_of_a_schedule(float64):
    warm_up = dict(name="linear_schedule", init_value=0.0, end_value=0.4, transition_steps=4)
    rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]), learning_rate=warm_up)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.2, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"), [("sgd", {}), ("sgd", dict(momentum=0.9)), ("adam", {}), ("lion", {})]
)
def test_a_rule_that_never_binds_has_the_bits_of_none(standard, name, settings):
    given = dict(name=name, learning_rate=0.01, **settings)
    _, free = follow(dict(name="polyak", scale=1e-9), **given)
    _, plain = follow(None, **given)
    np.testing.assert_array_equal(free, plain)


def slopes(params):
    gradient = CURVATURES * params
    return gradient @ gradient, gradient @ (CURVATURES * gradient), CURVATURES @ params**2 / 2


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_cdat_along_a_quadratic(float64, scale):
    rates, params = follow(dict(name="cdat", scale=scale, decay=0.5))
    means = np.zeros(2)
    for rate, at in zip(rates, params, strict=True):
        squared, curved, _ = slopes(at)
        means = (means + np.asarray([squared, curved])) / 2
        assert rate == pytest.approx(min(1, scale * means[0] / means[1]))


def test_cdat_takes_the_curvature_along_the_update_with_its_momentum(float64):
    rates, params = follow(dict(name="cdat", decay=0.0), momentum=0.5)
    update = np.zeros(2)
    for rate, at in zip(rates, params, strict=True):
        gradient = CURVATURES * at
        update = 0.5 * update - gradient
        expected = 2 * max(-gradient @ update, 0) / (update @ (CURVATURES * update))
        assert rate == pytest.approx(min(1, expected))


def test_polyak_on_a_quadratic(float64):
    rates, params = follow(dict(name="polyak", scale=0.5))
    expected = [min(1, 2 * loss / squared) for squared, _, loss in map(slopes, params)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("first", [1e-3, 1.0, 100.0])
def test_the_critical_rate_of_a_quadratic_wherever_the_search_begins(float64, first):
    rates, params = follow(dict(name="critical_rate"), learning_rate=first, num_steps=4)
    expected = [2 * squared / curved for squared, curved, _ in map(slopes, params)]
    begin = np.minimum(expected, first)
    if first == 1.0:  # eight passes: enclosed in a factor of two, then halved
        np.testing.assert_allclose(rates, begin, rtol=0.05)
    assert (rates <= first).all() and rates[-1] == pytest.approx(begin[-1], rel=0.3)


def test_a_critical_rate_is_kept_where_the_loss_is_not_finite(float64):
    def walled(params, batch, step):
        return jnp.where(params[0] < -0.5, jnp.nan, quadratic(params, batch, step))

    rates, _ = follow(
        dict(name="critical_rate"), step_of=lambda loss, *rest: make_step(walled, *rest), num_steps=1
    )
    assert rates[0] == pytest.approx(0.15, rel=0.05)  # 1 - 10 eta = -0.5


def cyclic(step):
    """Two classes in turn, for two steps each."""
    return jnp.where(step // 2 % 2 == 0, jnp.asarray([1.5, 0.5]), jnp.asarray([0.5, 1.5]))


def test_feed_forward_knows_a_cyclic_loss_and_its_control_comes_too_late(float64):
    of_class = jnp.asarray([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    foreseen = np.asarray([6.0, 6.0, 2.0, 2.0])  # lambda_max(1.5 B_0 + 0.5 B_1), then the other way round
    expected = np.minimum(1, foreseen.mean() / foreseen)

    def in_turn(loss, batch_fn, optimizer):
        return descend(
            lambda params, model_state, *rest: (loss(params, *rest), (model_state, None)),
            batch_fn, optimizer, lambda *_: {}, cyclic,
        )  # fmt: skip

    matrices = told("forecast_matrices", of_class[None])
    for shift in (0, 2):
        rule = dict(name="feed_forward", turn=4, shift=shift)
        rates, _ = follow(rule, matrices, learning_rate=0.01, num_steps=8, step_of=in_turn)
        np.testing.assert_allclose(rates, 0.01 * np.tile(np.roll(expected, shift), 2), rtol=1e-12)
    broken = told("forecast_matrices", jnp.full_like(of_class, jnp.nan)[None])
    rates, _ = follow(rule, broken, learning_rate=0.01, num_steps=8, step_of=in_turn)
    assert (rates == 0.01).all()


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
    np.testing.assert_allclose(found[20::20], true[20::20], rtol=0.05)


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


def test_an_optimizer_that_is_no_tuple_is_taken_as_it_is(standard):
    multi = make_optimizer(lambda learning_rate: optax.MultiSteps(optax.sgd(learning_rate), 2), 0.1)
    state = multi.init(jnp.ones(2))
    updates, _ = multi.update(jnp.ones(2), state, jnp.ones(2))
    assert updates.tolist() == [0, 0]


def test_every_rule_is_in_the_catalogue_and_tried_here():
    assert sorted(RULES) == rules.__all__ and "step_sharpness" in probes.__all__


def test_debugging_for_nan_passes_a_run_with_a_cap(float64):
    with jax.debug_nans(True):
        rates, _ = follow(dict(name="cap"), told("step_sharpness", [10.0]))
    np.testing.assert_allclose(rates, 0.2, rtol=1e-6)
