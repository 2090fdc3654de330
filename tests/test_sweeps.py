"""Sweeps: whole grids, going on, several processes, cells that fail."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dlf.store import exclusive, load
from dlf.store.cells import DIVERGED, DONE, INVALID, NOT_RUN, STORE, Store
from dlf.store.files import StoreError
from experiments import train
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.sweep import blocks, fill
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.blocks import LOCKS, work

ROOT = Path(__file__).parent.parent
VARIABLES = ("loss", "accuracy", "validation_accuracy")


def small(num_steps=60):
    config = tiny.get_config()
    config.update(float64=False, num_steps=num_steps, stop_after=num_steps)
    config.dataset.examples_per_class = 8
    config.model.hidden_widths = (6,)
    config.schedule.period = 10
    with config.unlocked():
        config.probes = dict(validation=dict(every=7))
    return config


def grid(amplitudes=(1.0, 5.0), widths=(4, 6), seeds=3, kind="final", variables=VARIABLES, config=None):
    axes = [
        axis("width", widths, lambda width: {"model.hidden_widths": (width,)}),
        axis("amplitude", amplitudes, "schedule.amplitude"),
        axis("seed", range(seeds), "seed", "dataset.seed"),
    ]
    return make_sweep(config or small(), "main", [*axes, record(kind, *variables)])


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of 2 x 2 x 3 cells, of two programs."""
    workdir = tmp_path_factory.mktemp("finished")
    with jax.enable_x64(False):
        assert fill.run(grid(), workdir)["status"] == "done"
    return workdir


def same(found, expected):
    found, expected = load(found), load(expected)
    found.attrs = expected.attrs = {}
    return found.identical(expected)


def test_a_cell_is_the_same_run_alone_to_the_bit(finished, tmp_path):
    sweep, found = grid(), load(finished)
    for index in ((0, 0, 0), (1, 1, 2)):
        alone = tmp_path / "-".join(map(str, index))
        train.train(sweep.cell(index), alone)
        series, cell = load(alone), found.isel(width=index[0], amplitude=index[1], seed=index[2])
        for name in VARIABLES:
            assert series[name].values[-1] == cell[name].item(), name


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_neither_size_nor_order_of_the_blocks_matters(finished, tmp_path, monkeypatch, order):
    fixed, each = blocks.program_bytes(grid(), small())
    if order == "backwards":
        forwards = Store.blocks
        monkeypatch.setattr(Store, "blocks", lambda store: forwards(store)[::-1])
    fill.run(grid(), tmp_path, fill.Settings(memory=fixed + 2 * each))
    assert Store(tmp_path).cells_per_block == 2 != Store(finished).cells_per_block
    assert same(tmp_path, finished)


def test_two_processes_give_the_same_as_one(finished, tmp_path):
    meta = fill.run(grid(), tmp_path, fill.Settings(launcher="local", num_jobs=2))
    assert meta["status"] == "done" and not (tmp_path / "jobs").exists()
    assert same(tmp_path, finished)


