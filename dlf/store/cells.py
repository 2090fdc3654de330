"""The store of one sweep: a grid of runs, written in blocks by any number of processes.

The folder holds config.json, meta.json and cells.zarr. All arrays are allocated whole when the sweep
is created, and nothing but chunks is written afterwards: ledger.json has the digests of all metadata. A block
of cells owns whole chunks of every array; its values are written first, then the digests of these, its
`status` last, each chunk in one move. So a kill at any moment loses the block under way and nothing else, no
two processes write to one file, and what is not as it was written is known.
"""

import json
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dlf.store import files
from dlf.store.files import LEDGER, StoreError
from dlf.store.series import allocate, chunk_file, damaged_labels, is_coordinate, read, whole
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
    "digest": Series((), "1", "of what its block holds, array by array", dtype="string"),
}
_FILL = {"status": NOT_RUN, "diverged_step": -1, "reason": "", "digest": ""}
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
    attributes = {**attributes, "format": FORMAT, "arrays": names}
    allocate(workdir / STORE, labels, stored, chunks, attributes, _FILL, written=["status"])
    found = files.digests_of_metadata(workdir, STORE)
    metadata = {name: of for name, of in found.items() if not name.startswith(f"{STORE}/status/c/")}
    files.write_json(workdir / LEDGER, {"id": uuid.uuid4().hex, "metadata": metadata}, signed=True)


