"""The linearised network through the configuration, `make lazy` at its smallest scale, and mistakes."""

import shutil

import jax
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree

from analysis import figures, neural_tangents_import
from analysis.findings import kernel_limits, survival
from analysis.infinite_width import infinite_ntk
from dlf import store
from dlf.store.cells import DIVERGED, DONE
from dlf.train import frozen
from experiments import build, figure, train
from experiments.configs import kernel_width, lazy_rich


def linearized(num_steps=400):
    config = lazy_rich.get_config("smoke")
    config.num_steps = num_steps
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("linearized")
    with jax.enable_x64(True):
        train.train(linearized(), workdir)
    return store.load(workdir)


def test_a_linearised_run_is_gradient_descent_on_the_explicit_tangent(run, float64):
    config = linearized()
    config.model.linearized = False
    experiment = build.build(config)
    flat, unravel = ravel_pytree(experiment.state.params)
    inputs, labels = experiment.replica.train
    apply_fn = frozen(experiment.problem, experiment.state)

    def logits(p):
        return apply_fn(unravel(p), inputs)

    start, jacobian = np.asarray(logits(flat)), np.asarray(jax.jacobian(logits)(flat))
    one_hot, delta, losses = np.eye(3)[np.asarray(labels)], np.zeros(flat.size), []
    for weights in run["class_weights"].values:
        f = start + jacobian @ delta
        p = np.exp(f - f.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gamma = weights[np.asarray(labels)]
        losses.append(-np.mean(gamma * np.log((p * one_hot).sum(axis=1))))
        gradient = np.einsum("jc,jcp->p", gamma[:, None] * (p - one_hot), jacobian) / len(labels)
        delta -= config.optimizer.learning_rate * gradient
    np.testing.assert_allclose(run["loss"], losses, rtol=1e-9)


def test_the_kernel_of_a_linearised_run_stands_still_and_that_of_the_real_one_does_not(run, tmp_path):
    ntk = run["ntk_eigenvalues"].sel(rank=0)
    np.testing.assert_allclose(ntk, ntk[0], rtol=1e-12)
    with jax.enable_x64(True):
        config = linearized()
        config.model.linearized = False
        train.train(config, tmp_path)
    real = store.load(tmp_path)["ntk_eigenvalues"].sel(rank=0)
    np.testing.assert_allclose(real[0], ntk[0], rtol=1e-12)
    assert abs(real[-1] / real[0] - 1) > 0.5


@pytest.mark.parametrize("name", ["kernel_width", "lazy_rich"])
def test_it_trains_compares_and_draws_and_then_only_draws(smoke, tmp_path, command, name):
    folder = smoke(name)
    assert (folder / f"{name}.png").stat().st_size > 10_000
    assert (folder / f"{name}.pdf").exists()
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("cells.zarr/**/*") if path.is_file()}
    before[copy / "measured.nc"] = (copy / "measured.nc").stat().st_mtime_ns
    status, again, _ = command(figure.main, name, "--scale=smoke", f"--workdir={copy}")
    assert status == 0 and again.splitlines()[:-1] == (folder / "out.txt").read_text().splitlines()[:-1]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_distances_and_slopes_are_those_of_the_stored_kernels(smoke):
    folder = smoke("kernel_width")
    stored = {name: store.load(folder / name) for name in ("main", "scaled", "initial")}
    config = kernel_width.get_config("smoke")
    found = xr.load_dataset(folder / "kernel_width.nc", engine="scipy")
    # at the first parameters all three sweeps have the same networks
    for name in ("main", "scaled"):
        same = stored["initial"]["empirical_ntk"].isel(kernel_step=0).sel(width=[8, 16], seed=[0, 1, 2])
        np.testing.assert_array_equal(stored[name]["empirical_ntk"].isel(kernel_step=0), same)
    kernel = stored["scaled"]["empirical_ntk"].sel(width=16, seed=2, kernel_step=300).values
    inputs = build.draw(config).train.inputs[::2][:15]
    settings = {k: v for k, v in config.model.items() if k not in ("name", "hidden_widths")}
    reference = np.asarray(infinite_ntk(hidden_widths=(16,), **settings)(inputs))
    expected = np.linalg.norm(kernel - reference) / np.linalg.norm(reference)
    distance = found["distance"].sel(rate="scaled", cycles=5, width=16).values[2]
    assert distance == pytest.approx(expected, rel=1e-5)
    logs = np.log(found["distance"].sel(rate="main", cycles=1).values[-2:]).mean(axis=1)
    slope = (logs[1] - logs[0]) / np.log(2)  # of the means, since both widths have as many seeds
    assert found["slope"].sel(rate="main", cycles=1).item() == pytest.approx(slope)
    rates = [axis.overrides[1]["optimizer.learning_rate"] for axis, *_ in map(tuple, [
        kernel_width.sweep("smoke"), kernel_width.sweep_scaled("smoke")])]  # fmt: skip
    assert found["learning_rate"].sel(width=16).values.tolist() == rates


