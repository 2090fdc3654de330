"""The commands as a person uses them: whole runs, interrupts, kills, faults and mistakes."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

from analysis import figures
from dlf import store
from dlf.store.files import StoreError, read_meta, write_json
from experiments import records, train

ROOT = Path(__file__).parent.parent
TINY = ROOT / "experiments" / "configs" / "tiny.py"


def get_config(name, **changes):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.update(changes)
    return config


def assert_same_series(workdir, reference):
    found, expected = store.load(workdir), store.load(reference)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def start(workdir, *arguments, limit="unlimited"):
    train_tiny = [sys.executable, "-m", "experiments.train", f"--config={TINY}", f"--workdir={workdir}"]
    # `exec`, so that signals reach the run; `limit` is in blocks of 1024 bytes
    command = ["bash", "-c", f'ulimit -f {limit} && exec "$@"', "bash", *train_tiny, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get so far"
        time.sleep(0.002)


def committed(workdir):
    try:
        return store.committed(workdir)[0]
    except StoreError:
        return -1


@pytest.mark.parametrize("name", ["fig4", "fig4_static", "fig4_updated", "tiny"])
def test_every_config_of_one_run_builds_and_takes_two_steps(float64, tmp_path, name):
    meta = train.train(get_config(name, num_steps=2), tmp_path)
    assert meta["status"] == "done"
    run = store.load(tmp_path)
    assert np.isfinite(run["loss"]).all() and run.sizes["step"] == 2


def test_the_store_holds_what_other_tools_read(reference):
    run = xr.open_zarr(reference / "metrics.zarr")
    dims = {name: variable.dims for name, variable in run.data_vars.items()}
    assert dims == {
        "loss": ("step",),
        "static_loss": ("step",),
        "accuracy": ("step",),
        "class_weights": ("step", "class"),
        "learning_rate": ("step",),
        "threshold": ("step",),
        "hessian_eigenvalues": ("hessian_step", "rank"),
        "hessian_residuals": ("hessian_step", "rank"),
        "hessian_converged": ("hessian_step",),
        "ntk_eigenvalues": ("ntk_step", "rank"),
    }
    np.testing.assert_array_equal(run["step"], np.arange(600))
    np.testing.assert_array_equal(run["hessian_step"], np.arange(0, 600, 10))
    assert all(np.isfinite(run[name]).all() for name in dims)
    assert all(run[name].attrs["units"] for name in dims)
    assert all(run[name].dtype == np.float64 for name in dims)
    assert json.loads(run.attrs["config"])["schedule"]["amplitude"] == 5.0
    assert "commit" in run.attrs
    run.close()
    meta = json.loads((reference / "meta.json").read_text())
    assert {"status", "seconds", "commit", "dirty", "command", "versions", "devices", "x64"} <= set(meta)
    assert (reference / "checkpoints" / "600").is_dir()


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("chosen", [slice(1, None, 2), pytest.param(slice(None), marks=pytest.mark.soak)],
                         ids=["some", "all"])  # fmt: skip
def test_a_run_killed_at_many_moments_ends_with_the_same_bits(tmp_path, reference, chosen):
    moments = [
        lambda: (tmp_path / "config.json").exists(),  # before the store is complete
        lambda: (tmp_path / "metrics.zarr").exists(),  # before meta.json
        lambda: (tmp_path / "meta.json").exists(),  # before the first row
        lambda: committed(tmp_path) >= 100,  # right after a commit
        lambda: (tmp_path / "checkpoints" / "300").exists(),  # between checkpoint and commit
        lambda: (tmp_path / "metrics.zarr/loss/c/4").exists(),  # in the middle of the rows of a chunk
    ]
    for moment in moments[chosen]:
        process = start(tmp_path, "--resume")
        wait_until(moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(tmp_path, "--resume")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_series(tmp_path, reference)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "at", [(train, "build"), (records, "provenance"), (train, "make_loop"), (store, "damage")]
)
def test_a_folder_that_is_replaced_is_left_alone(tmp_path, monkeypatch, begun, at):
    folder, other, original = tmp_path / "run", tmp_path / "other", getattr(*at)
    config = get_config("tiny", num_steps=4, steps_per_chunk=2, float64=False)
    if begun:
        train.train(config, folder)
        write_json(folder / "meta.json", read_meta(folder) | {"status": "running"}, signed=True)
    else:
        folder.mkdir()
    config.seed = 5
    train.train(config, other)
    before = {path.relative_to(other): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    config.seed = 0

    def replaced(*of):
        if other.exists():
            folder.rename(tmp_path / "moved")
            other.rename(folder)
        return original(*of)

    monkeypatch.setattr(*at, replaced)
    with pytest.raises(store.StoreError, match="moved, removed or changed"):
        train.train(config, folder, resume=True)
    assert before == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("lost", ["metrics.zarr/loss/c/0", "config.json", "metrics.zarr/step/c/0"])
def test_a_run_of_which_a_part_is_lost_while_it_goes_on_is_not_done(tmp_path, monkeypatch, lost):
    commit = store.commit

    def lose(workdir, first_step, *arguments):
        commit(workdir, first_step, *arguments)
        if first_step == 2:  # the last one
            (workdir / lost).write_bytes(b"{}")

    monkeypatch.setattr(store, "commit", lose)
    with pytest.raises(store.StoreError, match=f"{lost} (was|is) damaged"):
        train.train(get_config("tiny", num_steps=4, steps_per_chunk=2, float64=False), tmp_path)
    assert read_meta(tmp_path)["status"] == "running"


def test_a_run_killed_between_store_and_meta_starts_anew(tmp_path, reference, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_meta", killed)
    with jax.enable_x64(True), pytest.raises(KeyboardInterrupt):
        train.train(get_config("tiny"), tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "metrics.zarr").exists() and not (tmp_path / "meta.json").exists()
    with jax.enable_x64(True):
        assert train.train(get_config("tiny"), tmp_path, resume=True)["status"] == "done"
    assert_same_series(tmp_path, reference)


def test_a_run_killed_between_its_last_commit_and_meta_is_done(tmp_path, reference):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "meta.json", read_meta(tmp_path) | {"status": "running"}, signed=True)
    with jax.enable_x64(True):
        assert train.train(get_config("tiny"), tmp_path, resume=True)["status"] == "done"
    assert json.loads((tmp_path / "meta.json").read_text())["status"] == "done"
    assert_same_series(tmp_path, reference)


@pytest.mark.parametrize("names", [["meta.json"], ["checkpoints"], ["meta.json", "checkpoints"]])
def test_a_lost_part_of_a_run_is_missed_and_nothing_is_overwritten(command, tmp_path, reference, names):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    for lost in (tmp_path / name for name in names):
        lost.unlink() if lost.is_file() else shutil.rmtree(lost)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, _, err = command(train.main, f"--config={TINY}", f"--workdir={tmp_path}", "--resume")
    assert status == 2 and names[0] in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{"])
@pytest.mark.parametrize("name", ["config.json", "meta.json", "metrics.zarr/zarr.json"])
def test_a_damaged_json_file_is_named(command, tmp_path, reference, name, content):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    status, _, err = command(train.main, f"--config={TINY}", f"--workdir={tmp_path}", "--resume")
    assert status == 2 and f"{name} is damaged" in err and err.count("\n") == 1


def test_a_resume_on_other_code_says_so_and_is_recorded(tmp_path, reference, capfd):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    other = {"status": "interrupted", "commit": "another"}
    write_json(tmp_path / "meta.json", read_meta(tmp_path) | other, signed=True)
    with jax.enable_x64(True):
        meta = train.train(get_config("tiny"), tmp_path, resume=True)
    assert "resumed with another commit" in capfd.readouterr().err
    assert len(meta["resumed"]) == 1


def test_a_run_without_probes_and_period_can_be_drawn(float64, tmp_path):
    config = get_config("tiny", num_steps=20)
    config.unlock()
    config.probes, config.schedule = {}, {"name": "constant"}
    train.train(config, tmp_path)
    run = records.load(tmp_path)
    assert len(figures.fig4(run).axes) == 6 and not {"period", "turn"} & set(run.attrs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_commits_says_how_to_go_on_and_goes_on(tmp_path, reference, number):
    process = start(tmp_path)
    wait_until(lambda: committed(tmp_path) >= 100, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err.splitlines()[-1] and "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    run = store.load(tmp_path)
    assert run.attrs["status"] == "interrupted"
    assert np.isfinite(run["loss"]).sum() == run.attrs["committed_steps"] < 600
    with jax.enable_x64(True):
        assert train.train(get_config("tiny"), tmp_path, resume=True)["status"] == "done"
    assert_same_series(tmp_path, reference)


@pytest.mark.parametrize(
    ("limit", "width", "file"), [(2, 16, "run"), (64, 4000, "checkpoints/100")], ids=["store", "checkpoint"]
)
def test_a_write_that_fails_says_so_and_loses_nothing(tmp_path, limit, width, file):
    changes = {"num_steps": 200, "model.hidden_widths": (width,)}
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    process = start(tmp_path / "run", *arguments, limit=limit)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "cannot write" in err.splitlines()[-1] and file in err.splitlines()[-1]
    config = get_config("tiny")
    config.update_from_flattened_dict(changes)
    with jax.enable_x64(True):
        train.train(config, tmp_path / "run", resume=True)
        train.train(config, tmp_path / "reference")
    assert_same_series(tmp_path / "run", tmp_path / "reference")


def test_a_finished_run_is_left_as_it_is(reference):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    with jax.enable_x64(True):
        assert train.train(get_config("tiny"), reference, resume=True)["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_a_finished_run_with_a_damaged_file_measures_it_again(command, tmp_path, reference):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.zarr/loss/c/5").write_bytes(b"not a chunk")
    status, _, err = command(train.main, f"--config={TINY}", f"--workdir={tmp_path}", "--resume")
    assert status == 0 and "loss/c/5 is damaged: going on from step 500" in err
    assert_same_series(tmp_path, reference)
    (tmp_path / "metrics.zarr/loss/c/1").unlink()
    status, _, err = command(train.main, f"--config={TINY}", f"--workdir={tmp_path}", "--resume")
    assert status == 2 and "loss/c/1 is damaged; no checkpoint is left" in err and err.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_rows(command, tmp_path):
    arguments = (
        f"--config={TINY}", f"--workdir={tmp_path}", "--config.loss.name=dmse1",
        "--config.optimizer.learning_rate=40",
    )  # fmt: skip
    status, _, err = command(train.main, *arguments)
    assert status == 1
    run = store.load(tmp_path)
    step = run.attrs["diverged_step"]
    assert run.attrs["status"] == "diverged" and 0 < step < 600
    assert f"not finite at step {step}" in err.splitlines()[-1]
    finite = np.isfinite(run["loss"])
    assert finite[:step].all() and not finite[step:].any()
    assert np.isnan(run["loss"][step + 1 :]).all()
    assert np.isfinite(run["hessian_eigenvalues"][0]).all()
    status, _, again = command(train.main, *arguments, "--resume")
    assert status == 1 and f"step {step}" in again
