"""Checkpoints of a run: written by orbax, known by the checksums of their files.

orbax does not notice changed bytes in its array files. So a checkpoint `<step>/` counts once the ledger of
the run (see `dlf.store.run`) has the checksums of its files, and is read only where they hold.
"""

import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from dlf.store.files import StoreError, refuse_links, remove, sync

Checksums = dict[str, int]  # of the files of a checkpoint, by their path in it


def check_path(workdir: Path) -> None:
    """Raise StoreError for a work folder whose name orbax or tensorstore take for something else."""
    path = os.path.realpath(workdir)
    if found := re.search(r"\[.*\]|\*\*|\\|(?<=/)gs:|[\ud800-\udfff]", path, re.DOTALL):
        raise StoreError(f"orbax cannot use {path!a} because of {found[0]!a}: name another folder")


def save(folder: Path, step: int, state: Any) -> Checksums:
    """Write the state after `step` updates and return the checksums of its files."""
    refuse_links(folder.parent, folder)
    folder.mkdir(exist_ok=True)  # not its parents: a work folder that has vanished is not made anew
    try:
        ocp.save(folder.resolve() / str(step), jax.tree.map(_data, state), overwrite=True)
    except (ValueError, RuntimeError) as error:
        # how tensorstore (CODE: what: cause) and the loop of orbax report a failing write
        words = re.sub("^[A-Z_]+: .*: ", "", str(error).split(" [")[0])
        raise StoreError(f"cannot write {folder / str(step)}: {words}") from error
    except OSError as error:  # which it names from a folder of its own, or not at all
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
    sync(folder)
    at = folder / str(step)
    return {str(path.relative_to(at)): _checksum(path) for path in sorted(at.rglob("*")) if path.is_file()}


def load(folder: Path, step: int, like: Any) -> Any:
    """Read a checkpoint into the structure of `like`, placed on its devices.

    Raises StoreError that names the first leaf whose shape or dtype differs from that of `like`, or which one
    of them lacks: orbax would cut, fill or round.
    """
    at = folder.resolve() / str(step)
    # as NumPy arrays first: orbax reads in threads of its own, which do not see the x64 setting
    # of a context and would round to float32
    empty = jax.tree.map(lambda leaf: np.empty(_data(leaf).shape, _data(leaf).dtype), like)
    stored, wanted = _leaves(ocp.metadata(at).metadata), _leaves(empty)
    for name in stored | wanted:
        if stored.get(name) != wanted.get(name):
            has, takes = stored.get(name, "no such array"), wanted.get(name, "none")
            raise StoreError(
                f"{folder / str(step)} does not match this run: {name} is {has}, expected {takes}"
            )
    arrays = ocp.load(at, empty)
    return jax.tree.map(_place, arrays, like)


def _leaves(tree: Any) -> dict[str, str]:
    """Return what each leaf is, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """Return the bits of a random key, which orbax does not take, and any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _place(array: Any, leaf: Any) -> Any:
    key = jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array
    return jax.device_put(key, leaf.sharding)


def damaged_file(folder: Path, step: int, expected: Mapping[str, int]) -> str:
    """Return the first file of a checkpoint that is missing or changed, "" for a sound one."""
    at = folder / str(step)
    return next((str(at / name) for name in expected if _checksum(at / name) != expected[name]), "")


def newest(folder: Path, listed: Mapping[str, Checksums], most: int) -> tuple[int | None, list[str]]:
    """Return the newest sound checkpoint up to a step, None without one, and damaged files of newer ones."""
    damaged = []
    for step in sorted((step for step in map(int, listed) if step <= most), reverse=True):
        file = damaged_file(folder, step, listed[str(step)])
        if not file:
            return step, damaged
        damaged.append(file)
    return None, damaged


def keep(folder: Path, steps: Iterable[str]) -> None:
    """Remove all but some checkpoints, and what killed processes have left."""
    kept = {*steps}
    refuse_links(folder.parent, folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept and re.fullmatch(
            r"[0-9]+(\.json|\.partial|\.orbax-checkpoint-tmp.*)?", path.name
        ):
            remove(path)


def _checksum(path: Path) -> int | None:
    """Return the checksum of a file, None where there is none. Raises PermissionError."""
    try:
        return zlib.crc32(path.read_bytes())
    except PermissionError:
        raise
    except OSError:
        return None
