"""The store of one training run: create, commit, resume and load it as a labelled data set.

A work folder holds config.json, meta.json, metrics.zarr and checkpoints/. The store is allocated whole,
filled with NaN, and written by region; every file is replaced in one move; the attribute `committed_steps`
comes last, after the checkpoint. So a kill at any moment loses at most the steps since the last commit.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dlf.store import checkpoints
from dlf.store.files import StoreError, read_json
from dlf.store.series import allocate, damaged_chunk, is_coordinate, whole
from dlf.types import Series

STORE = "metrics.zarr"


def create(
    workdir: Path,
    num_steps: int,
    steps_per_chunk: int,
    series: Mapping[str, Series],
    attributes: Mapping[str, Any],
) -> None:
    """Allocate metrics.zarr anew, for `series` along a run of `num_steps` steps."""
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
    allocate(workdir / STORE, coordinates, stored, chunks, {**attributes, "committed_steps": 0})


def commit(
    workdir: Path, first_step: int, series: Mapping[str, np.ndarray], state: Any, checkpoints_kept: int = 2
) -> None:
    """Write the rows of one chunk, then the state after it, then how far the run is committed.

    `series` hold one row for each step from `first_step` on; a sparse variable keeps its own.
    `state` is a pytree, or None where the run ends without a state to go on from. Of the checkpoints
    the newest are kept: by default one to resume from, and one if that is damaged.
    """
    group = zarr.open_group(workdir / STORE, mode="r+")
    num_rows = len(next(iter(series.values())))
    for name, rows in series.items():
        array = whole(group[name])
        every = _every(group, array)
        skipped = -first_step % every
        row = (first_step + skipped) // every
        rows = rows[skipped::every]
        array[(slice(row, row + len(rows)), *map(slice, rows.shape[1:]))] = rows
    if state is not None:
        checkpoints.save(workdir / "checkpoints", first_step + num_rows, state, checkpoints_kept)
    group.attrs["committed_steps"] = first_step + num_rows


def _every(group: zarr.Group, array: zarr.Array) -> int:
    return group[array.metadata.dimension_names[0]].attrs["every"]


def restore(workdir: Path, like: Any) -> tuple[int, Any, list[str]]:
    """Return (step, state, warnings) of the newest sound checkpoint that the store supports.

    `like` gives the structure of the state. A damaged checkpoint is passed over with a warning,
    and so is one that lies behind a damaged part of the store, whose rows are then measured again.
    Before the first commit the step is 0 and the state None.

    Raises StoreError that names the file where the damage cannot be mended from a checkpoint.
    """
    sound_steps, damaged = _sound_steps(workdir)
    folder = workdir / "checkpoints"
    warnings = [f"{damaged} is damaged"] if damaged else []
    for step in checkpoints.steps(folder):
        if step > sound_steps:
            continue
        wrong = checkpoints.damaged_file(folder, step)
        if not wrong:
            if step < sound_steps and not warnings:
                warnings.append(f"{folder / str(sound_steps)}.json is missing")
            state = checkpoints.load(folder, step, like)
            _forget(workdir, step)
            return step, state, warnings
        warnings.append(f"{wrong} is damaged")
    if sound_steps > 0 and not warnings:
        warnings.append(f"{folder} is empty")
    if warnings:
        raise StoreError(f"{'; '.join(warnings)}; no checkpoint is left to go on from: move {workdir} away")
    return 0, None, []


def _forget(workdir: Path, first_step: int) -> None:
    """Remove all rows from `first_step` on: a chunk that is written in parts is read first."""
    group = zarr.open_group(workdir / STORE, mode="r+")
    group.attrs["committed_steps"] = first_step
    for name, array in group.arrays():
        if not is_coordinate(array):
            steps_per_chunk = array.chunks[0] * _every(group, array)
            for chunk in (workdir / STORE / name / "c").glob("[0-9]*"):
                if int(chunk.name) * steps_per_chunk >= first_step:
                    shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()


def damaged_file(workdir: Path) -> str:
    """Return a file of an ended run that is missing or cannot be read, "" for a sound run.

    A finished run has all its rows and its checkpoint; one that diverged ends without.
    """
    sound_steps, damaged = _sound_steps(workdir)
    if damaged or read_json(workdir / "meta.json").get("status") != "done":
        return damaged
    return checkpoints.damaged_file(workdir / "checkpoints", sound_steps)


def _sound_steps(workdir: Path) -> tuple[int, str]:
    """Return how many committed steps can be read, and the first damaged file.

    A damaged coordinate, which no checkpoint can bring back, raises StoreError.
    """
    group = _open(workdir)
    sound = group.attrs["committed_steps"]
    first_damaged = ""
    for _, array in group.arrays():
        if is_coordinate(array):
            file = damaged_chunk(workdir / STORE, array)
            if file:
                raise StoreError(f"{file} is damaged: move {workdir} away and run again")
            continue
        steps_per_chunk = array.chunks[0] * _every(group, array)
        for chunk in range(-(-sound // steps_per_chunk)):
            file = damaged_chunk(workdir / STORE, array, (chunk,))
            if file:
                sound, first_damaged = chunk * steps_per_chunk, file
                break
    return sound, first_damaged


def _open(workdir: Path) -> zarr.Group:
    path = workdir / STORE
    try:
        group = zarr.open_group(path, mode="r")
        sound = group.attrs["committed_steps"] in range(group["step"].shape[0] + 1)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: {workdir} holds no run") from error
    except (AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise StoreError(f"{path / 'zarr.json'} is damaged: move {workdir} away and run again")
    return group


def load(workdir: Path) -> xr.Dataset:
    """Load a run: see `dlf.store.load`."""
    meta = read_json(workdir / "meta.json")
    sound, damaged = _sound_steps(workdir)
    if damaged:
        raise StoreError(
            f"{damaged} is damaged: resume the run, which measures again what its checkpoints allow, "
            f"or move {workdir} away"
        )
    run = xr.open_zarr(workdir / STORE).load()
    for name, variable in run.data_vars.items():
        run[name] = variable.where(run[variable.dims[0]] < sound)
    return run.assign_attrs(meta, committed_steps=sound)
