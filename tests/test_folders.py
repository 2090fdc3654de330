"""The folders of runs: names, locks, links in the way, and folders that are moved or replaced."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dlf import store
from dlf.store import checkpoints, files
from dlf.types import Series

ROOT = Path(__file__).parent.parent
CHUNK, NUM_STEPS = 4, 10
LOSS = {"loss": Series((), "nat", "loss F", dtype=float)}
STATE = {"step": jnp.zeros((), jnp.int32), "w": jnp.arange(3.0)}


@pytest.fixture
def workdir(tmp_path):
    """An empty store of a loss."""
    store.create(tmp_path, NUM_STEPS, CHUNK, LOSS, {})
    files.write_json(tmp_path / "meta.json", {"status": "running"}, signed=True)
    return tmp_path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_in_the_way_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "meta.partial").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(files.StoreError, match=r"meta.partial is a link"):
        files.write_json(tmp_path / "meta.json", {"status": "done"})
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("module", ["train", "sweep"])
def test_a_tilde_that_the_shell_leaves_is_the_home_folder(tmp_path, module):
    (home := tmp_path / "home").mkdir()
    (home / "mine.py").write_text(
        "from experiments.configs import tiny\nfrom experiments.sweep.axes import axis, record\n"
        "def get_config():\n    config = tiny.get_config()\n    config.num_steps, config.probes = 3, {}\n"
        "    return config\n"
        "def sweep():\n    yield axis('seed', range(2), 'seed')\n    yield record('final')\n"
    )
    command = [sys.executable, "-m", f"experiments.{module}", "--config=~/mine.py", "--workdir=~/a/run"]
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home / "a" / "run" / "meta.json").exists() and not (tmp_path / "~").exists()


def test_an_error_of_the_system_is_told_of_the_work_folder(tmp_path, monkeypatch):
    for name in ("d", "/elsewhere", None):  # as other libraries name their files
        with (
            pytest.raises(files.StoreError, match=f"cannot write to {tmp_path}: No such"),
            files.exclusive(tmp_path),
        ):
            raise OSError(2, "No such file", name)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(files.StoreError, match="cannot write to below/run: No space"),
        files.exclusive(Path("below/run")),
    ):
        raise OSError(28, "No space left on device")
    with (
        pytest.raises(files.StoreError, match="moved, removed or changed"),
        files.exclusive(tmp_path / "run"),
    ):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        raise OSError(2, "No such file", "d")


def test_two_writers_are_kept_apart(tmp_path):
    with (
        store.exclusive(tmp_path),
        pytest.raises(files.StoreError, match="another process"),
        store.exclusive(tmp_path),
    ):
        pass
    with store.exclusive(tmp_path):
        pass


@pytest.mark.parametrize(
    "lost",
    [".", "metrics.zarr", "ledger.json", "metrics.zarr/zarr.json", "metrics.zarr/step/c/0"],
)
def test_a_run_that_is_moved_away_ends_and_nothing_is_made_anew(tmp_path, workdir, lost):
    folder = shutil.copytree(workdir, tmp_path / "run")
    store.commit(folder, 0, {"loss": np.arange(4.0)}, STATE)
    (folder / lost).resolve().rename(tmp_path / "moved")
    with pytest.raises(files.StoreError, match="moved, removed or changed"):
        store.commit(folder, 4, {"loss": np.arange(4.0)}, STATE)
    assert not (folder / lost).exists()


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "__a", "zarr.json", "/a", "a\0"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(files.StoreError, match="a variable cannot be called"):
        store.create(tmp_path, 4, 4, {name: Series((), "nat", "loss F", dtype=float)}, {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[1]*?", "gs:", "a\\b", "[]", "2**-3", "**"])
def test_a_folder_that_orbax_takes_for_something_else_is_refused(tmp_path, name):
    with pytest.raises(files.StoreError, match="name another folder"):
        store.create(tmp_path / name, 4, 4, LOSS, {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[1", "s3:", "x#b?c=d", "*", "{a}", "a b", "é", "%41", "~", "$HOME"])
def test_a_folder_of_any_other_name_keeps_its_checkpoints(tmp_path, name):
    folder = tmp_path / name
    store.create(folder, NUM_STEPS, CHUNK, LOSS, {})
    store.commit(folder, 0, {"loss": np.arange(4.0)}, STATE)
    assert store.restore(folder, STATE)[0] == 4
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.zarr/loss/c", "metrics.zarr/loss"])
def test_what_a_link_leads_to_is_not_swept_away(tmp_path, workdir, name):
    mine = tmp_path / "mine"
    (mine / "7").mkdir(parents=True)
    (mine / "1.partial").write_text("precious")
    if (workdir / name).exists():
        shutil.move(workdir / name, tmp_path / "kept")
    (workdir / name).symlink_to(mine, target_is_directory=True)
    with pytest.raises(files.StoreError):
        store.restore(workdir, STATE)
    with pytest.raises(files.StoreError):
        store.commit(workdir, 0, {"loss": np.arange(4.0)}, STATE)
    assert sorted(path.name for path in mine.rglob("*")) == ["1.partial", "7"]


@pytest.mark.parametrize("name", ["metrics.zarr", "metrics.partial", "metrics.old"])
def test_a_link_in_the_way_of_a_store_is_not_followed(tmp_path, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "zarr.json").write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(mine, target_is_directory=True)
    with pytest.raises(files.StoreError, match="is a link"):
        store.create(folder, 4, 4, LOSS, {})
    assert (mine / "zarr.json").read_text() == "precious" and len([*mine.rglob("*")]) == 1


def test_a_run_in_the_place_of_another_one_is_not_written_to(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        store.create(folder, NUM_STEPS, CHUNK, LOSS, {})
        store.commit(folder, 0, {"loss": np.arange(4.0)}, STATE)
        folder.rename(tmp_path / "first") if not (tmp_path / "first").exists() else None
    shutil.move(folder, tmp_path / "second")
    shutil.copytree(tmp_path / "first", folder)  # another run, as far as this one
    with pytest.raises(files.StoreError, match="moved, removed or changed"):
        store.commit(folder, 4, {"loss": np.arange(4.0)}, STATE)
    before = contents(folder)
    with pytest.raises(files.StoreError, match="moved, removed or changed"):
        store.write_meta(folder, {"status": "done"})
    assert before == contents(folder)


def test_a_run_that_is_replaced_while_it_is_read_is_not_gone_on_with(tmp_path, monkeypatch):
    for name in ("run", "other"):
        store.create(tmp_path / name, NUM_STEPS, CHUNK, LOSS, {})
        store.commit(tmp_path / name, 0, {"loss": np.arange(4.0)}, STATE)
    before = contents(tmp_path / "other")
    load = checkpoints.load

    def replaced(*of):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "other").rename(tmp_path / "run")
        return load(*of)

    monkeypatch.setattr(checkpoints, "load", replaced)
    with pytest.raises(files.StoreError, match="moved, removed or changed"):
        store.restore(tmp_path / "run", STATE)
    assert before == contents(tmp_path / "run")


def test_a_link_in_place_of_the_folder_of_a_chunk_is_not_followed(tmp_path):
    top = Series(("rank",), "nat", "eigenvalues", "top_step", 2, (2,), float)
    store.create(tmp_path / "run", NUM_STEPS, CHUNK, {"top": top}, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0").write_text("precious")
    at = tmp_path / "run" / "metrics.zarr" / "top" / "c"
    at.mkdir()
    (at / "0").symlink_to(tmp_path / "mine")
    with pytest.raises(files.StoreError, match="c/0 is a link"):
        store.commit(tmp_path / "run", 0, {"top": np.ones((4, 2))}, STATE)
    assert (tmp_path / "mine" / "0").read_text() == "precious"


def test_it_is_the_link_that_is_named_not_what_lies_behind_it(tmp_path):
    store.create(tmp_path / "run", NUM_STEPS, CHUNK, LOSS, {})
    (tmp_path / "run" / "metrics.zarr").rename(tmp_path / "moved")
    (tmp_path / "run" / "metrics.zarr").symlink_to(tmp_path / "moved")
    with pytest.raises(
        files.StoreError, match=r"run/metrics\.zarr is a link, and nothing of dlf's: remove it$"
    ):
        store.commit(tmp_path / "run", 0, {"loss": np.ones(4)}, STATE)
