"""The figure of curvature: what it measures, small, and the command around it."""

import jax
import numpy as np
import pytest
import xarray as xr

from analysis import composition, figures
from experiments import figure
from experiments.configs import curvature, tiny


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        # the sizes of notebook 02: the programs are compiled once for both
        run = curvature.along(tiny.get_config(), num_points=20, num_probes=4, order=32)
        images = composition.of_images((8, 8), num_examples=100, num_steps=30, num_probes=2, order=16)
    return xr.merge([run, images], combine_attrs="no_conflicts")


def test_the_classes_sum_to_the_sharpness_and_the_parts_to_the_hessian(found):
    np.testing.assert_allclose(found.class_curvature.sum("class"), found.sharpness, rtol=1e-6)
    first = found.sel(step=found.first)
    np.testing.assert_allclose(first.sharpness, found.spectrum.sel(part="Hessian")[0], rtol=1e-6)
    traces = found.spectrum.sum("rank")
    np.testing.assert_allclose(traces.sel(part=["GGN", "residual"]).sum(), traces.sel(part="Hessian"))
    error = np.maximum(found.trace_error, 1e-9)
    assert (np.abs(found.trace - traces) < 5 * error).all()
    deviation = (found.trace - traces) / found.trace_error
    np.testing.assert_allclose(found.trace_deviation, deviation, atol=1e-9)


def test_the_command_measures_once_and_draws_again(found, tmp_path, monkeypatch, command):
    monkeypatch.setattr(curvature, "measure", lambda config, results, folder: found)
    folder = tmp_path / "new"
    status, out, _ = command(figure.main, "curvature", f"--workdir={folder}")
    assert status == 1 and "trace of the GGN" in out  # it is not the run of Fig. 4
    names = {f"curvature.{suffix}" for suffix in ("nc", "json", "png", "pdf")} | {
        "measured.nc",
        "measured.json",
    }
    assert {path.name for path in folder.iterdir()} == names

    def again(config, results, folder):
        raise AssertionError("measured again")

    monkeypatch.setattr(curvature, "measure", again)
    assert command(figure.main, "curvature", f"--workdir={folder}")[1] == out
    figures.curvature(found)


@pytest.mark.parametrize("content", [b"nothing", b"CDF\x02", b""])
def test_damaged_measurements_are_measured_anew(found, tmp_path, monkeypatch, command, content):
    monkeypatch.setattr(curvature, "measure", lambda config, results, folder: found)
    for name in ("measured.nc", "curvature.nc"):
        (tmp_path / name).write_bytes(content)
    status, _, err = command(figure.main, "curvature", f"--workdir={tmp_path}")
    assert status == 1 and "measuring" in err and "Traceback" not in err
    for name in ("measured.nc", "curvature.nc"):
        xr.testing.assert_allclose(xr.load_dataset(tmp_path / name, engine="scipy"), found)


def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path, command):
    (tmp_path / "file").write_text("")
    status, _, err = command(figure.main, "curvature", f"--workdir={tmp_path / 'file'}")
    assert status == 2 and err.count("\n") == 1 and "cannot use" in err
