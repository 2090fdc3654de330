"""The store of a sweep: what is committed stays, what is damaged is named."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from dlf.store import cells, load
from dlf.store.cells import DIVERGED, DONE, INVALID, NOT_RUN, Store
from dlf.store.files import StoreError, write_json
from dlf.types import Series

AXES = {"loss_name": ("cross_entropy", "dmse1"), "seed": (3, 5, 8)}
SERIES = {
    "loss": Series(("step",), "nat", "dynamical loss F", shape=(4,), dtype=np.float32),
    "accuracy": Series((), "1", "training accuracy", dtype=np.float32),
}


@pytest.fixture
def workdir(tmp_path):
    """A sweep of 2 x 3 cells in blocks of 1 x 2, of which two blocks are written."""
    cells.create(tmp_path, AXES, (1, 2), SERIES, {"step": np.arange(4)}, {"config": "{}"})
    write_json(tmp_path / "meta.json", {"status": "running", "seconds": 1.0})
    store = Store(tmp_path)
    first, second, *_ = store.blocks()
    store.write(first, rows(2), np.array([[DONE, DIVERGED]]))
    store.write(second, rows(1), np.array([[INVALID]]))
    return tmp_path


def rows(num):
    return {
        "loss": np.arange(4.0 * num).reshape(1, num, 4),
        "accuracy": np.full((1, num), 0.5),
        "diverged_step": np.full((1, num), 7),
        "reason": np.full((1, num), "why", object),
    }


def test_a_sweep_that_is_going_on_is_one_labelled_data_set(workdir):
    sweep = load(workdir)
    assert dict(sweep.sizes) == {"loss_name": 2, "seed": 3, "step": 4}
    assert sweep["status"].values.tolist() == [[DONE, DIVERGED, INVALID], [NOT_RUN] * 3]
    cell = sweep.sel(loss_name="cross_entropy", seed=3)
    assert cell["loss"].values.tolist() == [0, 1, 2, 3] and cell["reason"].item() == "why"
    # what is not done has no values
    assert sweep["loss"].notnull().all("step").sum() == 1 and sweep["accuracy"].notnull().sum() == 1
    assert sweep["loss"].attrs["units"] == "nat" and sweep.attrs["status"] == "running"


def test_other_tools_read_it(workdir):
    sweep = xr.open_zarr(workdir / cells.STORE, consolidated=False)
    assert sweep["status"].attrs["long_name"] == "0 not run, 1 done, 2 diverged, 3 invalid"


def test_a_block_owns_whole_chunks_of_every_array(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("c/**/*") if path.is_file()}
    third = Store(workdir).blocks()[2]
    Store(workdir).write(third, rows(2), np.array([[DONE, DONE]]))
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("c/**/*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 5  # one chunk of each array


def test_the_status_is_written_last(workdir, monkeypatch):
    written = []
    original = cells.zarr.Array.__setitem__

    def note(array, selection, value):
        written.append(array.basename)
        original(array, selection, value)

    monkeypatch.setattr(cells.zarr.Array, "__setitem__", note)
    store = Store(workdir)
    store.write(store.blocks()[2], rows(2), np.array([[DONE, DONE]]))
    assert written[-1] == "status" and sorted(written) == sorted(
        [*SERIES, *("diverged_step", "reason", "status")]
    )


def test_a_block_without_its_status_is_not_run(workdir):
    store = Store(workdir)
    shutil.rmtree(workdir / cells.STORE / "status" / "c")
    assert (store.status() == NOT_RUN).all() and not list(store.damaged())
    assert load(workdir)["accuracy"].isnull().all()


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_damaged_value_is_named_and_its_block_run_again(workdir, damage):
    file = workdir / cells.STORE / "loss/c/0/0/0"
    if damage == "removed":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"loss/c/0/0/0 is damaged: run the sweep again"):
        load(workdir)
    ((block, name),) = Store(workdir).damaged()
    assert name == str(file)
    Store(workdir).forget(block)
    assert load(workdir)["status"].values[0].tolist() == [NOT_RUN, NOT_RUN, INVALID]


def test_a_damaged_status_is_not_run(workdir):
    (workdir / cells.STORE / "status/c/0/0").write_bytes(b"nonsense")
    assert Store(workdir).status().tolist() == [[NOT_RUN, NOT_RUN, INVALID], [NOT_RUN] * 3]
    assert load(workdir)["status"].values.tolist() == Store(workdir).status().tolist()


def test_a_store_of_another_format_is_refused(workdir):
    path = workdir / cells.STORE / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["format"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="has format 0, this version of dlf reads 1"):
        load(workdir)


def test_a_damaged_store_is_named(workdir):
    (workdir / cells.STORE / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"cells\.zarr is missing or damaged"):
        load(workdir)


@pytest.mark.parametrize(
    "file", ["seed/c/0", "loss_name/c/0", "step/c/0", "seed/zarr.json", "loss/zarr.json", "status/zarr.json"]
)
def test_a_missing_label_or_array_is_named(workdir, file):
    (workdir / cells.STORE / file).unlink()
    with pytest.raises(StoreError, match=f"{file.split('/')[0]}.* is damaged: move"):
        load(workdir)


def test_a_changed_label_is_named(workdir):
    path = workdir / cells.STORE / "seed/c/0"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreError, match="seed/c/0 is damaged: move"):
        load(workdir)


def test_a_block_that_is_written_while_it_is_loaded_is_whole_or_not_there(workdir, monkeypatch):
    store, open_zarr = Store(workdir), xr.open_zarr

    def write_then_open(*args, **options):
        store.write(store.blocks()[2], rows(2), np.array([[DONE, DONE]]))
        return open_zarr(*args, **options)

    monkeypatch.setattr(xr, "open_zarr", write_then_open)
    meanwhile = load(workdir)
    assert meanwhile["status"].values[1].tolist() == [NOT_RUN] * 3
    assert meanwhile["loss"][1].isnull().all() and set(meanwhile["reason"].values[1]) == {""}
    monkeypatch.undo()
    assert load(workdir)["status"].values[1].tolist() == [DONE, DONE, NOT_RUN]


def test_a_failing_write_leaves_the_block_not_run(workdir, monkeypatch):
    store = Store(workdir)
    original = cells.zarr.Array.__setitem__

    def fail(array, selection, value):
        if array.basename == "accuracy":
            raise OSError(28, "No space left on device")
        original(array, selection, value)

    monkeypatch.setattr(cells.zarr.Array, "__setitem__", fail)
    with pytest.raises(StoreError, match=r"cannot write to .*cells\.zarr: No space left on device"):
        store.write(store.blocks()[2], rows(2), np.array([[DONE, DONE]]))
    monkeypatch.undo()
    assert load(workdir)["status"].values[1].tolist() == [NOT_RUN] * 3