def test_a_slope_and_its_error_are_those_of_a_power_law():
    widths, rng = np.array([10, 100, 1000]), np.random.default_rng(0)
    slope, error = kernel_limits.slope(
        widths, 3 * widths[:, None] ** -0.5 * np.exp(0.1 * rng.normal(size=(3, 200)))
    )
    assert slope == pytest.approx(-0.5, abs=4 * error) and 0 < error < 0.01
    assert kernel_limits.slope(widths, 3 * widths[:, None] ** -0.5 * np.ones((3, 2)))[0] == pytest.approx(
        -0.5
    )


def test_effects_are_read_off_the_series(smoke):
    folder = smoke("lazy_rich")
    sweep = store.load(folder / "main")
    found = xr.load_dataset(folder / "lazy_rich.nc", engine="scipy")
    one = dict(linearized=True, learning_rate=1.0, amplitude=70.0, seed=1)
    assert found["ntk_change"].sel(one).item() == pytest.approx(1, abs=1e-12)
    assert found["final_accuracy"].sel(one).item() == sweep["accuracy"].sel(one).values[-1]
    # the first turn ends at step 101, the loss stops at 606
    after = sweep["stability_ratio"].sel(one).sel(stability_step=slice(110, 600))
    assert after.sizes["stability_step"] == 50 and found["peak"].sel(one).item() == after.values.max()
    # the middles of turns of 101 steps, where it is measured every 10
    mid = sweep["sharpness"].sel(one).sel(stability_step=[50, 150, 250, 350, 450, 560]).values
    assert found["sharpness_change"].sel(one).item() == pytest.approx(mid[3:].mean() / mid[:3].mean())
    final = sweep["accuracy"].isel(step=-1).sel(linearized=False, learning_rate=2.0)
    gains = final.sel(amplitude=70.0).values - final.sel(amplitude=1.0).values
    real = found.sel(linearized=False, learning_rate=2.0)
    assert real["accuracy_gain"].item() == pytest.approx(gains.mean())
    assert real["accuracy_gain_error"].item() == pytest.approx(gains.std(ddof=1) / 2**0.5)
    np.testing.assert_array_equal(found["loss"], sweep["loss"].isel(seed=0))  # the series of the first seed
    figures.lazy_rich(found)


def test_the_closed_form_is_met_to_first_order_and_the_table_shows_what_was_found(smoke):
    found = xr.load_dataset(smoke("lazy_rich") / "lazy_rich.nc", engine="scipy")
    differences = found["flow_difference"]
    ratio = differences.sel(flow_rate=0.02) / differences.sel(flow_rate=0.01)
    assert float(ratio) == pytest.approx(2, rel=0.02)
    kernels = xr.load_dataset(smoke("kernel_width") / "kernel_width.nc", engine="scipy")
    effects, easier, flow = survival.in_words(found).values()
    (checks,) = kernel_limits.in_words(kernels).values()
    rows = {}
    for label, *cells in effects:
        rows.setdefault(label, []).append(cells)
    third = dict(learning_rate=2.0, linearized=False)  # after both networks at a rate of 1
    for label, amplitude in (("accuracy, static", 1.0), ("  dynamical", 70.0)):
        expected = found["final_accuracy"].sel(third | {"amplitude": amplitude})
        assert rows[label][0][2] == survival.mean_in_words(expected)
    gain, error = (found[f"accuracy_{name}"].sel(third).item() for name in ("gain", "gain_error"))
    assert rows["  gain"][0][2] == f"{gain:+.3f} ± {error:.1g}"
    peak = found["peak"].sel(third | {"amplitude": 1.0})
    assert rows["peak ηλ/2, static"][0][2] == survival.mean_in_words(peak)
    assert easier[1][1] == survival.mean_in_words(found["easier_final_accuracy"].sel(amplitude=1.0))
    assert flow[1] == ("η = 0.02", f"{float(differences[0]):.1e}")
    slope = kernels["slope"].sel(rate="scaled", cycles=5).item()
    assert checks[2][3].startswith(f"{slope:.3f} ± ")


