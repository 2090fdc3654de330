"""The store of one training run: create, commit, resume and load it as a labelled data set.

A work folder holds config.json, meta.json, metrics.zarr, checkpoints/ and ledger.json. The store is
allocated whole, filled with NaN, and written by region; every file is replaced in one move. The ledger comes
last, after the checkpoint: how far the run is committed, the digests of all metadata and of the committed
rows of every chunk, the checksums of the checkpoints. So a kill at any moment loses at most the steps since
the last commit, and what is not as it was written is known.
"""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dlf.store import checkpoints, files
from dlf.store.files import LEDGER, StoreError
from dlf.store.series import allocate, chunk_file, damaged_labels, is_coordinate, read, whole
from dlf.types import Series

STORE = "metrics.zarr"
_CHECKPOINTS = "checkpoints"
_LENGTH = 16  # of a digest; those of a series stand in one string, which is quick to read and to write

Ledger = dict[str, Any]


def create(
    workdir: Path,
    num_steps: int,
    steps_per_chunk: int,
    series: Mapping[str, Series],
    attributes: Mapping[str, Any],
) -> None:
    """Allocate metrics.zarr anew, for `series` along a run of `num_steps` steps."""
    checkpoints.check_path(workdir)
    sizes: dict[str, int] = {}  # series that share a dimension are padded to the longest
    for of in series.values():
        for dim, size in zip(of.dims, of.shape, strict=True):
            sizes[dim] = max(size, sizes.get(dim, 0))
    coordinates = {dim: (np.arange(size), {"units": "1"}) for dim, size in sizes.items()}
    stored, chunks = {}, {}
    for name, of in series.items():
        steps, row = np.arange(0, num_steps, of.every), tuple(sizes[dim] for dim in of.dims)
        coordinates[of.step] = (steps, {"units": "step", "every": of.every})
        stored[name] = of._replace(dims=(of.step, *of.dims), shape=(len(steps), *row))
        chunks[name] = (max(1, min(steps_per_chunk, num_steps) // of.every), *row)
    allocate(workdir / STORE, coordinates, stored, chunks, attributes)
    ledger = {"id": uuid.uuid4().hex, "committed_steps": 0, "num_steps": num_steps}
    ledger |= {"metadata": files.digests_of_metadata(workdir, STORE), "checkpoints": {}}
    ledger |= {"rows": dict.fromkeys(stored, "")}
    _write_ledger(workdir, ledger)


def commit(
    workdir: Path, first_step: int, series: Mapping[str, np.ndarray], state: Any, checkpoints_kept: int = 2
) -> None:
    """Write the rows of one chunk, then the state after it, then the ledger.

    `series` hold one row for each step from `first_step` on; a sparse variable keeps its own.
    `state` is a pytree, or None where the run ends without a state to go on from. Of the checkpoints
    the newest are kept: by default one to resume from, and one if that is damaged.

    Raises StoreError if the folder is no longer that of the run, or was damaged.
    """
    ledger = _own_ledger(workdir, first_step)
    num_rows = len(next(iter(series.values())))
    try:
        group = zarr.open_group(workdir / STORE, mode="r+", zarr_format=3)
        for name, rows in series.items():
            _write_rows(workdir, group, name, first_step, rows, ledger)
    except Exception as error:  # whatever zarr raises for damaged parts
        if not isinstance(error, OSError | StoreError) and (wrong := damage(workdir)):
            raise StoreError(wrong) from None
        raise
    if state is not None:
        checksums = checkpoints.save(workdir / _CHECKPOINTS, first_step + num_rows, state)
        ledger["checkpoints"][str(first_step + num_rows)] = checksums
        kept = sorted(ledger["checkpoints"], key=int)[-checkpoints_kept:]
        ledger["checkpoints"] = {step: ledger["checkpoints"][step] for step in kept}
    _own_ledger(workdir, first_step)
    _write_ledger(workdir, ledger | {"committed_steps": first_step + num_rows})
    checkpoints.keep(workdir / _CHECKPOINTS, ledger["checkpoints"])


def _write_rows(
    workdir: Path, group: zarr.Group, name: str, first_step: int, rows: np.ndarray, ledger: Ledger
) -> None:
    """Write the rows of one series, and their digests into the ledger."""
    every = _every(group, array := whole(group[name]))
    row, skipped = -(-first_step // every), -first_step % every
    rows = np.asarray(rows[skipped::every], array.dtype)
    first, end = row // array.chunks[0], row + len(rows)
    chunks = [chunk_file(workdir / STORE, array, (i,)) for i in range(first, -(-end // array.chunks[0]))]
    for folder in {file.parent for file in chunks}:
        files.refuse_links(workdir, folder)
    array[(slice(row, end), *map(slice, rows.shape[1:]))] = rows
    if row % array.chunks[0] or rows.shape[1:] != array.shape[1:]:  # there is more in these chunks
        rows = np.asarray(array[first * array.chunks[0] : end])
    ledger["rows"][name] = ledger["rows"][name][: first * _LENGTH] + _digests(rows, array)
    for file in chunks:
        files.sync(file)


def write_meta(workdir: Path, meta: Mapping[str, Any]) -> None:
    """Write the meta.json of a run. Raises StoreError if the folder is no longer that of the run."""
    _own_ledger(workdir)
    files.write_json(workdir / "meta.json", meta, signed=True)


# of the run that this process writes: the ledger, and which file it is in
_own: dict[str, tuple[Ledger, tuple[int, int] | None]] = {}


def _write_ledger(workdir: Path, ledger: Ledger) -> None:
    files.write_json(workdir / LEDGER, ledger, signed=True)
    _own.clear()
    _own[os.path.realpath(workdir)] = ledger, files.which(workdir / LEDGER)


def _own_ledger(workdir: Path, committed_steps: int | None = None) -> Ledger:
    """Return the ledger of a run that this process writes, and nobody else has changed or replaced."""
    found = files.which(workdir / LEDGER)
    files.check_own(workdir, found is not None)
    ledger, which = _own.get(os.path.realpath(workdir)) or (_ledger(workdir), found)
    is_own = committed_steps in (None, ledger["committed_steps"]) and which == found
    files.check_own(workdir, is_own and all((workdir / name).is_file() for name in ledger["metadata"]))
    return ledger


def _digests(rows: np.ndarray, array: zarr.Array) -> str:
    """Return the digests of the rows of an array from the beginning of a chunk on, chunk after chunk."""
    firsts = range(0, len(rows), array.chunks[0])
    return "".join(files.digest(rows[first : first + array.chunks[0]].tobytes()) for first in firsts)


def _every(group: zarr.Group, array: zarr.Array) -> int:
    return group[array.metadata.dimension_names[0]].attrs["every"]


def restore(workdir: Path, like: Any) -> tuple[int, Any, list[str]]:
    """Return (step, state, warnings) of the newest sound checkpoint that the store supports.

    `like` gives the structure of the state. A damaged checkpoint is passed over with a warning,
    and so is one that lies behind a damaged part of the store, whose rows are then measured again.
    Before the first commit the step is 0 and the state None. What killed processes left is swept away.

    Raises StoreError that names the file where the damage cannot be mended from a checkpoint.
    """
    which = files.which(workdir / LEDGER)
    ledger, _, sound_steps, damaged = _read(workdir)
    step, wrong = checkpoints.newest(workdir / _CHECKPOINTS, ledger["checkpoints"], sound_steps)
    warnings = [f"{file} is damaged" for file in (damaged, *wrong) if file]
    if step:
        state = checkpoints.load(workdir / _CHECKPOINTS, step, like)
        _forget(workdir, ledger, step, which)
        return step, state, warnings
    if sound_steps > 0 and not warnings and "id" not in ledger:  # one with an id diverged before the first
        warnings.append(f"{workdir / _CHECKPOINTS} is empty")
    if warnings:
        raise StoreError(f"{'; '.join(warnings)}; no checkpoint is left to go on from: move {workdir} away")
    _forget(workdir, ledger, 0, which)
    return 0, None, []


def checkpoint_before(workdir: Path, step: int, like: Any) -> tuple[int, Any] | None:
    """Return (step, state) of the newest sound checkpoint at or before a step, None without one."""
    kept, _ = checkpoints.newest(workdir / _CHECKPOINTS, _ledger(workdir)["checkpoints"], step)
    return kept and (kept, checkpoints.load(workdir / _CHECKPOINTS, kept, like))


def _forget(workdir: Path, ledger: Ledger, first_step: int, which: tuple[int, int] | None) -> None:
    """Remove all from `first_step` on and what kills left, if the ledger is still `which` was read."""
    group = zarr.open_group(workdir / STORE, mode="r+", zarr_format=3)
    arrays = {name: array for name, array in group.arrays() if not is_coordinate(array)}
    kept = {step: of for step, of in ledger["checkpoints"].items() if int(step) <= first_step}
    rows = {name: -(-first_step // _every(group, array)) for name, array in arrays.items()}
    found = {name: _digests(np.asarray(array[: rows[name]]), array) for name, array in arrays.items()}
    files.check_own(workdir, files.which(workdir / LEDGER) == which)
    _write_ledger(workdir, ledger | {"committed_steps": first_step, "rows": found, "checkpoints": kept})
    checkpoints.keep(workdir / _CHECKPOINTS, kept)
    for name, array in arrays.items():
        files.refuse_links(workdir, workdir / STORE / name / "c")
        for path in (workdir / STORE / name / "c").glob("*"):
            ours = re.fullmatch(r"([0-9]+)(\.\w+\.partial)?", path.name)
            if ours and (ours[2] or int(ours[1]) * array.chunks[0] >= rows[name]):
                files.remove(path)


def damage(workdir: Path) -> str:
    """Return which file of a run is missing or cannot be read, and what to do, "" for a sound run.

    A finished run has all its rows and its checkpoint; one that diverged ends without.
    """
    ledger, _, sound, damaged = _read(workdir)
    if not damaged and files.read_meta(workdir).get("status") == "done":
        last = str(ledger["num_steps"])
        damaged = str(workdir / LEDGER)
        if sound == ledger["num_steps"] and last in ledger["checkpoints"]:
            damaged = checkpoints.damaged_file(workdir / _CHECKPOINTS, int(last), ledger["checkpoints"][last])
    return damaged and _advice(workdir, ledger, sound, damaged)


def _advice(workdir: Path, ledger: Ledger, sound: int, damaged: str) -> str:
    advice = f"no checkpoint is left from before it: move {workdir} away and run again"
    if checkpoints.newest(workdir / _CHECKPOINTS, ledger["checkpoints"], sound)[0]:
        advice = "resume the run, which measures again what comes after its last sound checkpoint"
    return f"{damaged} is damaged: {advice}"


def _open(workdir: Path) -> zarr.Group:
    try:
        return zarr.open_group(workdir / STORE, mode="r", zarr_format=3)
    except (AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise StoreError(f"{workdir / STORE / 'zarr.json'} is damaged: move {workdir} away") from error


def _ledger(workdir: Path) -> Ledger:
    """Return the ledger, or what stands for it in a folder from before there were any."""
    if ledger := files.read_ledger(workdir):
        return ledger
    if not (workdir / STORE).exists():
        raise StoreError(f"{workdir / STORE} is missing: {workdir} holds no run")
    group = _open(workdir)
    if "committed_steps" not in group.attrs:
        raise StoreError(f"{workdir / LEDGER} is missing: move {workdir} away and run again")
    lists = (workdir / _CHECKPOINTS).glob("[0-9]*.json")
    found = {path.stem: files.read_json(path) for path in lists if re.fullmatch("[0-9]+", path.stem)}
    of = {"committed_steps": group.attrs["committed_steps"], "num_steps": group["step"].shape[0]}
    of |= {"metadata": files.digests_of_metadata(workdir, STORE, "zarr.json"), "rows": {}}
    return of | {"checkpoints": found}


def committed(workdir: Path) -> tuple[int, int]:
    """Return how many steps are committed, and of how many. Raises StoreError for damaged metadata."""
    ledger = _ledger(workdir)
    files.check_metadata(workdir, ledger)
    return ledger["committed_steps"], ledger["num_steps"]


def _read(workdir: Path) -> tuple[Ledger, dict[str, np.ndarray | None], int, str]:
    """Return the ledger, the committed rows by name, how many steps are sound, the first damaged file.

    Damaged metadata, which no checkpoint can bring back, raise StoreError.
    """
    ledger = _ledger(workdir)
    files.check_metadata(workdir, ledger)
    group = _open(workdir)
    sound, first_damaged, found = ledger["committed_steps"], "", {}
    for name, array in group.arrays():
        if is_coordinate(array):
            if file := damaged_labels(workdir / STORE, array):
                raise StoreError(f"{file} is damaged: move {workdir} away and run again")
            continue
        every, size = _every(group, array), array.chunks[0]
        num_rows = -(-ledger["committed_steps"] // every)
        found[name] = read(array, slice(num_rows))
        if found[name] is not None:
            digests = _digests(found[name], array)
        else:  # which of the chunks
            parts = (slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size))
            rows = (read(array, part) for part in parts)
            digests = "".join("?" * _LENGTH if part is None else _digests(part, array) for part in rows)
        expected = ledger["rows"].get(name, digests)
        for chunk in range(-(-num_rows // size)):
            file = chunk_file(workdir / STORE, array, (chunk,))
            at = slice(chunk * _LENGTH, (chunk + 1) * _LENGTH)
            if "?" in digests[at] or digests[at] != expected[at] or not file.is_file():
                if chunk * size * every < sound:
                    sound, first_damaged = chunk * size * every, str(file)
                break
    return ledger, found, sound, first_damaged


def load(workdir: Path) -> xr.Dataset:
    """Load a run: see `dlf.store.load`."""
    _ledger(workdir)  # says what is missing
    meta = files.read_meta(workdir)  # before the rest: the run may end meanwhile
    ledger, rows, sound, damaged = _read(workdir)
    if damaged:
        raise StoreError(_advice(workdir, ledger, sound, damaged))
    if meta.get("status") == "done" and sound < ledger["num_steps"]:
        raise StoreError(f"{workdir / LEDGER} is not that of meta.json: move {workdir} away and run again")
    run = xr.open_zarr(workdir / STORE)
    for name, variable in run.data_vars.items():
        values = np.full(variable.shape, np.nan, variable.dtype)
        values[: len(rows[name])] = rows[name]
        run[name] = (variable.dims, values, variable.attrs)
    return run.load().assign_attrs(meta, committed_steps=sound)
