"""The store of one sweep: a grid of runs, written in blocks by any number of processes.

The folder holds config.json, meta.json and cells.zarr. All arrays are allocated whole when the sweep
is created, and nothing but chunks is written afterwards. A block of cells owns whole chunks of every
array; its values are written first, its `status` last, each chunk in one move. So a kill at any
moment loses the block under way and nothing else, and no two processes write to one file.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dlf.store.files import StoreError, read_json
from dlf.store.series import UNREADABLE, allocate, chunk_file, damaged_chunk, is_coordinate, whole
from dlf.types import Series

STORE = "cells.zarr"
FORMAT = 1
NOT_RUN, DONE, DIVERGED, INVALID = range(4)  # the values of `status`
MEANINGS = ("not run", "done", "diverged", "invalid")

Block = tuple[slice, ...]  # the cells of one block, along every axis


_OF_EVERY_SWEEP = {
    "status": Series((), "1", ", ".join(f"{i} {m}" for i, m in enumerate(MEANINGS)), dtype=np.int8),
    "diverged_step": Series((), "step", "first step with a loss that is not finite", dtype=np.int32),
    "reason": Series((), "1", "why a cell diverged or cannot be run", dtype="string"),
}
_FILL = {"status": NOT_RUN, "diverged_step": -1, "reason": ""}
RESERVED = tuple(_OF_EVERY_SWEEP)


def create(
    workdir: Path,
    axes: Mapping[str, Sequence[Any]],
    cells_per_block: Sequence[int],
    series: Mapping[str, Series],
    coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> None:
    """Allocate cells.zarr for a grid of cells; `axes` maps each dimension to its labels.

    `series` are laid out as one cell has them; `coordinates` label their own dimensions, steps for instance.
    """
    grid = tuple(len(labels) for labels in axes.values())
    stored, chunks = {}, {}
    for name, of in {**_OF_EVERY_SWEEP, **series}.items():
        stored[name] = of._replace(dims=(*axes, *of.dims), shape=(*grid, *of.shape))
        chunks[name] = (*cells_per_block, *(max(1, size) for size in of.shape))
    labels = {name: (values, {}) for name, values in {**axes, **coordinates}.items()}
    names = [*labels, *stored]
    allocate(
        workdir / STORE, labels, stored, chunks, {**attributes, "format": FORMAT, "arrays": names}, _FILL
    )


class Store:
    """An open store of a sweep."""

    def __init__(self, workdir: Path):
        self._path = workdir / STORE
        try:
            group = zarr.open_group(self._path, mode="r+", use_consolidated=False)
            version, names = group.attrs.get("format"), group.attrs.get("arrays", [])
            with warnings.catch_warnings():  # of a damaged array, which is named below
                warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
                arrays = {name: whole(array) for name, array in group.arrays()}
        except (OSError, KeyError, TypeError, ValueError) as error:
            message = f"{self._path} is missing or damaged: move {workdir} away and run again"
            raise StoreError(message) from error
        if version != FORMAT:
            raise StoreError(
                f"{self._path} has format {version}, this version of dlf reads {FORMAT}: open it with the "
                "version that wrote it (its commit is in meta.json), or name another folder"
            )
        damaged = [str(self._path / name) for name in names if name not in arrays]
        labels = {name: array for name, array in arrays.items() if is_coordinate(array)}
        damaged += [file for array in labels.values() if (file := damaged_chunk(self._path, array))]
        if damaged:
            raise StoreError(f"{damaged[0]} is damaged: move {workdir} away and run again")
        self._status = arrays.pop("status")
        self._values = {name: array for name, array in arrays.items() if name not in labels}

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
        except UNREADABLE:
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
            for name, array in self._values.items():
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
        suspects = [array for array in self._values.values() if not self._is_sound(array, status, blocks)]
        for block in blocks if suspects else ():
            has_run = bool((status[block] != NOT_RUN).any())
            files = (damaged_chunk(self._path, array, self._chunk(block), has_run) for array in suspects)
            file = next(filter(None, files), "")
            if file:
                yield block, file

    def _is_sound(self, array: zarr.Array, status: np.ndarray, blocks: list[Block]) -> bool:
        """Return whether all of an array can be read, at once where it is no larger than the status."""
        if array.ndim > status.ndim:
            return False
        files = {path for path in (self._path / array.basename / "c").rglob("*") if path.is_file()}
        has_run = (block for block in blocks if (status[block] != NOT_RUN).any())
        if any(chunk_file(self._path, array, self._chunk(block)) not in files for block in has_run):
            return False
        try:
            array[...]
        except UNREADABLE:
            return False
        return True

    def _chunk(self, block: Block) -> tuple[int, ...]:
        return tuple(part.start // size for part, size in zip(block, self._status.chunks, strict=True))


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
    sweep["status"] = (axes, status, {"units": "1", "long_name": _OF_EVERY_SWEEP["status"].description})
    has_run = sweep["status"] != NOT_RUN
    sweep["diverged_step"] = sweep["diverged_step"].where(has_run, -1)
    sweep["reason"] = sweep["reason"].where(has_run, "")
    for name, variable in sweep.data_vars.items():
        if name not in RESERVED:
            sweep[name] = variable.where(sweep["status"] == DONE)
    return sweep.assign_attrs(read_json(workdir / "meta.json"))