def test_running_again_fills_only_what_is_missing(finished, tmp_path):
    fixed, each = blocks.program_bytes(grid(), small())
    fill.run(grid(), tmp_path, fill.Settings(memory=fixed + 3 * each))
    store = Store(tmp_path)
    store.forget(store.blocks()[1])
    (tmp_path / STORE / "loss/c/0/0/0").unlink()  # of the first block
    kept = [path for path in tmp_path.rglob("c/1/*/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert fill.run(grid(), tmp_path)["cells"]["done"] == 12
    assert same(tmp_path, finished) and {path: path.stat().st_mtime_ns for path in kept} == before


def test_a_cell_that_cannot_be_run_or_diverges_is_recorded_and_the_rest_goes_on(tmp_path):
    rates = axis("learning_rate", (1.0, -1.0, 1e30), "optimizer.learning_rate")
    sweep = make_sweep(small(), "main", [rates, axis("seed", (0, 1), "seed"), record("final", "loss")])
    meta = fill.run(sweep, tmp_path)
    assert meta["status"] == "done" and meta["cells"] == {
        "not run": 0,
        "done": 2,
        "diverged": 2,
        "invalid": 2,
    }
    found = load(tmp_path)
    assert found["status"].values.tolist() == [[DONE] * 2, [INVALID] * 2, [DIVERGED] * 2]
    assert found["reason"].values[1, 0] == "optimizer: learning_rate must be positive and finite, got -1.0"
    step = int(found["diverged_step"].values[2, 0])
    assert found["reason"].values[2, 0] == f"the loss is not finite at step {step}" and step > 0
    assert np.isfinite(found["loss"].values[0]).all() and np.isnan(found["loss"].values[1:]).all()


def test_whole_series_and_their_steps_are_stored_where_asked(tmp_path):
    sweep = grid(widths=(6,), seeds=2, kind="series")
    fill.run(sweep, tmp_path)
    found = load(tmp_path)
    assert found["loss"].dims == ("width", "amplitude", "seed", "step") and found.sizes["step"] == 60
    assert found["validation_step"].values.tolist() == list(range(0, 60, 7))
    assert found["validation_accuracy"].notnull().all() and found["loss"].notnull().all()


def test_another_config_or_axis_does_not_mix(finished):
    changed = small()
    changed.optimizer.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"another config: config.optimizer.learning_rate was 1.0, now 0.5"):
        fill.run(grid(config=changed), finished)
    with pytest.raises(ConfigError, match=r"axes\.amplitude\.labels was"):
        fill.run(grid(amplitudes=(1.0, 6.0)), finished)


def test_only_one_sweep_at_a_time_runs_in_a_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(StoreError, match="another process is writing to"):
        fill.run(grid(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files, but no sweep"):
        fill.run(grid(), tmp_path)


def test_a_cell_whose_probe_cannot_be_built_is_recorded_too(tmp_path):
    probes = axis("every", (7, 0), "probes.validation.every")
    fill.run(make_sweep(small(), "main", [probes, record("final", "loss")]), tmp_path)
    found = load(tmp_path)
    assert found["status"].values.tolist() == [DONE, INVALID]
    assert "every must be at least 1 and at most 2147483647, got 0" in found["reason"].values[1]


def test_another_precision_is_refused_and_marks_no_cell(tmp_path):
    fill.create(grid(), tmp_path, blocks.plan(grid(), 2**30))
    with jax.enable_x64(True), pytest.raises(ConfigError, match="float64=False, but JAX runs with"):
        fill.run(grid(), tmp_path)
    assert (Store(tmp_path).status() == NOT_RUN).all()


# in the order in which they are written
@pytest.mark.parametrize(
    "left", [[], ["config.json"], ["config.json", "cells.zarr"], ["config.json", "cells.zarr", "ledger.json"]]
)
def test_a_start_that_was_killed_is_made_again(tmp_path, left):
    fill.create(grid(), tmp_path, blocks.plan(grid(), 2**30))
    for path in tmp_path.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert fill.run(grid(widths=(4,), amplitudes=(1.0,)), tmp_path)["status"] == "done"


@pytest.mark.parametrize("lost", [".", "cells.zarr", "ledger.json", "cells.zarr/zarr.json"])
def test_a_sweep_that_is_moved_away_ends_and_nothing_is_made_anew(tmp_path, lost):
    folder = tmp_path / "sweep"
    folder.mkdir()
    fill.create(grid(), folder, blocks.plan(grid(), 2**30))
    work = blocks.work(grid(), folder)
    next(work)
    (folder / lost).resolve().rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="moved, removed or changed"):
        next(work)
    assert not (folder / lost).exists()


def test_work_does_not_touch_another_sweep_in_its_folder(tmp_path):
    fill.create(grid(amplitudes=(2.0,)), tmp_path, blocks.plan(grid(amplitudes=(2.0,)), 2**30))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="moved, removed or changed"):
        next(blocks.work(grid(amplitudes=(1.0,)), tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_link_in_place_of_jobs_is_not_emptied(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    fill.run(grid(amplitudes=(1.0,)), tmp_path / "sweep")
    (tmp_path / "sweep" / "jobs").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match="jobs is a link"):
        fill.run(grid(amplitudes=(1.0,)), tmp_path / "sweep")
    assert (tmp_path / "mine" / "precious.txt").exists()


def test_a_chunk_that_vanishes_while_the_sweep_goes_on_is_told(tmp_path, monkeypatch):
    def remove(*arguments):
        for number, num in enumerate(blocks.work(*arguments)):
            if number == 1:
                next(path for path in (tmp_path / "cells.zarr/loss/c").rglob("0") if path.is_file()).unlink()
            yield num

    monkeypatch.setattr(fill, "work", remove)
    with pytest.raises(StoreError, match="was damaged meanwhile: run the sweep again"):
        fill.run(grid(), tmp_path)
    monkeypatch.undo()
    assert fill.run(grid(), tmp_path)["status"] == "done" and load(tmp_path)["loss"].notnull().all()


@pytest.mark.parametrize("launcher", ["here", "local"])
def test_what_killed_launches_left_is_swept_away_and_jobs_of_slurm_stay(tmp_path, launcher):
    jobs, outside = tmp_path / "sweep" / "jobs", tmp_path / "outside"
    fill.run(grid(amplitudes=(1.0,)), tmp_path / "sweep")
    outside.mkdir()
    for name in ("local-01234567", "slurm-01234567"):
        (jobs / name).mkdir(parents=True)
        (jobs / name / "7_0_result.pkl").touch()
    (jobs / "7_0_result.pkl").touch()  # as older versions of dlf left them
    (jobs / "link").symlink_to(outside)
    (tmp_path / "sweep" / "stop").touch()
    store = Store(tmp_path / "sweep")
    store.forget(store.blocks()[0])
    settings = fill.Settings(launcher=launcher, num_jobs=1)
    assert fill.run(grid(amplitudes=(1.0,)), tmp_path / "sweep", settings)["status"] == "done"
    assert [path.name for path in jobs.iterdir()] == ["slurm-01234567"] and outside.exists()
    assert not (tmp_path / "sweep" / "stop").exists()


def test_a_block_that_another_process_runs_is_waited_for_and_taken_if_that_dies(tmp_path):
    fill.create(grid(), tmp_path, blocks.plan(grid(), 2**30))
    code = (
        "import fcntl, sys, time; locks = open(sys.argv[1], 'a'); fcntl.lockf(locks, fcntl.LOCK_EX, 1, 0); "
        "print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / LOCKS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert list(work(grid(), tmp_path, patient=False)) == [6]
        timer = threading.Timer(1.0, other.kill)
        timer.start()
        assert fill.run(grid(), tmp_path)["status"] == "done"
        assert not timer.is_alive()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_preempted_worker_is_queued_again(finished, tmp_path):
    fill.create(grid(), tmp_path, blocks.plan(grid(), 2**30))
    settings = fill.Settings(launcher="local", num_jobs=1)
    (job,) = fill.submit(grid(), tmp_path, settings)
    deadline = time.monotonic() + 120
    while not (tmp_path / LOCKS).exists():  # the worker is at work
        assert time.monotonic() < deadline
        time.sleep(0.05)
    guard = job.job_id
    (worker,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    os.kill(int(worker), signal.SIGUSR2)  # what Slurm sends before it takes a node away
    job.wait()
    said = "".join(path.read_text() for path in (job.paths.stderr, job.paths.stdout) if path.exists())
    assert "preempted" in said and "Requeued" in said
    assert same(tmp_path, finished)


def test_the_memory_decides_the_blocks(tmp_path):
    sweep = grid(seeds=40)
    fixed, each = blocks.program_bytes(sweep, small())
    sizes = {num: blocks.plan(sweep, fixed + num * each).cells_per_block for num in (1, 7, 1000)}
    # a program of its own for each width; chunks of one size; at most 16 cells that are mapped
    assert sizes == {1: (1, 1, 1), 7: (1, 1, 7), 1000: (1, 1, 14)}
    too_small = r"takes .* MiB: --memory=.* is too small"
    with pytest.raises(ConfigError, match=f"a block of one cell {too_small}"):
        fill.run(sweep, tmp_path, fill.Settings(memory=fixed))
    with pytest.raises(ConfigError, match=f"a block of one cell {too_small}"):
        fill.run(grid(widths=(10**9,)), tmp_path)  # before its parameters are drawn
    assert not list(tmp_path.iterdir())
    fill.create(sweep, tmp_path, blocks.plan(sweep, 2**30))
    with pytest.raises(ConfigError, match=f"as cut when it was created, {too_small}"):
        fill.run(sweep, tmp_path, fill.Settings(memory=fixed + each))


def test_the_blocks_cover_every_cell_once(finished):
    covered = np.zeros((2, 2, 3), int)
    for block in Store(finished).blocks():
        covered[block] += 1
    assert (covered == 1).all()
