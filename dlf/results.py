"""The run store: create, commit, resume and load one training run as a labelled data set.

A work folder holds config.json, meta.json, metrics.zarr and checkpoints/. The store is allocated
whole, filled with NaN, and written by region; every file is replaced in one move; the attribute
`committed_steps` comes last, after the checkpoint. So a kill at any moment loses at most the
steps since the last commit.
"""

import contextlib
import fcntl
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr
from orbax.checkpoint import v1 as ocp
from zarr.codecs import ZstdCodec

from dlf.types import Variable

NUM_CHECKPOINTS = 2  # the newest ones kept: one to resume from, one if that is damaged


class StoreError(Exception):
    """A work folder cannot be read or written as asked; the message says what to do."""


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Create the work folder and keep other writers out until the block ends, or the process.

    Raises StoreError if the folder is taken, cannot be written, or a write in the block fails.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise StoreError(f"another process is writing to {workdir}: wait for it to end") from error
    except OSError as error:
        raise StoreError(f"cannot write to {workdir}: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one move: a reader sees the old content or the new, never a part."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises StoreError that names the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: {path.parent} holds no run") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged: move {path.parent} away and run again") from error


def create(
    workdir: Path,
    num_steps: int,
    steps_per_chunk: int,
    groups: Mapping[str, tuple[int, Mapping[str, Variable], Mapping[str, jax.ShapeDtypeStruct]]],
    attributes: Mapping[str, Any],
) -> None:
    """Allocate metrics.zarr for series that are measured at every `every`-th step.

    `groups` maps the name of a step coordinate to (every, variables, shape of one row of each).
    """
    arrays, coordinates, encoding = {}, {}, {}
    sizes: dict[str, int] = {}  # series that share a dimension are padded to the longest
    for _, variables, shapes in groups.values():
        for name, variable in variables.items():
            for dim, size in zip(variable.dims, shapes[name].shape, strict=True):
                sizes[dim] = max(size, sizes.get(dim, 0))
    for step_name, (every, variables, shapes) in groups.items():
        steps = np.arange(0, num_steps, every)
        coordinates[step_name] = (step_name, steps, {"units": "step", "every": every})
        for name, variable in variables.items():
            row_shape = [sizes[dim] for dim in variable.dims]
            rows = np.full((len(steps), *row_shape), np.nan, shapes[name].dtype)
            labels = {"units": variable.units, "long_name": variable.description}
            arrays[name] = ((step_name, *variable.dims), rows, labels)
            coordinates |= {dim: np.arange(sizes[dim]) for dim in variable.dims}
            encoding[name] = {
                "chunks": (max(1, steps_per_chunk // every), *row_shape),
                "compressors": (ZstdCodec(checksum=True),),
            }
    store = xr.Dataset(arrays, coordinates, {**attributes, "committed_steps": 0})
    partial = workdir / "metrics.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with warnings.catch_warnings():
        # consolidated metadata makes `xarray.open_zarr` quick and quiet; the warning is about
        # readers other than zarr-python
        warnings.filterwarnings("ignore", "Consolidated metadata", category=zarr.errors.ZarrUserWarning)
        store.to_zarr(partial, encoding=encoding, zarr_format=3, consolidated=True)
    os.replace(partial, workdir / "metrics.zarr")


def commit(workdir: Path, first_step: int, series: Mapping[str, np.ndarray], state: Any) -> None:
    """Write the rows of one chunk, then the state after it, then how far the run is committed.

    `series` hold one row for each step from `first_step` on; a sparse variable keeps its own.
    `state` is a pytree, or None where the run ends without a state to go on from.
    """
    group = zarr.open_group(workdir / "metrics.zarr", mode="r+")
    num_rows = len(next(iter(series.values())))
    for name, rows in series.items():
        # an all-NaN chunk is written too, so that a missing file always means damage
        array = group[name].with_config({"write_empty_chunks": True})
        every = _every(group, array)
        skipped = -first_step % every
        row = (first_step + skipped) // every
        rows = rows[skipped::every]
        array[(slice(row, row + len(rows)), *map(slice, rows.shape[1:]))] = rows
    if state is not None:
        _save_checkpoint(workdir / "checkpoints", first_step + num_rows, state)
    group.attrs["committed_steps"] = first_step + num_rows


def _every(group: zarr.Group, array: zarr.Array) -> int:
    return group[array.metadata.dimension_names[0]].attrs["every"]


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def _save_checkpoint(folder: Path, step: int, state: Any) -> None:
    try:
        ocp.save(folder.resolve() / str(step), state, overwrite=True)
    except ValueError as error:  # how tensorstore reports a failing write
        raise StoreError(f"cannot write {folder / str(step)}: {str(error).split(' [')[0]}") from error
    # orbax does not notice changed bytes in its array files: a checkpoint counts once its
    # checksums are written, and is read only where they hold
    write_json(folder / f"{step}.json", _checksums(folder / str(step)))
    for old in _checkpoint_steps(folder)[NUM_CHECKPOINTS:]:
        (folder / f"{old}.json").unlink()
        shutil.rmtree(folder / str(old))


def _load_checkpoint(path: Path, like: Any) -> Any:
    # as NumPy arrays first: orbax reads in threads of its own, which do not see the x64 setting
    # of a context and would round to float32
    arrays = ocp.load(path.resolve(), jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    return jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), arrays, like)


def _checkpoint_steps(folder: Path) -> list[int]:
    return sorted((int(path.stem) for path in folder.glob("*.json")), reverse=True)


def restore(workdir: Path, like: Any) -> tuple[int, Any, list[str]]:
    """Return (step, state, warnings) of the newest sound checkpoint that the store supports.

    `like` gives the structure of the state. A damaged checkpoint is passed over with a warning,
    and so is one that lies behind a damaged part of the store, whose rows are then measured again.
    Without any checkpoint the step is 0 and the state None.

    Raises StoreError that names the file where the damage cannot be mended from a checkpoint.
    """
    sound_steps, damaged_file = _sound_steps(workdir)
    warnings = [f"{damaged_file} is damaged"] if damaged_file else []
    folder = workdir / "checkpoints"
    for step in _checkpoint_steps(folder):
        if step > sound_steps:
            continue
        checksums = _checksums(folder / str(step))
        try:
            expected = read_json(folder / f"{step}.json")
        except StoreError:
            expected = {f"../{step}.json": 0}
        wrong = [name for name in expected if checksums.get(name) != expected[name]]
        if not wrong:
            return step, _load_checkpoint(folder / str(step), like), warnings
        warnings.append(f"{(folder / str(step) / wrong[0]).resolve()} is damaged")
    if warnings:
        raise StoreError(f"{'; '.join(warnings)}; no checkpoint is left to go on from: move {workdir} away")
    return 0, None, []


def _sound_steps(workdir: Path) -> tuple[int, str]:
    """Return how many committed steps can be read, and the first damaged file."""
    group = _open(workdir)
    committed = group.attrs["committed_steps"]
    sound, damaged = committed, ""
    for name, array in group.arrays():
        if name in (array.metadata.dimension_names or ()):
            continue  # a coordinate
        every, rows_per_chunk = _every(group, array), array.chunks[0]
        for chunk in range(-(-committed // (every * rows_per_chunk))):
            file = Path("metrics.zarr", name, "c", str(chunk), *["0"] * (array.ndim - 1))
            try:
                array[chunk * rows_per_chunk : (chunk + 1) * rows_per_chunk]
                missing = not (workdir / file).exists()
            except (RuntimeError, ValueError, OSError):
                missing = True
            first_step = chunk * rows_per_chunk * every
            if missing and first_step < sound:
                sound, damaged = first_step, str(workdir / file)
    return sound, damaged


def damaged_file(workdir: Path) -> str:
    """Return the first file of the store that cannot be read, "" for a sound store."""
    return _sound_steps(workdir)[1]


def _open(workdir: Path) -> zarr.Group:
    path = workdir / "metrics.zarr"
    try:
        group = zarr.open_group(path, mode="r")
        group.attrs["committed_steps"]
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: {workdir} holds no run") from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path / 'zarr.json'} is damaged: move {workdir} away and run again") from error
    return group


def load(workdir: str | Path) -> xr.Dataset:
    """Load a run as one labelled data set, also while it is going on.

    Every series has its own step coordinate; what is not measured or not yet committed is NaN.
    Attributes hold the configuration (a JSON string), the commit, and all of meta.json.

    Raises StoreError that names the file if the folder holds no run or a damaged one.
    """
    workdir = Path(workdir)
    meta = read_json(workdir / "meta.json")
    sound, damaged = _sound_steps(workdir)
    if damaged:
        raise StoreError(f"{damaged} is damaged: resume the run to measure it again, or move it away")
    run = xr.open_zarr(workdir / "metrics.zarr").load()
    for name, variable in run.data_vars.items():
        run[name] = variable.where(run[variable.dims[0]] < sound)
    return run.assign_attrs(meta)
