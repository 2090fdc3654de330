"""Checkpoints of a run: written by orbax, counted by their checksums.

orbax does not notice changed bytes in its array files. So a checkpoint `<step>/` counts once
`<step>.json` with the checksum of each of its files is there, and is read only where they hold.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dlf.store.files import StoreError, read_json, write_json


def save(folder: Path, step: int, state: Any, num_kept: int) -> None:
    """Write the state after `step` updates, then let all but the newest `num_kept` checkpoints go."""
    try:
        ocp.save(folder.resolve() / str(step), state, overwrite=True)
    except ValueError as error:  # how tensorstore reports a failing write
        raise StoreError(f"cannot write {folder / str(step)}: {str(error).split(' [')[0]}") from error
    write_json(folder / f"{step}.json", _checksums(folder / str(step)))
    for old in steps(folder)[num_kept:]:
        (folder / f"{old}.json").unlink()
        shutil.rmtree(folder / str(old))


def load(folder: Path, step: int, like: Any) -> Any:
    """Read a checkpoint into the structure of `like`, placed on its devices."""
    # as NumPy arrays first: orbax reads in threads of its own, which do not see the x64 setting
    # of a context and would round to float32
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    arrays = ocp.load(folder.resolve() / str(step), empty)
    return jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), arrays, like)


def steps(folder: Path) -> list[int]:
    """Return the steps of all complete checkpoints, newest first."""
    return sorted((int(path.stem) for path in folder.glob("[0-9]*.json")), reverse=True)


def damaged_file(folder: Path, step: int) -> str:
    """Return the first file of a checkpoint that is missing or changed, "" for a sound one."""
    try:
        expected = read_json(folder / f"{step}.json")
    except StoreError:
        return str(folder / f"{step}.json")
    at, found = folder / str(step), _checksums(folder / str(step))
    return next((str(at / name) for name in expected if found.get(name) != expected[name]), "")


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}
