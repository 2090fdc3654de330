"""Phase diagrams: the statistics on known data, and every diagram from command to figure."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib import image
from matplotlib.figure import Figure
from scipy import stats

from analysis import figures
from analysis.findings import diagrams
from dlf.store.cells import DIVERGED, DONE, NOT_RUN
from experiments import figure
from experiments.config_files import named_sweeps
from experiments.configs import large_rates
from experiments.sweep.axes import make_sweep

NAMES = ("phase_amplitude_period", "phase_width_rate", "phase_static", "phase_losses")

# Darwin's maize: heights of cross-fertilised minus self-fertilised plants in eighths of an inch. Fisher
# counted 863 of all 2^15 sign flips with a sum as large (The Design of Experiments, section 21).
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def paired(differences):
    values = xr.DataArray(np.atleast_2d(np.asarray(differences, float)), dims=("cell", "seed"))
    return diagrams.paired_gain(values, xr.zeros_like(values).isel(cell=0))


def test_the_sign_flip_test_is_exact_for_few_seeds():
    few = MAIZE[:10]
    flips = np.array(np.meshgrid(*[(1, -1)] * 10)).reshape(10, -1).T
    count = np.sum(flips @ np.array(few) >= sum(few))
    assert paired(few)["p_value"].item() == pytest.approx(count / 2**10, abs=1e-12)


def test_the_sign_flip_test_draws_flips_for_many_seeds():
    expected = 863 / 2**15
    # the standard error of a proportion over 10,000 draws
    assert paired(MAIZE)["p_value"].item() == pytest.approx(expected, abs=4 * (expected / 1e4) ** 0.5)


def test_gain_error_and_significance_are_those_of_scipy():
    rng = np.random.default_rng(1)
    rows = rng.normal(np.array([0.0, 0.3, 1.0, 2.0])[:, None], 1.0, (4, 40))
    found, t_test = paired(rows), stats.ttest_1samp(rows, 0, axis=1, alternative="greater")
    np.testing.assert_allclose(found["gain"] / found["gain_error"], t_test.statistic, rtol=1e-12)
    # two tests of the same hypothesis on normal data: close, not equal
    np.testing.assert_allclose(found["p_value"], t_test.pvalue, atol=0.02)
    adjusted = stats.false_discovery_control(found["p_value"].values)
    np.testing.assert_array_equal(found["significant"], adjusted <= 0.05)
    assert found["significant"].values.tolist()[2:] == [1, 1] and found["significant"].values[0] == 0


def test_of_many_cells_without_an_effect_hardly_one_is_significant():
    rows = np.random.default_rng(2).normal(size=(400, 10))
    found = paired(rows)
    assert (found["p_value"] <= 0.05).sum() > 5  # uncorrected, one in twenty is
    assert found["significant"].sum() == 0


def test_a_cell_in_which_a_value_is_missing_is_not_tested():
    found = paired([[1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 7])
    assert np.isnan(found["p_value"][0]) and found["p_value"][1] == 1 / 2**7
    assert found["significant"].values.tolist() == [0, 1]
    with pytest.raises(ValueError, match="needs two seeds"):
        paired([[1.0]])


def cells(accuracy, **coordinates):
    accuracy = np.asarray(accuracy, float)
    dims = (*coordinates, "seed")
    sweep = xr.Dataset({"accuracy": (dims, accuracy)}, {**coordinates, "seed": np.arange(accuracy.shape[-1])})
    return sweep.assign(status=(dims, np.where(np.isnan(accuracy), DIVERGED, DONE)))


def test_means_gains_and_the_control_are_reduced_from_the_cells():
    main = cells([[[0.5, 0.7, 0.9]], [[0.6, np.nan, 0.6]]], amplitude=[2.0, 3.0], period=[20])
    static = cells([[0.4, 0.5, 0.6]], amplitude=[1.0])
    control = main.isel(amplitude=[0]).expand_dims(precision=["double"])
    control["accuracy"] = control["accuracy"] + np.array([0.01, 0.02, 0.03])
    reduced = diagrams.reduce({"main": main, "static": static, "control": control}, num_classes=5)
    assert main["accuracy"].isnull().sum() == 1  # as it was
    # a run that diverged guesses one of five classes
    np.testing.assert_allclose(reduced["accuracy_mean"][:, 0], [0.7, (0.6 + 0.2 + 0.6) / 3])
    np.testing.assert_allclose(reduced["accuracy_std"][0, 0], 0.2)
    np.testing.assert_allclose(reduced["diverged"][:, 0], [0, 1 / 3])
    np.testing.assert_allclose(reduced["reference_accuracy_mean"], 0.5)
    np.testing.assert_allclose(reduced["accuracy_gain"][0, 0], 0.2)
    np.testing.assert_allclose(reduced["accuracy_p_value"][0, 0], 1 / 8)
    np.testing.assert_allclose(reduced["control_accuracy_shift"], [[0.02]])
    np.testing.assert_allclose(reduced["control_accuracy_error"], [[0.01 / 3**0.5]])
    assert reduced["control_accuracy_shift"].attrs["mean"] == pytest.approx(0.02)
    words = dict(diagrams.in_words(reduced)["diagram"])
    assert words["best accuracy"] == "0.700 ± 0.115 at amplitude 2.0, period 20"
    assert words["cells significantly better in accuracy"] == "0 of 2"


def test_the_static_loss_may_be_a_row_of_the_sweep():
    main = cells([[[0.4, 0.5, 0.6]], [[0.5, 0.7, 0.9]]], amplitude=[1.0, 3.0], period=[20])
    reduced = diagrams.reduce({"main": main}, num_classes=3)
    np.testing.assert_allclose(reduced["accuracy_gain"].sel(amplitude=3.0), [0.2])
    assert reduced["accuracy_gain"].sel(amplitude=1.0).isnull().all()


def test_a_sweep_that_is_not_complete_is_not_reduced():
    main = cells([[0.4, 0.5]], amplitude=[1.0])
    main["status"][0, 1] = NOT_RUN
    with pytest.raises(ValueError, match="1 cells of the sweep 'main' have not been run"):
        diagrams.reduce({"main": main}, num_classes=3)


@pytest.mark.parametrize("name", NAMES)
def test_every_diagram_goes_from_command_to_figure(smoke, name):
    folder = smoke(name)
    assert {f"{name}.png", f"{name}.pdf", f"{name}.nc"} <= {path.name for path in folder.iterdir()}
    assert "float64 minus float32" in " ".join((folder / "out.txt").read_text().split())


def test_reduced_data_that_are_damaged_are_reduced_anew_and_no_cell_is_run_again(smoke, tmp_path, command):
    folder = smoke("phase_static")
    copy = shutil.copytree(folder, tmp_path / "copy")
    cells = {path: path.stat().st_mtime_ns for path in copy.rglob("cells.zarr/**/*") if path.is_file()}
    (copy / "phase_static.nc").write_bytes(b"CDF")
    status, _, _ = command(figure.main, "phase_static", "--scale=smoke", f"--workdir={copy}")
    assert status == 0 and cells == {path: path.stat().st_mtime_ns for path in cells}
    found, expected = (xr.load_dataset(at / "phase_static.nc", engine="scipy") for at in (copy, folder))
    xr.testing.assert_identical(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_diagram_is_drawn_from_the_shipped_data(command, tmp_path, name):
    status, out, _ = command(figure.main, name, "--shipped", f"--workdir={tmp_path}")
    assert (
        status == 0
        and "OFF" not in out
        and out.count(" ok") >= 2
        and "float64 minus float32" in " ".join(out.split())
    )
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    told, documented = (json.loads((at / f"{name}.json").read_text()) for at in (tmp_path, figure.CONFIGS))
    assert all(told[key] == documented[key] for key in ("tables", "expected", "seconds"))
    shipped = Path(figure.CONFIGS / f"{name}.nc")
    assert shipped.stat().st_size < 300_000
    with xr.open_dataset(shipped, engine="scipy") as reduced:
        module = importlib.import_module(f"experiments.configs.{name}")
        drawn = getattr(figures, module.FIGURE)(reduced.load())
    assert isinstance(drawn, Figure)
    for axes in drawn.axes:
        shared = [twin for twin in drawn.axes if axes in axes.get_shared_x_axes().get_siblings(twin)]
        assert any(twin.get_xlabel() or twin.get_ylabel() for twin in [axes, *shared]) or not axes.axison


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scale_declares_sweeps_and_a_control(name, scale):
    module = importlib.import_module(f"experiments.configs.{name}")
    sizes = {}
    for sweep_name, declare in named_sweeps(module).items():
        sweep = make_sweep(module.get_config(scale), sweep_name, declare(scale))
        assert sweep.config.float64 == (sweep_name == "control")
        sizes[sweep_name] = np.prod(sweep.shape)
    if scale != "smoke":
        assert sizes["main"] > 100 and sizes["control"] >= 20


def too_large(num_seeds=8):
    """Sweeps in which the static loss fails from rate 2 on, and one dynamical loss learns at 2, none at 4."""
    rng, rates = np.random.default_rng(0), [1.0, 2.0, 4.0]
    labels = {"loss_name": ["slow", "fast"], "quiet": ["tenth"], "width": [40], "learning_rate": rates}
    learned = np.asarray([[0.99, 0.9, 0.35], [0.99, 0.45, 0.35]])[:, None, None, :, None]
    static = np.asarray([[[0.95, 0.5, 0.34]]])[..., None]
    found = {}
    for name, of, mean in (
        ("main", labels, learned),
        ("static", {"amplitude": [1.0], **dict([*labels.items()][2:])}, static),
    ):
        shape = *map(len, of.values()), num_seeds
        values = mean + 0.01 * rng.normal(size=shape)
        variables = {key: ((*of, "seed"), values) for key in ("accuracy", "validation_accuracy")}
        variables["status"] = (*of, "seed"), np.full(shape, DONE)
        found[name] = xr.Dataset(variables, of | {"seed": range(num_seeds)}).assign_attrs(num_classes=3)
    return found


def test_a_rate_counts_as_too_large_and_as_rescued_where_it_was_made_so():
    found = large_rates.reduce(too_large())
    np.testing.assert_array_equal(found["too_large"].sel(width=40), [0, 1, 1])
    cells = found["rescued"].sel(width=40, quiet="tenth")
    np.testing.assert_array_equal(cells.sel(loss_name="slow"), [0, 1, 0])
    np.testing.assert_array_equal(cells.sel(loss_name="fast"), [0, 0, 0])
    (rows,) = large_rates.in_words(found).values()
    assert rows[1:] == [
        ("too large for the static loss", "2, 4"),
        ("slow, tenth", "2"),
        ("fast, tenth", "none"),
    ]


def test_the_figure_of_rates_too_large_runs_reduces_and_draws(smoke):
    folder = smoke("large_rates")
    found = xr.load_dataset(folder / "large_rates.nc", engine="scipy")
    assert (found["too_large"] == (found["reference_accuracy_mean"] < 0.6)).all()
    assert found["accuracy_mean"].dims == ("loss_name", "quiet", "width", "learning_rate")
    assert image.imread(folder / "large_rates.png").std() > 0.05
