"""Labelled arrays in a zarr store, checked chunk by chunk: what runs and sweeps share."""

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dlf.store.files import StoreError, refuse_links
from dlf.types import Series

_CHECKED = {"compressors": ZstdCodec(checksum=True)}


def allocate(
    path: Path,
    coordinates: Mapping[str, tuple[Sequence[Any] | np.ndarray, Mapping[str, Any]]],
    series: Mapping[str, Series],
    chunks: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, Any],
    fill: Mapping[str, Any] = {},
    written: Sequence[str] = (),
) -> None:
    """Create a store whole and empty, and put it in its place in one move.

    `coordinates` maps a dimension to its labels and attributes; `series` have the dimensions and the shape
    that are stored, step or axes included. What is not written holds NaN, or its `fill`. Coordinates and the
    series named in `written` are written at once, whatever they hold: a missing file of theirs is damage.
    """
    for name in (*coordinates, *series):
        if not re.fullmatch(r"(?!__|zarr\.json$|\.+$)[^/\0]+", name):
            raise StoreError(
                f"a variable cannot be called {name!r}: it has no slash, and does not begin with __"
            )
    partial, old = path.with_suffix(".partial"), path.with_suffix(".old")
    for at in (path, partial, old):
        refuse_links(path.parent, at)
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    group = zarr.create_group(partial, zarr_format=3, attributes=dict(attributes))
    for name, (labels, words) in coordinates.items():
        labels = np.asarray(labels)
        dtype = "string" if labels.dtype.kind in "UO" else labels.dtype
        array = group.create_array(
            name, shape=labels.shape, chunks=labels.shape, dtype=dtype, dimension_names=(name,),
            fill_value=None, attributes=dict(words), **_CHECKED,
        )  # fmt: skip
        whole(array)[:] = labels.astype(object) if dtype == "string" else labels
    for name, of in series.items():
        group.create_array(
            name, shape=of.shape, chunks=chunks[name], dtype=of.dtype, dimension_names=of.dims,
            fill_value=fill.get(name, np.nan),
            attributes={"units": of.units, "long_name": of.description}, **_CHECKED,
        )  # fmt: skip
    for name in written:
        whole(group[name])[...] = fill[name]
    with warnings.catch_warnings():
        # it makes `xarray.open_zarr` quick and quiet; the warning is about readers other than zarr-python
        warnings.filterwarnings("ignore", "Consolidated metadata", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(partial)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():  # of a start that was killed a moment later; in one move, then removed
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def whole(array: zarr.Array) -> zarr.Array:
    """Return an array that writes a chunk of fill values, too, so that a missing file always means damage."""
    return array.with_config({"write_empty_chunks": True})


def is_coordinate(array: zarr.Array) -> bool:
    """Return whether an array labels a dimension."""
    return array.basename in array.metadata.dimension_names


def chunk_file(store: Path, array: zarr.Array, chunk: Sequence[int]) -> Path:
    """Return the file of a chunk, whose place on axes that `chunk` does not name is 0."""
    numbers = [*chunk, *[0] * (array.ndim - len(chunk))]
    return store.joinpath(array.basename, "c", *map(str, numbers))


def read(array: zarr.Array | np.ndarray, region: Any = ...) -> np.ndarray | None:
    """Return a part of an array, None if it is not as it was written. Raises PermissionError."""
    try:
        return np.asarray(array[region])
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError):  # what zarr raises for such a chunk
        return None
    except MemoryError:  # or for the length of a word that is none
        if array.dtype.kind in "OUT":
            return None
        raise


def damaged_labels(store: Path, array: zarr.Array) -> str:
    """Return the file of a coordinate, which is one chunk, if it is missing or cannot be read, else ""."""
    file = chunk_file(store, array, ())
    return "" if file.is_file() and read(array) is not None else str(file)