class Store:
    """An open store of a sweep."""

    def __init__(self, workdir: Path):
        self._path, self._id = workdir / STORE, ""
        self._files = {path: files.which(path) for path in (self._path / "zarr.json", workdir / LEDGER)}
        if ledger := files.read_ledger(workdir):
            files.check_metadata(workdir, ledger)
            self._id = ledger["id"]
            self._files |= {workdir / name: files.which(workdir / name) for name in ledger["metadata"]}
        try:
            group = zarr.open_group(self._path, mode="r+", zarr_format=3, use_consolidated=False)
            version, names = group.attrs.get("format"), group.attrs.get("arrays", [])
            with warnings.catch_warnings():  # of a damaged array, which is named below
                warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
                found = {name: whole(array) for name, array in group.arrays()}
        except (AttributeError, OSError, KeyError, TypeError, ValueError) as error:
            message = f"{self._path} is missing or damaged: move {workdir} away and run again"
            raise StoreError(message) from error
        if version != FORMAT:
            raise StoreError(
                f"{self._path} has format {version}, this version of dlf reads {FORMAT}: open it with the "
                "version that wrote it (its commit is in meta.json), or name another folder"
            )
        arrays = {name: found[name] for name in names or found if name in found}  # no copy of a person's
        damaged = [str(self._path / name) for name in names if name not in found]
        self.strangers = [path.name for path in self._path.iterdir() if path.name not in arrays]
        labels = {name: array for name, array in arrays.items() if is_coordinate(array)}
        damaged += [file for array in labels.values() if (file := damaged_labels(self._path, array))]
        if damaged:
            raise StoreError(f"{damaged[0]} is damaged: move {workdir} away and run again")
        self._status, self._digest = arrays.pop("status"), arrays.pop("digest", None)
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
        if not block:
            return self._all(self._status)
        found = read(self._status, block)
        shape = [cells.stop - cells.start for cells in block]
        return np.full(shape, NOT_RUN, np.int8) if found is None else found

    def values(self) -> dict[str, np.ndarray]:
        """Return the values of all cells by name. Raises StoreError for a block that ran and is damaged."""
        return {name: self._all(array) for name, array in self._values.items()}

    def _all(self, array: zarr.Array) -> np.ndarray:
        if (found := read(array)) is not None:
            return found
        found = np.full(array.shape, array.fill_value, array.dtype)
        for block in self.blocks():
            if (values := read(array, block)) is not None:
                found[block] = values
            elif array is not self._status and (self.status(block) != NOT_RUN).any():
                raise StoreError(_advice(chunk_file(self._path, array, self._chunk(block))))
        return found

    def write(self, block: Block, values: Mapping[str, np.ndarray], status: np.ndarray) -> None:
        """Write what a block found, then its status; what is not among `values` stays empty.

        Raises StoreError where the disk does not take it, or the sweep is no longer there.
        """
        try:
            files.check_own(self._path.parent, self.is_own())
            self._make_way(block)
            for name, array in self._values.items():
                array[block] = values.get(name, array.fill_value)
            if self._digest:
                stored = {name: np.asarray(array[block]) for name, array in self._values.items()}
                status = np.asarray(status, self._status.dtype)
                of = {name: self._digest_of(name, block, found) for name, found in stored.items()}
                self._digest[block] = json.dumps(of | {"status": self._digest_of("status", block, status)})
            self._status[block] = status
        except OSError as error:
            raise StoreError(f"cannot write to {self._path}: {error.strerror or error}") from error

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Write meta.json. Raises StoreError if the sweep is no longer there."""
        files.check_own(self._path.parent, self.is_own())
        files.write_json(self._path.parent / "meta.json", meta, signed=True)

    def is_own(self) -> bool:
        """Return whether the sweep in the folder is still the one that was opened."""
        return all(files.which(path) == known for path, known in self._files.items())

    def forget(self, block: Block) -> None:
        """Mark the cells of a block as not run, and empty them."""
        files.check_own(self._path.parent, self.is_own())
        self._make_way(block)
        self._status[block] = NOT_RUN
        self.write(block, {}, np.full_like(self.status(block), NOT_RUN))

    def _make_way(self, block: Block) -> None:
        """Remove what lies in place of chunks or their folders, and what killed processes left there."""
        arrays = filter(None, (*self._values.values(), self._digest, self._status))
        chunks = {chunk_file(self._path, array, self._chunk(block)): array.basename for array in arrays}
        for file in chunks:
            files.refuse_links(self._path.parent, file.parent)
        for file, name in chunks.items():
            for at in (path for path in file.parents if path.is_relative_to(self._path / name / "c")):
                if at.is_file():
                    at.unlink()
            if file.is_dir() and not file.is_symlink():
                files.remove(file)
            for left in file.parent.glob(f"{file.name}.*.partial"):
                left.unlink(missing_ok=True)

    def _digest_of(self, name: str, block: Block, values: np.ndarray) -> str:
        is_text = values.dtype.kind in "OUT"
        content = json.dumps(values.tolist()).encode() if is_text else values.tobytes()
        return files.digest(f"{self._id} {name} {self._chunk(block)} ".encode() + content)

    def damaged(self) -> Iterator[tuple[Block, str]]:
        """Yield each block that does not hold what was written, and a file where that is seen."""
        arrays = {"status": self._status, **self._values}
        readers = {name: self._at_once(array) for name, array in arrays.items()}
        digests = self._at_once(self._digest) if self._digest else None
        for block in self.blocks():
            expected = self._expected(digests, block)
            for name, array in arrays.items():
                file, values = chunk_file(self._path, array, self._chunk(block)), read(readers[name], block)
                is_there = file.is_file() or (name == "status" and digests is None)  # before there were any
                if name == "status" and is_there and values is not None and (values == NOT_RUN).all():
                    break
                is_read = values is not None and is_there
                if is_sound := is_read and expected is not None:
                    found = self._digest_of(name, block, values)
                    is_sound = expected.get(name, found) == found
                if not is_sound:
                    at_fault = self._digest if is_read and expected is None else array
                    yield block, str(chunk_file(self._path, at_fault, self._chunk(block)))
                    break

    def _expected(self, digests: Any, block: Block) -> dict[str, str] | None:
        """Return the digests of what a block holds, none before there were any, None for a damaged list."""
        if digests is None:
            return {}
        text = read(digests, block)
        try:
            found = json.loads(text.flat[0]) if text is not None else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _at_once(self, array: zarr.Array) -> Any:
        """Return what reads an array: where it is no larger than the status and sound, its values."""
        values = read(array) if array.ndim == self._status.ndim else None
        return array if values is None else values

    def _chunk(self, block: Block) -> tuple[int, ...]:
        return tuple(part.start // size for part, size in zip(block, self._status.chunks, strict=True))


def _advice(damaged: str | Path) -> str:
    return f"{damaged} is damaged: run the sweep again, which fills that block anew"


def load(workdir: Path) -> xr.Dataset:
    """Load a sweep: see `dlf.store.load`. Values are NaN where `status` is not 1 (done)."""
    store, meta = Store(workdir), files.read_meta(workdir)
    status = store.status()  # first: a block that is written meanwhile is not run here
    damaged = next(store.damaged(), None)
    if damaged or (meta.get("status") == "done" and (status == NOT_RUN).any()):
        raise StoreError(_advice(damaged[1] if damaged else f"a chunk of {workdir / STORE / 'status'}"))
    own = ["status", "digest", *store.strangers]
    sweep = xr.open_zarr(workdir / STORE, consolidated=False, drop_variables=own)
    for name, values in store.values().items():
        sweep[name] = (sweep[name].dims, values, sweep[name].attrs)
    for name, array in sweep.load().variables.items():
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
    return sweep.assign_attrs(meta)
