"""The benchmarks measure what they say, on a few steps; no time is asserted."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments.benchmark import __main__ as command
from experiments.benchmark import baselines, curvature, fig4, ntk, solvers, spread
from experiments.configs import fig4 as config_fig4
from experiments.configs import tiny


def test_fig4_measures_every_row_and_the_implementations_agree(tmp_path):
    found = fig4.benchmark(tmp_path / "fig4.json", repeats=1, num_steps=4)
    written = json.loads((tmp_path / "fig4.json").read_text())["rows"]
    assert [row["quantity"] for row in written] == [row.quantity for row in found]
    taken = {(row["precision"], row["quantity"]) for row in written if row["median"] is not None}
    for precision in ("float64", "float32"):
        names = {baselines.COMPILED, baselines.NOTEBOOK, fig4.MATMUL, "compiled : bound"}
        if importlib.util.find_spec("torch"):
            names |= {*baselines.PYTORCH.values(), "compiled : PyTorch"}
        assert {(precision, name) for name in names} <= taken
    probes = {f"{words} {name}" for words in ("with", "cost of") for name in ("hessian", "ntk", "all probes")}
    programs = {f"{words}, {name}" for words in ("compile", "memory") for name in ("no probes", "all probes")}
    assert {("float64", name) for name in probes | programs} <= taken


def test_without_pytorch_its_rows_say_so():
    config = config_fig4.get_config()
    taken = {name: [1.0] for name in (baselines.COMPILED, baselines.NOTEBOOK, fig4.MATMUL)}
    found = {row.quantity: row for row in fig4.rows(False, taken, config)}
    assert found["PyTorch: not installed"].median is None
    assert found["compiled : PyTorch"].verdict == "not measured"
    assert found["compiled : notebook"].median == 1


def test_another_loss_is_noticed():
    series = {"loss": [1.0, 0.5], "static_loss": [1.0, 0.5], "accuracy": [0.3, 0.4]}
    other = series | {"loss": [1.0, 0.6]}
    baselines.check_agreement({baselines.COMPILED: series, baselines.NOTEBOOK: series}, rtol=1e-9)
    with pytest.raises(AssertionError, match="loss: notebook"):
        baselines.check_agreement({baselines.COMPILED: series, baselines.NOTEBOOK: other}, rtol=1e-9)


def test_spread_collects_each_number_of_each_run():
    config = tiny.get_config()
    config.float64 = bool(jax.config.jax_enable_x64)
    row, last = spread.spread(config, (("loss", 50, 1.0, 0.05), ("accuracy", 599, 1.0, 0.05)), num_runs=3)
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
        command.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_solvers_are_measured_at_their_true_residual(float64):
    case = next(curvature.cases())
    for name, warm in (("ours, cold", False), ("ours, warm", True)):
        result = curvature.measure(case, name, [solvers.ours(case, warm)], repeats=1)
        assert result.residual <= solvers.TOL and result.error <= solvers.TOL and result.noticed == ""
        assert 0 < result.num_matvecs < 40 and result.seconds > 0
    too_few = [solvers.others(case)["unrestarted Lanczos"][0]]
    base = curvature.measure(case, "unrestarted Lanczos", too_few, repeats=1)
    rows = {
        row.quantity: row for row in curvature.summarise([result._replace(solver="ours, cold"), result, base])
    }
    assert rows["cold : unrestarted"].median == result.num_matvecs / base.num_matvecs

    def fails():
        raise RuntimeError

    assert curvature.measure(case, "foreign", [fails], repeats=1).noticed == "RuntimeError"


def test_the_networks_in_plain_operations_are_ours(float64):
    for words, network in ntk.networks():
        params = network.model.init(jax.random.key(0), network.inputs)
        found, expected = network.plain(params, network.inputs), network.model.apply(params, network.inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12, err_msg=words)
