"""The figure of curvature: what it measures, small, and the command around it."""

import jax
import numpy as np
import pytest
import xarray as xr

from analysis import figures
from experiments import curvature
from experiments.configs import tiny


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        run = curvature.measure_run(tiny.get_config(), num_points=4, num_probes=4, order=16)
        images = curvature.measure_images((4, 4), num_examples=40, num_steps=5, num_probes=2, order=6)
    return xr.merge([run, images], combine_attrs="no_conflicts")


def test_the_classes_sum_to_the_sharpness_and_the_parts_to_the_hessian(found):
    np.testing.assert_allclose(found.class_curvature.sum("class"), found.sharpness, rtol=1e-6)
    first = found.sel(step=found.first)
    np.testing.assert_allclose(first.sharpness, found.spectrum.sel(part="Hessian")[0], rtol=1e-6)
    traces = found.spectrum.sum("rank")
    np.testing.assert_allclose(traces.sel(part=["GGN", "residual"]).sum(), traces.sel(part="Hessian"))
    error = np.maximum(found.trace_error, 1e-9)
    assert (np.abs(found.trace - traces) < 5 * error).all()


def test_the_command_measures_once_and_draws_again(found, tmp_path, monkeypatch, command):
    monkeypatch.setattr(curvature, "measure_run", lambda config: found)
    monkeypatch.setattr(curvature, "measure_images", lambda: xr.Dataset())
    status, out, _ = command(curvature.main, "--workdir", tmp_path / "new")
    assert status == 0 and "trace of the GGN" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"curvature.{s}" for s in ("nc", "png", "pdf")
    }
    monkeypatch.delattr(curvature, "measure_run")
    assert command(curvature.main, "--workdir", tmp_path / "new")[0] == 0
    figures.curvature(found)


def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path, command):
    (tmp_path / "curvature.nc").write_text("nothing")
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path, tmp_path / "file"):
        status, _, err = command(curvature.main, "--workdir", workdir)
        assert status == 2 and err.count("\n") == 1 and "cannot use" in err