def test_a_run_with_two_instabilities_counts_two():
    n = np.arange(6_400)
    bursts = ((n >= 1_000) & (n < 1_400)) | ((n >= 4_000) & (n < 4_300))
    loss = 1 + 0.2 * bursts * (-1.0) ** n
    dims = ("linearized", "learning_rate", "amplitude", "seed")
    steps = np.arange(0, 70_000, 100)
    cells = xr.DataArray(np.ones((1, 1, 2, 2)), dims=dims)
    sweep = xr.Dataset(
        {
            "status": cells,
            "loss": cells * xr.DataArray(loss, dims="step"),
            "accuracy": cells * xr.DataArray(loss, dims="step"),
            "validation_accuracy": cells * xr.DataArray(loss, dims="validation_step"),
            "sharpness": cells * xr.DataArray(np.ones(700), dims="stability_step"),
            "stability_ratio": cells * xr.DataArray(np.ones(700), dims="stability_step"),
            "ntk_eigenvalues": cells * xr.DataArray(np.ones((700, 1)), dims=("ntk_step", "rank")),
        },
        {"amplitude": [1.0, 70.0], "stability_step": steps},
        {"turn": 5_001, "cycle": 15_003, "stop_after": 65_013, "num_classes": 3},
    )
    found = survival.effects(sweep)
    assert (found["instabilities"] == 2).all()
    assert found["unstable"].values[0, 0, 0, 0] == pytest.approx(700 / 6_400, abs=3 / 100)


def test_a_diverged_run_counts_as_a_guess_and_in_no_other_mean():
    cells = xr.DataArray(np.ones((2, 2)), dims=("amplitude", "seed"))
    broken = xr.DataArray([[DONE, DONE], [DONE, DIVERGED]], dims=cells.dims)
    accuracy = cells.where(broken == DONE)
    sweep = xr.Dataset(
        {"status": broken, "accuracy": accuracy, "validation_accuracy": accuracy},
        {"amplitude": [1.0, 70.0]},
        {"num_classes": 3},
    )
    found = survival.final_accuracies(sweep)
    assert found["final_accuracy"].values.tolist() == [[1, 1], [1, 1 / 3]]
    assert found["accuracy_gain"].item() == pytest.approx(-1 / 3)
    assert survival.mean_in_words(accuracy.isel(amplitude=1)) == "1 ± nan"
    assert survival.mean_in_words(xr.DataArray([1.0, 2.0, np.nan], dims="seed")) == "1.5 ± 0.5"


def test_a_linearised_network_that_is_no_yes_or_no_is_refused(tmp_path, float64):
    config = lazy_rich.get_config("smoke")
    with config.ignore_type():
        config.model.linearized = "perhaps"
    with pytest.raises(build.ConfigError, match=r"model\.linearized must be True or False"):
        build.build(config)


def test_without_the_library_a_linearised_run_and_make_lazy_say_so_in_one_line(
    monkeypatch, tmp_path, command
):
    def absent():
        raise ImportError("neural-tangents is not installed: pip install it")

    monkeypatch.setattr(neural_tangents_import, "load", absent)
    path = lazy_rich.__file__
    status, _, err = command(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert (status, err) == (
        2,
        "error: model.linearized: neural-tangents is not installed: pip install it\n",
    )
    status, _, err = command(figure.main, "lazy_rich", "--scale=smoke", f"--workdir={tmp_path / 'lazy'}")
    assert (status, err) == (2, "error: neural-tangents is not installed: pip install it\n")
    assert not list(tmp_path.iterdir())


def test_mistakes_get_one_line(tmp_path, command):
    status, _, err = command(figure.main, "lazy_rich", f"--workdir={tmp_path}", "--scale=large")
    assert status == 2 and "invalid choice: 'large'" in err and err.count("\n") == 1
    (tmp_path / "file").write_text("")
    status, _, err = command(figure.main, "lazy_rich", "--scale=smoke", f"--workdir={tmp_path / 'file'}")
    assert status == 2 and "cannot use" in err and err.count("\n") == 1
