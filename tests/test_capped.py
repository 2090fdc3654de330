"""What rates that read the curvature leave of a gain, from sweeps that are made with known effects."""

import numpy as np
import pytest
import xarray as xr
from matplotlib import image

from analysis.findings import capped
from dlf.store.cells import DIVERGED, DONE
from experiments.configs import rate_rules

NUM_STEPS, SEEDS = 400, 8


def spiral(rates, gains, flipping=()):
    """A sweep whose dynamical loss gains so much at each rate; at some of them the loss alternates."""
    rng = np.random.default_rng(0)
    of_seed = 0.5 + 0.02 * rng.normal(size=SEEDS)
    final = np.stack([np.stack([of_seed, of_seed + gain]) for gain in gains])
    loss = np.ones((len(rates), 2, SEEDS, NUM_STEPS))
    for number in flipping:
        loss[number, 1, :, 100:200] += 0.1 * (-1.0) ** np.arange(100)
    dims = "rate", "amplitude", "seed"
    series = {"loss": loss, "learning_rate": np.full(loss.shape, 0.5)}
    found = {name: ((*dims, "step"), of) for name, of in series.items()}
    for name in ("accuracy", "validation_accuracy"):
        found[name] = ((*dims, "step"), np.repeat(final[..., None], NUM_STEPS, axis=-1))
    found["status"] = (dims, np.full(final.shape, DONE))
    coordinates = {"rate": list(rates), "amplitude": [1.0, 70.0], "seed": range(SEEDS)}
    of = xr.Dataset(found, coordinates | {"step": range(NUM_STEPS)})
    return of.assign_attrs(num_classes=3, stop_after=NUM_STEPS)


def signals(gains, num_seeds=32, dead=()):
    """A sweep whose dynamical loss gains so much under each rule; under some all its runs are dead."""
    rng = np.random.default_rng(1)
    shape = 1, len(gains), 2, num_seeds
    accuracy = 0.7 + 0.03 * rng.normal(size=(num_seeds,)) + 0.005 * rng.normal(size=shape)
    accuracy[0, :, 1] += np.asarray(list(gains.values()))[:, None]
    status = np.full(shape, DONE)
    for rule in dead:
        status[0, [*gains].index(rule), 1] = DIVERGED
    dims = "normalization", "rule", "amplitude", "seed"
    values = {name: (dims, accuracy) for name in ("test_accuracy", "validation_accuracy")}
    coordinates = {
        "normalization": ["none"],
        "rule": [*gains],
        "amplitude": [1.0, 16.0],
        "seed": range(num_seeds),
    }
    return xr.Dataset(values | {"status": (dims, status)}, coordinates).assign_attrs(num_classes=10)


@pytest.fixture(scope="module")
def found():
    sweeps = {
        "spiral": spiral(("constant", "capped"), (0.3, 0.1), flipping=(0,)),
        "slow": spiral(("capped, slow",), (0.25,)),
        "signals": signals({"schedule": 0.02, "cap": 0.02, "cdat": -0.02, "polyak": 0.0}, dead=("polyak",)),
        "foreseen": signals({"feed_forward": 0.05}).sel(amplitude=[16.0]),
    }
    return rate_rules.reduce(sweeps)


def test_gains_of_the_spiral_and_what_changes_them_are_those_that_were_made(found):
    assert [*found["rate"].values] == ["constant", "capped", "capped, slow"]
    np.testing.assert_allclose(found["accuracy_gain"], [0.3, 0.1, 0.25], atol=1e-9)
    np.testing.assert_allclose(found["accuracy_change"], [0, -0.2, -0.05], atol=1e-9)
    np.testing.assert_allclose(found["accuracy_change_within"], [0, 0.2, 0.05], atol=1e-9)  # without noise
    np.testing.assert_allclose(found["dynamical_accuracy_change"], [0, -0.2, -0.05], atol=1e-9)
    assert (found["mean_rate"] == 0.5).all()


def test_instabilities_are_counted_where_the_loss_alternates(found):
    count = found["instabilities"].mean("seed")
    assert count.sel(rate="constant", amplitude=70.0) == 1
    assert count.sum() == 1 and found["unstable"].sel(rate="capped").sum() == 0


def test_a_rule_that_changes_the_gain_is_told_from_one_that_does_not(found):
    at = {name: found[f"signal_change{name}"].squeeze() for name in ("", "_adjusted", "_within")}
    np.testing.assert_allclose(at[""].sel(rule=["cap", "cdat"]), [0, -0.04], atol=0.005)
    assert at["_adjusted"].sel(rule="cap") > 0.05 > at["_adjusted"].sel(rule="cdat")
    assert at["_within"].sel(rule="cap") < 0.006
    # the static loss is that of the schedule
    assert at[""].sel(rule="feed_forward") == pytest.approx(0.03, abs=0.005)
    assert found["signal_dead"].sel(rule="polyak", signal_amplitude=16.0) == 1
    assert np.isnan(found["signal_gain"].sel(rule="polyak")) and np.isnan(at["_adjusted"].sel(rule="polyak"))


def test_intervals_of_a_change_hold_it_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        gains = xr.DataArray([rng.normal(0, 1, 12), rng.normal(0.7, 1, 12)], dims=("rate", "seed"))
        change = capped._change(gains, "x")
        covered.append(float(change["x_low"][1]) <= 0.7 <= float(change["x_high"][1]))
    assert abs(np.mean(covered) - 0.95) < 3 * (0.05 * 0.95 / 400) ** 0.5


def test_the_figure_runs_reduces_and_draws(smoke):
    folder = smoke("rate_rules")
    found = xr.load_dataset(folder / "rate_rules.nc", engine="scipy")
    assert [*found["rate"].values] == ["constant", "as low", "capped", "capped, slow"]
    assert found["final_accuracy"].notnull().all() and (found["mean_rate"] <= 1).all()
    assert "cdat" in (folder / "out.txt").read_text()
    for name in rate_rules.FIGURE:
        assert image.imread(folder / f"{name}.png").std() > 0.05
