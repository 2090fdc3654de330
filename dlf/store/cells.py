"""The store of one sweep: a grid of runs, written in blocks by any number of processes.

The folder holds config.json, meta.json and cells.zarr. All arrays are allocated whole when the sweep
is created, and nothing but chunks is written afterwards. A block of cells owns whole chunks of every
array; its values are written first, its `status` last, each chunk in one move. So a kill at any
moment loses the block under way and nothing else, and no two processes write to one file.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from dlf.store.files import StoreError, read_json
from dlf.types import Variable

STORE = "cells.zarr"
FORMAT = 1
NOT_RUN, DONE, DIVERGED, INVALID = range(4)  # the values of `status`
MEANINGS = ("not run", "done", "diverged", "invalid")

Block = tuple[slice, ...]  # the cells of one block, along every axis
_CHECKED = {"compressors": ZstdCodec(checksum=True)}


class Layout(NamedTuple):
    """One variable of a sweep behind the axes of its cells: labelled dimensions, shape and type."""

    variable: Variable
    shape: tuple[int, ...]
    dtype: Any


_OF_EVERY_SWEEP = {
    "status": Layout(Variable((), "1", ", ".join(f"{i} {m}" for i, m in enumerate(MEANINGS))), (), np.int8),
    "diverged_step": Layout(Variable((), "step", "first step with a loss that is not finite"), (), np.int32),
    "reason": Layout(Variable((), "1", "why a cell diverged or cannot be run"), (), "string"),
}
RESERVED = tuple(_OF_EVERY_SWEEP)


def create(
    workdir: Path,
    axes: Mapping[str, Sequence[Any]],
    cells_per_block: Sequence[int],
    layouts: Mapping[str, Layout],
    coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> None:
    """Allocate cells.zarr for a grid of cells; `axes` maps each dimension to its labels.

    `coordinates` label the dimensions that the variables have of their own, steps for instance.
    """
    partial = workdir / "cells.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    names = [*axes, *coordinates, *_OF_EVERY_SWEEP, *layouts]
    attributes = {**attributes, "format": FORMAT, "arrays": names}
    group = zarr.create_group(partial, zarr_format=3, attributes=attributes)
    for name, labels in {**axes, **coordinates}.items():
        labels = np.asarray(labels)
        dtype = "string" if labels.dtype.kind in "UO" else labels.dtype
        array = group.create_array(
            name,
            shape=labels.shape,
            chunks=labels.shape,
            dtype=dtype,
            dimension_names=(name,),
            fill_value=None,
            **_CHECKED,
        )
        array = array.with_config({"write_empty_chunks": True})
        array[:] = labels.astype(object) if dtype == "string" else labels
    shape = tuple(len(labels) for labels in axes.values())
    fill = {"status": NOT_RUN, "diverged_step": -1, "reason": ""}
    for name, (variable, row_shape, dtype) in {**_OF_EVERY_SWEEP, **layouts}.items():
        group.create_array(
            name,
            shape=(*shape, *row_shape),
            chunks=(*cells_per_block, *(max(1, size) for size in row_shape)),
            dtype=dtype,
            fill_value=fill.get(name, np.nan),
            dimension_names=(*axes, *variable.dims),
            attributes={"units": variable.units, "long_name": variable.description},
            **_CHECKED,
        )
    old = workdir / "cells.old"  # of a start that was killed a moment later; in one move, then removed
    shutil.rmtree(old, ignore_errors=True)
    if (workdir / STORE).exists():
        os.replace(workdir / STORE, old)
    os.replace(partial, workdir / STORE)
    shutil.rmtree(old, ignore_errors=True)


class Store:
    """An open store of a sweep."""

    def __init__(self, workdir: Path):
        self._path = workdir / STORE
        try:
            group = zarr.open_group(self._path, mode="r+")
            version, names = group.attrs.get("format"), group.attrs.get("arrays", [])
            # an empty chunk is written too, so that a missing file always means damage
            always = {"write_empty_chunks": True}
            with warnings.catch_warnings():  # of a damaged array, which is named below
                warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
                self._arrays = {name: array.with_config(always) for name, array in group.arrays()}
        except (OSError, KeyError, TypeError, ValueError) as error:
            message = f"{self._path} is missing or damaged: move {workdir} away and run again"
            raise StoreError(message) from error
        if version != FORMAT:
            raise StoreError(
                f"{self._path} has format {version}, this version of dlf reads {FORMAT}: open it with the "
                "version that wrote it (its commit is in meta.json), or name another folder"
            )
        labelled = [name for name in names if name in self._arrays and self._is_coordinate(name)]
        damaged = [str(self._path / name) for name in names if name not in self._arrays]
        damaged += [file for name in labelled if (file := self._damaged_file(name, (), must_exist=True))]
        if damaged:
            raise StoreError(f"{damaged[0]} is damaged: move {workdir} away and run again")
        self._status = self._arrays["status"]

    def _is_coordinate(self, name: str) -> bool:
        return name in self._arrays[name].metadata.dimension_names

    def blocks(self) -> list[Block]:
        """Return all blocks, the last axis running fastest."""
        axes = zip(self._status.shape, self._status.chunks, strict=True)
        return list(product(*([slice(i, min(i + k, n)) for i in range(0, n, k)] for n, k in axes)))

    @property
    def cells_per_block(self) -> int:
        """The number of cells of a whole block."""
        return prod(self._status.chunks)

    def status(self, block: Block = ()) -> np.ndarray:
        """Return the status of all cells, or those of one block. What cannot be read is not run."""
        try:
            return np.asarray(self._status[block or ...])
        except (OSError, RuntimeError, ValueError):
            if block:
                return np.full([cells.stop - cells.start for cells in block], NOT_RUN, np.int8)
            found = np.full(self._status.shape, NOT_RUN, np.int8)
            for block in self.blocks():
                found[block] = self.status(block)
            return found

    def write(self, block: Block, values: Mapping[str, np.ndarray], status: np.ndarray) -> None:
        """Write what a block found, then its status; what is not among `values` stays empty.

        Raises StoreError where the disk does not take it.
        """
        try:
            for name, array in self._arrays.items():
                if name != "status" and not self._is_coordinate(name):
                    array[block] = values.get(name, array.fill_value)
            self._status[block] = status
        except OSError as error:
            raise StoreError(f"cannot write to {self._path}: {error.strerror or error}") from error

    def forget(self, block: Block) -> None:
        """Mark the cells of a block as not run, and empty them."""
        self._status[block] = NOT_RUN
        self.write(block, {}, np.full_like(self.status(block), NOT_RUN))

    def damaged(self) -> Iterator[tuple[Block, str]]:
        """Yield each block with a value that cannot be read, or is missing beside a status, and its file."""
        status, blocks = self.status(), self.blocks()
        names = [name for name in self._arrays if name != "status" and not self._is_coordinate(name)]
        suspects = [name for name in names if not self._is_sound(name, status, blocks)]
        for block in blocks if suspects else ():
            has_run = bool((status[block] != NOT_RUN).any())
            files = (self._damaged_file(name, block, has_run) for name in suspects)
            file = next(filter(None, files), "")
            if file:
                yield block, file

    def _is_sound(self, name: str, status: np.ndarray, blocks: list[Block]) -> bool:
        """Return whether all of an array can be read, at once where it is no larger than the status."""
        array = self._arrays[name]
        if array.ndim > status.ndim:
            return False
        files = {path for path in (self._path / name / "c").rglob("*") if path.is_file()}
        if any(self._file(name, block) not in files for block in blocks if (status[block] != NOT_RUN).any()):
            return False
        try:
            array[...]
        except (OSError, RuntimeError, ValueError):
            return False
        return True

    def _file(self, name: str, block: Block) -> Path:
        array = self._arrays[name]
        numbers = [cells.start // size for cells, size in zip(block, array.chunks, strict=False)]
        numbers += [0] * (array.ndim - len(block))
        return self._path.joinpath(name, "c", *map(str, numbers))

    def _damaged_file(self, name: str, block: Block, must_exist: bool) -> str:
        file = self._file(name, block)
        try:
            self._arrays[name][block or ...]
            return str(file) if must_exist and not file.exists() else ""
        except (OSError, RuntimeError, ValueError):
            return str(file)


def load(workdir: Path) -> xr.Dataset:
    """Load a sweep: see `dlf.store.load`. Values are NaN where `status` is not 1 (done)."""
    store = Store(workdir)
    damaged = next(store.damaged(), None)
    if damaged:
        raise StoreError(f"{damaged[1]} is damaged: run the sweep again, which fills that block anew")
    status = store.status()  # first: a block that is written meanwhile is not run here
    sweep = xr.open_zarr(workdir / STORE, consolidated=False).drop_vars("status").load()
    for name, array in sweep.variables.items():
        if array.dtype.kind == "T":  # NumPy's own strings, which few readers know
            sweep[name] = array.astype(object)
    axes = sweep["diverged_step"].dims
    meanings = _OF_EVERY_SWEEP["status"].variable.description
    sweep["status"] = (axes, status, {"units": "1", "long_name": meanings})
    has_run = sweep["status"] != NOT_RUN
    sweep["diverged_step"] = sweep["diverged_step"].where(has_run, -1)
    sweep["reason"] = sweep["reason"].where(has_run, "")
    for name, variable in sweep.data_vars.items():
        if name not in RESERVED:
            sweep[name] = variable.where(sweep["status"] == DONE)
    return sweep.assign_attrs(read_json(workdir / "meta.json"))
