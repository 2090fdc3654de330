"""Figures and configurations of images: the whole path at tiny size, on made files, and their statistics."""

import json

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib import image

from analysis import figures
from analysis.findings import tuned_losses as findings
from dlf import data, losses, models, schedules, store, train
from dlf.store.cells import DIVERGED
from experiments import build, catalogues, figure, threads
from experiments import train as training
from experiments.configs import cifar10_myrtle5, cifar10_wrn, images

SMOKE = "--scale=smoke"


def test_the_figure_at_home_runs_reduces_and_draws(command, made_clothes, tmp_path):
    asked = "images", SMOKE, f"--workdir={tmp_path}", f"--config.dataset.path={made_clothes}"
    status, _, err = command(figure.main, *asked)
    assert status == 0, err
    found = xr.load_dataset(tmp_path / "images.nc", engine="scipy")
    assert [*found["data"].values] == ["mnist1d", "digits", "fashion_mnist"]
    assert found["accuracy"].dims == ("data", "learning_rate", "amplitude")
    assert (found["accuracy"].notnull() | (found["dead"] == 1)).all()
    assert found["sharpness"].sel(point=slice(2)).notnull().all() and (found["sharpness"] > 0).any()
    assert np.isfinite(found["run_threshold"].sel(point=0)).all()
    for name in ("image_rates", "image_plane"):
        assert image.imread(tmp_path / f"{name}.png").std() > 0.05
    told = json.loads((tmp_path / "images.json").read_text())["tables"]
    assert len(told["tuned"]) == 12 and "c = " in told["over learning rates"][1][1]
    rows = (tmp_path / "digits" / "config.json").stat().st_mtime_ns
    again = command(figure.main, *asked)
    assert again[0] == 0 and (tmp_path / "digits" / "config.json").stat().st_mtime_ns == rows


def test_the_sweep_that_one_begins_with_on_cifar10(command, photographs, tmp_path):
    asked = "cifar10", SMOKE, f"--workdir={tmp_path / 'out'}", f"--config.dataset.path={photographs}"
    status, _, err = command(figure.main, *asked)
    assert status == 0, err
    found = xr.load_dataset(tmp_path / "out" / "cifar10.nc", engine="scipy")
    assert found["accuracy"].dims == ("data", "learning_rate", "amplitude")
    assert float(found["sharpness"].sel(data="cifar10", loss="static", point=0)) > 0  # of which c is made


def small(config, path):
    """Return a configuration of CIFAR-10 for a hundred images and twelve steps, all else as it is."""
    config.dataset.update(path=str(path), num_train=100, num_validation=100, num_test=100)
    config.batches.batch_size, config.num_steps, config.steps_per_chunk = 20, 12, 4
    config.stop_after, config.schedule.period = 10, 2
    for of in config.probes.values():
        of.update(every=4, **({"batch_size": 50} if "batch_size" in of else {}))
    if config.model.name == "myrtle":
        config.model.widths = (4, 4, 4, 4)
    else:
        config.model.depth, config.model.widen_factor = 10, 1
    return config


@pytest.mark.parametrize("module", [cifar10_myrtle5, cifar10_wrn])
def test_a_run_on_cifar10_goes_on_to_the_bit(same_bits_after_kills, photographs, module):
    same_bits_after_kills(small(module.get_config(), photographs))


def test_a_run_on_cifar10_evaluates_measures_and_is_drawn(photographs, tmp_path):
    config = small(cifar10_myrtle5.get_config(), photographs)
    config.probes.batch_sharpness.every = 2  # more often than the Hessian
    meta = training.train(config, tmp_path / "run")
    run = store.load(tmp_path / "run")
    assert meta["status"] == "done" and run["test_accuracy"].notnull().all()
    assert run["hessian_eigenvalues"].shape == (3, 2) and run["batch_sharpness"].notnull().all()
    rate = run["learning_rate"].values  # which grows for 300 epochs
    assert rate[0] == 0 and np.all(np.diff(rate) > 0)
    assert len(figures.image_run(run).axes) == 4


