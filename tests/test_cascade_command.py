"""`make cascades` at its smallest scale, its second pass, and what it says to mistakes."""

import csv
import shutil

import jax
import numpy as np
import pytest
import xarray as xr

from analysis import cascades as periods
from analysis.findings import onsets
from dlf import store, train
from dlf.store import checkpoints
from experiments import build, figure, records, second_pass
from experiments.configs import cascades


@pytest.fixture(scope="module")
def folder(smoke):
    return smoke("cascades")


def test_it_trains_measures_and_draws_and_then_only_draws(folder, tmp_path, command):
    out, err = (folder / "out.txt").read_text(), (folder / "err.txt").read_text()
    assert "the tracker takes 19 measurements of about" in err and "gradients" in err
    assert "second pass, the onsets at every step: 256 measurements of about" in err
    for name in ("cascades", "bifurcation", "static_dynamic"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.pdf").exists()
    with (folder / "instabilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows and list(rows[0]) == list(periods.Instability._fields)
    assert f"{int(rows[0]['onset']):,}" in out
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("metrics.zarr/**/*") if path.is_file()}
    before[copy / "measured.nc"] = (copy / "measured.nc").stat().st_mtime_ns
    status, again, err = command(figure.main, "cascades", "--scale=smoke", f"--workdir={copy}")
    assert status == 0 and "the tracker takes" not in err and "second pass" not in err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert again.splitlines()[:-1] == out.splitlines()[:-1]


@pytest.mark.parametrize("damage", [lambda content: content[:1_000], lambda content: content[:-8] + 8 * b"?"])
def test_a_damaged_second_pass_is_measured_anew(folder, tmp_path, command, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "measured.nc").write_bytes(damage((copy / "measured.nc").read_bytes()))
    status, _, err = command(figure.main, "cascades", "--scale=smoke", f"--workdir={copy}")
    assert status == 0 and "second pass" in err
    twins = [xr.load_dataset(at / "measured.nc", engine="scipy") for at in (copy, folder)]
    xr.testing.assert_identical(*(twin.assign_attrs(seconds=0) for twin in twins))


def test_thresholds_of_a_sweep_go_from_command_to_figure(smoke):
    folder = smoke("cascade_rates")
    assert (folder / "cascade_rates.png").stat().st_size > 10_000 and (folder / "cascade_rates.pdf").exists()
    assert "η = 0.5" in (folder / "out.txt").read_text()


def test_the_second_pass_follows_the_run_to_the_bit_from_its_checkpoints(folder):
    with jax.enable_x64(True):
        config = cascades.get_config("smoke")
        run = store.load(folder / "run")
        assert len(list((folder / "run" / "checkpoints").iterdir())) == 15
        found = second_pass.measure_windows(config, folder / "run", [(250, 280), (90, 100), (590, 600)])
        steps = found["step"].values
        assert {*range(250, 280), *range(90, 100), *range(590, 600)} <= {*steps.tolist()}
        assert len(steps) == len({*steps.tolist()}) and steps.max() == 599 and len(steps) < 130
        np.testing.assert_array_equal(found["loss"], run["loss"].sel(step=steps))
        # the same eigenvalues as those of the first pass, where both have measured
        both = sorted({*steps.tolist()} & {*run["tracker_step"].values.tolist()})
        assert both
        again = found["tracked_eigenvalues"].sel(step=both)[:, 0]
        once = run["tracked_eigenvalues"].sel(tracker_step=both, rank=0)
        np.testing.assert_allclose(again, once, rtol=1e-3)


def test_a_damaged_checkpoint_is_passed_over_and_the_others_resume_with_the_same_bits(folder, tmp_path):
    folder = shutil.copytree(folder / "run", tmp_path / "run") / "checkpoints"
    with jax.enable_x64(True):
        config = cascades.get_config("smoke")
        experiment, run = build.build(config), store.load(folder.parent)
        like = experiment.state, train.init_carries(experiment.run.probes, experiment.state)
        state, carries = checkpoints.load(folder, 400, like)
        _, _, series = build.make_loop(experiment)(experiment.replica, state, carries, 100)
        rows = run["tracked_eigenvalues"].sel(tracker_step=slice(400, 499))
        np.testing.assert_array_equal(series["tracked_eigenvalues"][16::32], rows)
        for name in ("tracked_identity", "network_moved", "tracked_matvecs", "tracked_audit"):
            found = np.asarray(series[name])[16::32]
            expected = run[name].sel(tracker_step=slice(400, 499)).values
            np.testing.assert_array_equal(found, expected, err_msg=name)
        np.testing.assert_array_equal(
            series["log_growth"], run["log_growth"].sel(lyapunov_step=slice(400, 499))
        )
        assert store.checkpoint_before(folder.parent, 250, like)[0] == 240
        next(path for path in (folder / "240").rglob("*") if path.is_file()).write_bytes(b"")
        assert store.checkpoint_before(folder.parent, 250, like)[0] == 200
        assert store.checkpoint_before(folder.parent, 39, like) is None


def test_the_cost_counts_measurements_and_gradients(folder):
    with jax.enable_x64(True):
        estimate = second_pass.estimate_cost(cascades.get_config("smoke"))
    assert estimate.num_measurements == 19
    assert estimate.gradients == pytest.approx(19 * estimate.gradients_per_measurement)
    # at least 8 products of a warm start, each of more than one gradient
    assert estimate.gradients_per_measurement > 8


def test_forecasts_cover_the_rest_of_their_cycle(folder):
    with jax.enable_x64(True):
        run = records.load(folder / "run")
        found = onsets.forecasts(run)
    first = found.sel(forecast_step=100)
    assert np.isnan(first.sel(tracker_step=slice(0, 75))).all()
    assert np.isfinite(first.sel(tracker_step=slice(100, 300))).all()
    assert np.isnan(first.sel(tracker_step=slice(325, None))).all()  # a cycle: three turns of 101 steps


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--scale=large"], "invalid choice: 'large'"),
        (["--launcher=slurm"], "--launcher=slurm needs --jobs=N"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_mistakes_get_one_line(tmp_path, command, arguments, message):
    status, _, err = command(figure.main, "cascades", f"--workdir={tmp_path}", *arguments)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path, command):
    (tmp_path / "file").write_text("")
    status, _, err = command(figure.main, "cascades", "--scale=smoke", f"--workdir={tmp_path / 'file'}")
    assert status == 2 and "cannot use" in err and len(err.strip().splitlines()) == 1
