"""The store of a sweep: what is committed stays, what is damaged is named."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from dlf.store import cells, load
from dlf.store.cells import DIVERGED, DONE, INVALID, NOT_RUN, Store
from dlf.store.files import StoreError, digests_of_metadata, read_json, write_json
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
    write_json(tmp_path / "meta.json", {"status": "running", "seconds": 1.0}, signed=True)
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
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {workdir / cells.STORE / "status/c/1/0"}  # which is there from the start
    assert len(after) == len(before) + 5  # one chunk of each other array


def test_the_status_is_written_last(workdir, monkeypatch):
    written = []
    original = cells.zarr.Array.__setitem__

    def note(array, selection, value):
        written.append(array.basename)
        original(array, selection, value)

    monkeypatch.setattr(cells.zarr.Array, "__setitem__", note)
    store = Store(workdir)
    store.write(store.blocks()[2], rows(2), np.array([[DONE, DONE]]))
    assert written[-2:] == ["digest", "status"]
    assert sorted(written[:-2]) == sorted([*SERIES, "diverged_step", "reason"])


@pytest.mark.parametrize("place", ["0/0", "1/0"])
def test_a_block_whose_status_is_lost_is_damaged_whether_it_was_run_or_not(workdir, place):
    file = workdir / cells.STORE / "status/c" / place
    file.unlink()
    with pytest.raises(StoreError, match=f"{file} is damaged: run the sweep again"):
        load(workdir)
    ((block, name),) = Store(workdir).damaged()
    assert name == str(file)
    Store(workdir).forget(block)
    assert (load(workdir)["status"].values[block] == NOT_RUN).all()


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


def test_a_damaged_status_is_named_and_not_run(workdir):
    (workdir / cells.STORE / "status/c/0/0").write_bytes(b"nonsense")
    assert Store(workdir).status().tolist() == [[NOT_RUN, NOT_RUN, INVALID], [NOT_RUN] * 3]
    with pytest.raises(StoreError, match=r"status/c/0/0 is damaged: run the sweep again"):
        load(workdir)


def test_a_block_in_the_place_of_another_is_named(workdir):
    store = Store(workdir)
    store.write(store.blocks()[2], rows(2), np.array([[DONE, DIVERGED]]))
    for name in ("loss/c/{}/0/0", "accuracy/c/{}/0", "digest/c/{}/0"):
        file = workdir / cells.STORE / name.format(0)
        file.write_bytes((workdir / cells.STORE / name.format(1)).read_bytes())
    with pytest.raises(StoreError, match=r"c/0/0.* is damaged: run the sweep again"):
        load(workdir)


def test_a_store_of_another_format_is_refused(workdir):
    path = workdir / cells.STORE / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["format"] = 0
    path.write_text(json.dumps(content))
    ledger = read_json(workdir / "ledger.json")
    ledger["metadata"] = digests_of_metadata(workdir, cells.STORE)
    write_json(workdir / "ledger.json", ledger, signed=True)
    with pytest.raises(StoreError, match="has format 0, this version of dlf reads 1"):
        load(workdir)


def test_a_damaged_store_is_named(workdir):
    (workdir / cells.STORE / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"cells\.zarr/zarr\.json is damaged or missing"):
        load(workdir)


@pytest.mark.parametrize(
    "file", ["seed/c/0", "loss_name/c/0", "step/c/0", "seed/zarr.json", "loss/zarr.json", "status/zarr.json"]
)
def test_a_missing_label_or_array_is_named(workdir, file):
    (workdir / cells.STORE / file).unlink()
    with pytest.raises(StoreError, match=f"{file} is damaged or missing: move"):
        load(workdir)


def test_a_changed_label_is_named(workdir):
    path = workdir / cells.STORE / "seed/c/0"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreError, match="seed/c/0 is damaged or missing: move"):
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


def test_a_sweep_from_before_there_were_digests_opens_with_a_warning(workdir):
    expected = load(workdir)
    (workdir / "ledger.json").unlink()
    meta = json.loads((workdir / "meta.json").read_text())
    with pytest.raises(StoreError, match=r"ledger\.json is missing"):
        load(workdir)
    del meta["digest"]
    (workdir / "meta.json").write_text(json.dumps(meta))
    shutil.rmtree(workdir / cells.STORE / "digest")
    (workdir / cells.STORE / "status/c/1/0").unlink()  # nor were those written of blocks that were not run
    path = workdir / cells.STORE / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["arrays"].remove("digest")
    content.pop("consolidated_metadata", None)
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="from before dlf kept digests"):
        found = load(workdir)
    assert found.drop_attrs().equals(expected.drop_attrs())
    write_json(workdir / "meta.json", {"status": "running", "seconds": 2.0}, signed=True)  # it goes on
    with pytest.warns(UserWarning, match="from before dlf kept digests"):
        Store(workdir).write(Store(workdir).blocks()[2], rows(2), np.array([[DONE, DONE]]))
    with pytest.warns(UserWarning, match="from before dlf kept digests"):
        assert load(workdir)["status"].values[1].tolist() == [DONE, DONE, NOT_RUN]


@pytest.mark.parametrize("name", ["loss", "reason", "digest", "status"])
@pytest.mark.parametrize("at", ["c", "c/0", "c/0/0", "c/0/0/0"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_whatever_lies_in_place_of_a_chunk_gives_way_to_it(workdir, name, at, kind):
    array = workdir / cells.STORE / name
    place = array / at
    if not place.exists():
        return  # `loss` alone has a third dimension
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.mkdir() if kind == "folder" else place.touch()
    with pytest.raises(StoreError, match="is damaged: run the sweep again"):
        load(workdir)
    store = Store(workdir)
    expected = rows(2)["accuracy"]
    for block, _ in list(store.damaged()):
        store.forget(block)
    store.write(store.blocks()[0], rows(2), np.array([[DONE, DONE]]))
    np.testing.assert_array_equal(load(workdir)["accuracy"].values[:1, :2], expected)


@pytest.mark.parametrize("at", ["c/1", "c/1/0", "c/1/0/0"])
def test_nor_does_what_lies_in_place_of_a_block_that_was_not_run_stop_it(workdir, at):
    place = workdir / cells.STORE / "loss" / at
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch() if at == "c/1" else place.mkdir()
    Store(workdir).write(Store(workdir).blocks()[2], rows(2), np.array([[DONE, DONE]]))
    assert load(workdir)["status"].values[1].tolist() == [DONE, DONE, NOT_RUN]


@pytest.mark.parametrize("at", ["loss", "loss/c", "loss/c/0", "status", "status/c"])
def test_a_link_in_place_of_a_folder_of_chunks_is_neither_written_through_nor_removed(workdir, at):
    place, elsewhere = workdir / cells.STORE / at, workdir / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    store, done = Store(workdir), np.array([[DONE, DONE]])
    with pytest.raises(StoreError, match="is a link, and nothing of dlf's: remove it"):
        store.forget(store.blocks()[0])
    with pytest.raises(StoreError, match="is a link, and nothing of dlf's: remove it"):
        store.write(store.blocks()[0], rows(2), done)
    assert place.is_symlink()
    assert before == {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "lost", ["config.json", "ledger.json", "cells.zarr/seed/c/0", "cells.zarr/zarr.json"]
)
def test_a_sweep_that_loses_a_part_is_no_longer_written(workdir, lost):
    (workdir / "config.json").write_text("{}")
    shutil.rmtree(workdir / cells.STORE)
    cells.create(workdir, AXES, (1, 2), SERIES, {"step": np.arange(4)}, {"config": "{}"})
    store = Store(workdir)
    (workdir / lost).unlink()
    with pytest.raises(StoreError, match="moved, removed or changed"):
        store.write(store.blocks()[0], rows(2), np.array([[DONE, DONE]]))


def test_a_block_that_is_damaged_after_it_was_looked_at_is_not_filled_with_nothing(workdir, monkeypatch):
    (workdir / cells.STORE / "loss/c/0/0/0").write_bytes(b"garbage12345")
    monkeypatch.setattr(Store, "damaged", lambda store: iter(()))
    with pytest.raises(StoreError, match="loss/c/0/0/0 is damaged"):
        load(workdir)


def test_what_lies_in_the_place_of_a_block_that_was_not_run_is_not_read(workdir):
    expected = load(workdir)
    for name in ("loss/c/1/1/0", "accuracy/c/1/0", "reason/c/1/1", "digest/c/1/0"):
        (workdir / cells.STORE / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / cells.STORE / name).write_bytes(b"garbage12345")
    assert load(workdir).identical(expected)


def test_a_copy_of_an_array_beside_it_is_not_read(workdir):
    store = Store(workdir)
    store.write(store.blocks()[0], rows(2), np.array([[DONE, DONE]]))
    expected = load(workdir)
    for name in ("loss", "seed"):
        shutil.copytree(workdir / cells.STORE / name, workdir / cells.STORE / f"{name} copy")
    assert load(workdir).identical(expected) and (Store(workdir).status() == store.status()).all()
