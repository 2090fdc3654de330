"""The benchmarks measure what they say, on a few steps; no time is asserted."""

import importlib.util
import json
import os

import jax
import numpy as np
import pytest

from experiments import command_line
from experiments.benchmark import __main__ as command
from experiments.benchmark import eigenpairs, image_training, many_runs, ntk_peers, one_run, timing
from experiments.configs import cascades as config_cascades
from experiments.configs import fig4 as config_fig4
from experiments.configs import tiny


@pytest.fixture(autouse=True)
def precision_is_given_back():
    """Give back the precision that a benchmark sets, as a `main` may."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def test_fig4_measures_every_row_and_the_implementations_agree(tmp_path, monkeypatch, capsys):
    path = tmp_path / "fig4.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "fig4", "--repeats=1", "--steps=4", f"--json={path}"])
    monkeypatch.setitem(command._LEAST, "repeats", 1)
    with pytest.raises(SystemExit) as ended:
        command_line.run(command.main)
    assert ended.value.code == 0 and str(path) in capsys.readouterr().out.replace("\n", "")
    content = json.loads(path.read_text())
    assert {"commit", "dirty", "date", "machine", "cpus", "versions"} <= content.keys()
    assert (content["repeats"], content["steps"]) == (1, 4)
    found = content["rows"]
    assert len({row["id"] for row in found}) == len(found)
    taken = {(row["case"], row["quantity"]) for row in found if row["median"] is not None}
    for precision in ("float64", "float32"):
        names = {one_run.COMPILED, one_run.NOTEBOOK}
        for of in ("one core", "all cores"):
            names |= {f"{timing.MATMUL}, {of}", f"compiled : bound of {of}"}
        if importlib.util.find_spec("torch"):
            names |= {*one_run.PYTORCH.values(), "compiled : PyTorch"}
        assert {(precision, name) for name in names} <= taken
    probes = {f"{words} {name}" for words in ("with", "cost of") for name in ("hessian", "ntk", "all probes")}
    programs = {f"{words}, {name}" for words in ("compile", "memory") for name in ("no probes", "all probes")}
    assert {("float64", name) for name in probes | programs} <= taken
    assert ("float32", "minibatches of 128 of 50,000: share of 1 ms") in taken


def test_ensembles_and_sweeps_are_measured(monkeypatch):
    monkeypatch.setattr(many_runs, "_REPLICAS", (1,))
    monkeypatch.setattr(many_runs, "_WINDOW", 0.0)
    before = os.sched_getaffinity(0)
    try:
        compiling, share = many_runs.overhead(repeats=2, num_steps=2)
        taken = {name: many_runs.rate(min(before), False, name) for name in ("alone", "mapped, 1")}
    finally:
        os.sched_setaffinity(0, before)
    assert np.isfinite([compiling, *share]).all() and len(share) == 2 and min(taken.values()) > 0
    assert many_runs.peak_of_sweep(10) > 0


def test_tracker_exponent_and_labels_are_measured(monkeypatch):
    config = config_cascades.get_config()
    config.num_steps = 128
    monkeypatch.setattr(config_cascades, "get_config", lambda: config)
    rows = next(one_run.tracking(repeats=1))["rows"]
    assert all(np.isfinite(row["median"]) for row in rows) and len(rows) == 10


def test_all_cases_run_in_turn_and_the_first_time_is_not_counted():
    order = []
    cases = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    taken = timing.measure(cases, repeats=2)
    assert order == list("ababab")
    assert {name: list(values) for name, values in taken.items()} == {"a": [3, 5], "b": [4, 6]}


def test_without_pytorch_its_rows_say_so():
    products = [f"{timing.MATMUL}, {name}" for name in one_run.BOUNDS]
    taken = {name: np.ones(1) for name in (one_run.COMPILED, one_run.NOTEBOOK, *products)}
    rows = one_run.speed_rows(False, taken, config_fig4.get_config())
    found = {row["quantity"]: row for row in rows}
    assert found["PyTorch: not installed"]["median"] is None
    assert found["compiled : PyTorch"]["verdict"] == "not measured"
    assert found["compiled : notebook"]["median"] == 1


def test_another_loss_is_noticed():
    series = {"loss": [1.0, 0.5], "static_loss": [1.0, 0.5], "accuracy": [0.3, 0.4]}
    other = series | {"loss": [1.0, 0.6]}
    one_run.check_agreement({one_run.COMPILED: series, one_run.NOTEBOOK: series}, rtol=1e-9)
    with pytest.raises(AssertionError, match="loss: notebook"):
        one_run.check_agreement({one_run.COMPILED: series, one_run.NOTEBOOK: other}, rtol=1e-9)


def test_spread_collects_each_number_of_each_run():
    config = tiny.get_config()
    config.float64 = bool(jax.config.jax_enable_x64)
    expected = (("loss", 50, 1.0, 0.05), ("accuracy", 599, 1.0, 0.05))
    row, last = next(one_run.spread(3, config, expected))["rows"]
    assert (row["variable"], row["step"], len(row["values"])) == ("loss", 50, 3)
    assert row["min"] <= row["mean"] <= row["max"]
    assert row["relative_std"] < 1e-3  # long before chaos
    assert np.isfinite(last["values"]).all()


@pytest.mark.parametrize(
    "words",
    [["fig4", "--repeats=2"], ["spread", "--num-runs=x"], ["nothing"], [], ["fig4", "--json=/dev/null/x"]],
)
def test_a_wrong_command_line_ends_in_one_line(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as ended:
        command_line.run(command.main)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_solvers_are_measured_at_their_true_residual(float64):
    case = next(eigenpairs.cases())
    results = [
        eigenpairs.attempt(case, name, *eigenpairs.SOLVERS[name])[0] for name in list(eigenpairs.SOLVERS)[:3]
    ]
    for result in results:
        assert result["residual"] <= eigenpairs.TOL and result["error"] <= eigenpairs.TOL
        assert result["noticed"] == ""
        assert 0 < result["num_matvecs"] < 40 and result["seconds"] > 0
    assert [result["solver"] for result in results] == ["ours, cold", "ours, warm", "unrestarted Lanczos"]
    rows = {row["quantity"]: row for row in eigenpairs.summarise(results)}
    cold, _, base = (result["num_matvecs"] for result in results)
    assert rows["cold : unrestarted"]["median"] == cold / base

    def fails(case, setting):
        raise RuntimeError

    assert eigenpairs.attempt(case, "foreign", fails, "", (None,))[0]["noticed"] == "RuntimeError"


def test_the_networks_in_plain_operations_are_ours(float64):
    for words, (model, plain, inputs, _) in ntk_peers.networks().items():
        params, model_state = model.init(jax.random.key(0), inputs)
        found, expected = plain(params, inputs), model.apply(params, model_state, inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12, err_msg=words)


def test_the_networks_in_pytorch_are_ours(float64):
    pytest.importorskip("torch")
    from experiments.benchmark import peers

    for case in eigenpairs.cases():
        model, criterion, (inputs, labels) = peers._prepare(case)
        expected = case.loss_fn(case.params, case.batch, eigenpairs.STEP)
        found = criterion(model(inputs), labels).item()
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{case.network}, {case.stage}")


def test_networks_of_images_train_and_have_a_bound(monkeypatch):
    monkeypatch.setattr(image_training, "_WINDOW", 0.0)
    monkeypatch.setattr(image_training, "BATCH_SIZE", 8)
    step, bound = (of(image_training.MYRTLE16, 8)() for of in (image_training._ours, image_training._product))
    assert step > bound > 0


def test_the_image_networks_in_pytorch_have_our_sizes():
    pytest.importorskip("torch")
    from experiments.benchmark import peers

    for name in image_training.SIDES:
        params, _ = jax.eval_shape(
            image_training.model_of(name).init, jax.random.key(0), image_training.made_images(32, 1).inputs
        )
        ours = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert sum(of.numel() for of in peers._network(name).parameters()) == ours