def test_the_rate_on_cifar10_is_piecewise_linear():
    config = cifar10_myrtle5.get_config()
    rate = catalogues.optimizer(config.optimizer).settings["learning_rate"]
    peak = 300 * cifar10_myrtle5.EPOCH
    at = [float(rate(step)) for step in (0, peak // 2, peak, config.num_steps)]
    np.testing.assert_allclose(at, [0, 0.01, 0.02, 0.002], rtol=1e-4, atol=1e-9)
    assert config.stop_after % (10 * config.schedule.period) == 0
    assert config.batches.drop_last and config.batches.batch_size * cifar10_myrtle5.EPOCH <= 45_000


def test_the_residual_network_is_evaluated_with_exact_statistics():
    assert cifar10_wrn.get_config().probes.evaluation.recomputed


def test_class_weights_move_in_whole_cycles_and_are_one_at_the_end():
    datasets, scales = (images.mnist1d, images.digits, images.fashion_mnist), ("smoke", "small", "paper")
    for config in (get_config(scale) for get_config in datasets for scale in scales):
        assert config.stop_after % (10 * config.schedule.period) == 0
        assert config.stop_after == (config.num_steps - 1) * 4 // 5
    assert all(images.mnist1d().stop_after % (10 * axis) == 0 for axis in (8, 15, 30, 60))


def cells(accuracy, status=0):
    """Return a sweep of one rate, two losses and seeds from test accuracies [amplitude, seed]."""
    accuracy = np.asarray(accuracy, float)[None]
    dims = ("learning_rate", "amplitude", "seed")
    variables = {name: (dims, accuracy) for name in ("test_accuracy", "validation_accuracy")}
    variables["status"] = dims, np.broadcast_to(status, accuracy.shape)
    classes = np.stack([accuracy - 0.1, accuracy + 0.1], axis=-1)
    variables["test_class_accuracy"] = (*dims, "class"), classes
    coords = {"learning_rate": [0.1], "amplitude": [1.0, 16.0], "seed": range(accuracy.shape[-1])}
    return xr.Dataset(variables, coords, {"num_classes": 10, "commit": "abc"})


def reduced(**sweeps):
    return findings.reduce({name: cells(of) for name, of in sweeps.items()})


def test_what_is_better_worse_as_good_and_undecided_is_told_apart():
    noise = np.random.default_rng(0).normal(size=24) / 100
    base = 0.8 + noise
    found = reduced(
        better=[base, base + 0.03 + noise / 5],
        worse=[base, base - 0.03 + noise / 5],
        same=[base, base + noise / 20],
        unclear=[base, base + np.roll(noise, 1) * 3],
    )
    words = [findings.VERDICTS[int(of)] for of in found["tuned_verdict"]]
    assert words == ["better", "worse", "as good, within 0.5 points", "undecided"]
    np.testing.assert_allclose(found["tuned_gain"][:2], [0.03, -0.03], atol=2e-3)
    table = findings.in_words(found)["tuned"]
    assert table[0] == ("test accuracy, %", "better", "worse", "same", "unclear")


def test_dead_runs_stand_apart():
    accuracy = np.full((2, 12), 0.9)
    accuracy[1, :3] = 0.1  # guesses
    sweep = cells(accuracy)
    status = sweep["status"].values.copy()
    status[0, 0, 0] = DIVERGED
    found = findings.over_rates(sweep.assign(status=(sweep["status"].dims, status)))
    np.testing.assert_allclose(found["dead"][0], [1 / 12, 3 / 12])
    np.testing.assert_allclose(found["accuracy"][0], [0.9, 0.9])
    # 3 of 12: Wilson's interval by its formula
    z, n, p = 1.959964, 12, 0.25
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    np.testing.assert_allclose([found["dead_low"][0, 1], found["dead_high"][0, 1]], expected, rtol=1e-5)


def test_the_rate_is_chosen_by_other_seeds_and_examples_than_judge_it():
    one = cells(np.full((2, 12), 0.5))
    other = one.assign_coords(learning_rate=[0.2])
    both = xr.concat([one, other], "learning_rate")
    both["validation_accuracy"][1, 0, :4] = 0.6  # the first third chooses
    both["validation_accuracy"][0, 0, 4:] = 0.9
    both["test_accuracy"][1, 0, 4:] = 0.7
    both["test_accuracy"][1, 0, :4] = 0.3
    found = findings.tuned(both)
    assert float(found["tuned_rate"].sel(amplitude=1.0)) == 0.2
    assert float(found["tuned_accuracy"].sel(amplitude=1.0)) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("model", "rate", "num_steps", "published"),
    [
        (models.mlp(10, (100, 100), "relu", "updated", True, dropout=0.3), 3e-3, 6_000, 0.68),
        (models.myrtle(10, (25, 25, 25), "relu"), 1e-2, 1_500, 0.94),
    ],
    ids=["mlp", "cnn"],
)
def test_published_accuracies_on_mnist1d_are_reached(model, rate, num_steps, published):
    dataset, key = data.mnist1d(), jax.random.key(0)
    decay = dict(name="cosine_decay_schedule", init_value=rate, decay_steps=num_steps)
    problem = train.make_problem(
        model, losses.cross_entropy, schedules.constant(10), dict(name="adam", learning_rate=decay),
        dataset.train, batch_fn=data.minibatches(dataset.train, 100, key=key), key=key,
    )  # fmt: skip
    params, model_state = model.init(key, dataset.train.inputs[:1])
    state = train.init_state(params, problem.optimizer, model_state)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int32 count
        state, _, _ = train.make_loop(train.problem_step(problem))(state, {}, num_steps)
    test = dataset.test["test"]
    accuracy = float(losses.accuracy(train.frozen(problem, state)(state.params, test.inputs), test.labels))
    assert accuracy >= published - 0.02  # as published, within two points, or better


def test_the_threads_of_image_networks_are_all(photographs):
    config = small(cifar10_myrtle5.get_config(), photographs)
    assert threads.multiplications(config) > threads.SMALL
    assert build.replica_bytes(config) < 10e6  # bytes stay bytes


def test_dead_runs_keep_two_losses_from_being_as_good():
    noise = np.random.default_rng(0).normal(size=12) / 100
    dead = np.where(np.arange(12) > 7, 0.1, 0.8 + noise)
    found = reduced(killed=[0.8 + noise, dead], gone=[0.8 + noise, 0 * noise + 0.1])
    assert [findings.VERDICTS[int(of)] for of in found["tuned_verdict"]] == ["undecided", "undecided"]
    np.testing.assert_allclose(found["tuned_dead"].sel(amplitude=16.0), [0.5, 1.0])
    assert float(found["tuned_gain"][0]) == pytest.approx(0, abs=1e-12)  # of the pairs that live
    (row,) = (row for row in findings.in_words(found)["tuned"] if row[0] == "dynamical, tuned")
    assert row[2] == "all dead"
