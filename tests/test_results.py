"""The store: what it holds, what it survives, and what it says about damage."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr

from dlf import store
from dlf.store import files
from dlf.types import Series

NUM_STEPS, CHUNK = 10, 4
STATE = {"step": jnp.zeros((), jnp.int32), "w": jnp.arange(3.0)}


@pytest.fixture
def workdir(tmp_path):
    """An empty store for a loss at every step and a spectrum at every third."""
    described = {
        "loss": Series((), "nat", "loss F", dtype=float),
        "top": Series(("rank",), "nat", "eigenvalues", "top_step", 3, (2,), float),
    }
    store.create(tmp_path, NUM_STEPS, CHUNK, described, {"config": "{}", "commit": "abc"})
    files.write_json(tmp_path / "meta.json", {"status": "running"}, signed=True)
    return tmp_path


def series(first, last):
    loss = np.arange(first, last, dtype=float)
    return {"loss": loss, "top": np.stack([loss, -loss], 1)}


def fill(workdir, until=NUM_STEPS):
    for first in range(0, until, CHUNK):
        last = min(first + CHUNK, until)
        store.commit(workdir, first, series(first, last), STATE | {"step": jnp.asarray(last)})


def test_a_store_opens_with_plain_xarray_and_is_labelled(workdir):
    fill(workdir)
    run = xr.open_zarr(workdir / "metrics.zarr")
    assert run["loss"].dims == ("step",) and run["top"].dims == ("top_step", "rank")
    assert run["loss"].attrs == {"units": "nat", "long_name": "loss F"}
    np.testing.assert_array_equal(run["loss"], np.arange(10))
    np.testing.assert_array_equal(run["top_step"], [0, 3, 6, 9])
    np.testing.assert_array_equal(run["top"][:, 0], [0, 3, 6, 9])
    assert run.attrs["commit"] == "abc" and store.committed(workdir) == (10, 10)
    run.close()


def test_what_is_not_yet_measured_is_nan(workdir):
    fill(workdir, until=8)
    run = store.load(workdir)
    assert run.attrs["status"] == "running"
    np.testing.assert_array_equal(run["loss"], [*range(8), np.nan, np.nan])
    np.testing.assert_array_equal(run["top"][:, 1], [0, -3, -6, np.nan])


def test_rows_written_after_the_last_commit_do_not_show(workdir):
    fill(workdir, until=8)
    before = (workdir / "ledger.json").read_bytes()
    store.commit(workdir, 8, series(8, 10), None)
    (workdir / "ledger.json").write_bytes(before)
    assert np.isnan(store.load(workdir)["loss"][8:]).all()


def test_the_newest_checkpoint_comes_back_to_the_bit(workdir):
    fill(workdir, until=8)
    step, state, warnings = store.restore(workdir, STATE)
    assert (step, warnings) == (8, [])
    np.testing.assert_array_equal(state["w"], STATE["w"])
    assert state["step"] == 8


def test_only_the_newest_checkpoints_are_kept(workdir):
    fill(workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"8", "10"}


def test_an_empty_store_starts_from_step_zero(workdir):
    assert store.restore(workdir, STATE) == (0, None, [])


def checkpoint_files(workdir, step):
    return sorted(path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "cut", "gone"])
def test_any_damage_to_a_checkpoint_falls_back_to_the_one_before(workdir, tmp_path, damage, capfd):
    fill(workdir)
    names = [path.relative_to(workdir) for path in checkpoint_files(workdir, 10) if path.stat().st_size]
    assert len(names) > 5
    for number, name in enumerate(names):
        copy = tmp_path / f"copy {number}"
        shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("copy*"))
        damage(copy / name)
        step, state, warnings = store.restore(copy, STATE)
        assert step == 8 and state["step"] == 8
        assert warnings == [f"{copy / name} is damaged"]
    assert store.restore(workdir, STATE)[0] == 10
    assert capfd.readouterr().err == ""


def test_what_killed_processes_left_does_not_count_and_is_swept_away(workdir):
    fill(workdir, until=8)
    shutil.copytree(workdir / "checkpoints" / "8", workdir / "checkpoints" / "10")  # committed by no ledger
    chunks = workdir / "metrics.zarr" / "loss" / "c"
    left = chunks / "1.0123abcd.partial", workdir / "checkpoints" / "10.orbax-checkpoint-tmp"
    of_users = chunks / "3 (copy)", workdir / "checkpoints" / "8 (copy).json", chunks / "²"
    for path in (*left, *of_users):
        path.write_bytes(b"half")
    assert store.load(workdir)["loss"].notnull().sum() == 8
    assert store.restore(workdir, STATE)[0] == 8
    assert not any(path.exists() for path in (*left, workdir / "checkpoints" / "10"))
    assert all(path.exists() for path in of_users)
    store.commit(workdir, 8, series(8, 10), STATE)
    np.testing.assert_array_equal(store.load(workdir)["loss"], np.arange(10))


def test_without_a_sound_checkpoint_it_says_which_file_is_damaged(workdir):
    fill(workdir)
    for step in (8, 10):
        flip(max(checkpoint_files(workdir, step), key=lambda path: path.stat().st_size))
    with pytest.raises(files.StoreError, match=r"checkpoints/10/.* is damaged.*move .* away"):
        store.restore(workdir, STATE)


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "cut", "gone"])
def test_damage_to_the_store_is_named_and_measured_again_from_a_checkpoint(workdir, damage):
    fill(workdir)
    chunk = workdir / "metrics.zarr" / "loss" / "c" / "2"
    damage(chunk)
    with pytest.raises(files.StoreError, match=r"metrics.zarr/loss/c/2 is damaged"):
        store.load(workdir)
    step, _, warnings = store.restore(workdir, STATE)
    assert step == 8 and warnings == [f"{chunk} is damaged"]
    store.commit(workdir, 8, series(8, 10), STATE)
    np.testing.assert_array_equal(store.load(workdir)["loss"], np.arange(10))


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "cut", "gone"])
@pytest.mark.parametrize("name", ["step", "top_step", "rank"])
def test_a_damaged_coordinate_is_named(workdir, name, damage):
    fill(workdir)
    damage(workdir / "metrics.zarr" / name / "c" / "0")
    for read in (store.load, lambda path: store.restore(path, STATE)):
        with pytest.raises(files.StoreError, match=f"metrics.zarr/{name}/c/0 is damaged"):
            read(workdir)


@pytest.mark.parametrize("committed", ["abc", None, 3.5, -5, 11])
def test_an_impossible_commit_is_damage(workdir, committed):
    fill(workdir)
    zarr.open_group(workdir / "metrics.zarr", mode="r+").attrs["committed_steps"] = committed
    with pytest.raises(files.StoreError, match=r"metrics.zarr/zarr.json is damaged"):
        store.load(workdir)


def test_rows_that_are_measured_again_need_not_be_readable(workdir):
    fill(workdir)
    truncate(workdir / "metrics.zarr" / "loss" / "c" / "2")  # steps 8 and on, now written in parts
    step, _, _ = store.restore(workdir, STATE)
    assert step == 8
    for first in (8, 9):
        store.commit(workdir, first, series(first, first + 1), STATE)
    np.testing.assert_array_equal(store.load(workdir)["loss"], np.arange(10))


def test_a_missing_ledger_is_named(workdir):
    fill(workdir)
    (workdir / "ledger.json").unlink()
    for read in (store.load, lambda path: store.restore(path, STATE)):
        with pytest.raises(files.StoreError, match=r"ledger.json is missing: move"):
            read(workdir)


def test_damage_before_every_checkpoint_cannot_be_mended_and_says_so(workdir):
    fill(workdir)
    truncate(workdir / "metrics.zarr" / "top" / "c" / "0" / "0")
    with pytest.raises(files.StoreError, match=r"metrics.zarr/top/c/0/0 is damaged"):
        store.restore(workdir, STATE)


@pytest.mark.parametrize("name", ["meta.json", "ledger.json", "metrics.zarr/zarr.json"])
@pytest.mark.parametrize("content", ["", "{", "[1"])
def test_damaged_json_is_named(workdir, name, content):
    fill(workdir)
    (workdir / name).write_text(content)
    with pytest.raises(files.StoreError, match=f"{name} is damaged"):
        store.load(workdir)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(files.StoreError, match="holds no run"):
        store.load(tmp_path)


def test_a_run_that_diverged_before_its_first_checkpoint_and_was_killed_then_begins_again(workdir):
    store.commit(workdir, 0, series(0, 4), None)
    assert store.restore(workdir, STATE) == (0, None, [])
    fill(workdir)
    np.testing.assert_array_equal(store.load(workdir)["loss"], np.arange(10))


def test_json_is_replaced_whole(tmp_path):
    files.write_json(tmp_path / "a.json", {"status": "done"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"status": "done"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def as_before_digests(workdir, metadata):
    """Make of a folder what dlf wrote before it kept digests."""
    (workdir / "ledger.json").unlink()
    meta = json.loads((workdir / "meta.json").read_text())
    del meta["digest"]
    (workdir / "meta.json").write_text(json.dumps(meta))
    path = workdir / "metrics.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"] |= metadata
    path.write_text(json.dumps(content))


def test_a_run_from_before_there_were_digests_opens_with_a_warning_and_goes_on(workdir):
    fill(workdir, until=8)
    checksums = json.loads((workdir / "ledger.json").read_text())["checkpoints"]["8"]
    as_before_digests(workdir, {"committed_steps": 8})
    (workdir / "checkpoints" / "8.json").write_text(json.dumps(checksums))
    with pytest.warns(UserWarning, match="from before dlf kept digests"):
        np.testing.assert_array_equal(store.load(workdir)["loss"], [*range(8), np.nan, np.nan])
    with pytest.warns(UserWarning, match="from before dlf kept digests"):
        assert store.restore(workdir, STATE)[0] == 8
    store.commit(workdir, 8, series(8, 10), STATE)
    with pytest.warns(UserWarning, match="from before dlf kept digests"):  # of what it held before
        np.testing.assert_array_equal(store.load(workdir)["loss"], np.arange(10))


@pytest.mark.parametrize("lost", ["loss/c/0", "loss/c/1", "step/c/0", "zarr.json"])
def test_what_is_lost_of_a_run_from_before_digests_is_named(workdir, lost):
    fill(workdir, until=8)
    as_before_digests(workdir, {"committed_steps": 8})
    (workdir / "metrics.zarr" / lost).unlink()
    with pytest.warns(UserWarning, match="from before"), pytest.raises(files.StoreError, match=lost):
        store.load(workdir)


@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_metadata_that_are_damaged_between_two_commits_are_named(workdir, content):
    fill(workdir, until=4)
    (workdir / "metrics.zarr" / "zarr.json").write_text(content)
    with pytest.raises(files.StoreError, match=r"metrics\.zarr/zarr\.json is damaged"):
        store.commit(workdir, 4, series(4, 8), STATE)


def test_a_chunk_that_is_damaged_before_it_is_full_is_named(tmp_path):
    top = {"top": Series((), "nat", "an eigenvalue", "top_step", 4, (), float)}
    store.create(tmp_path, 20, 8, top, {})
    files.write_json(tmp_path / "meta.json", {"status": "running"}, signed=True)
    store.commit(tmp_path, 0, {"top": np.ones(3)}, STATE)
    truncate(tmp_path / "metrics.zarr" / "top" / "c" / "0")
    with pytest.raises(files.StoreError, match="c/0 is damaged: no checkpoint is left from before it"):
        store.commit(tmp_path, 3, {"top": np.ones(5)}, STATE)


def test_rows_that_do_not_fit_are_not_told_as_damage(workdir):
    with pytest.raises(IndexError):
        store.commit(workdir, 0, {"loss": np.ones((4, 7)), "top": np.ones((4, 2))}, STATE)


def test_a_checkpoint_that_cannot_be_read_is_not_told_as_damaged(workdir, monkeypatch):
    fill(workdir)
    kept, read = sorted((workdir / "checkpoints").iterdir()), Path.read_bytes

    def refused(path):
        if "checkpoints" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(PermissionError):
        store.restore(workdir, STATE)
    assert kept == sorted((workdir / "checkpoints").iterdir())
