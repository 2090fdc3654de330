"""List the runs and sweeps below a folder, with their status.

dlf-ls [FOLDER]        or: python -m experiments.listing [FOLDER]
"""

import fcntl
import os
from pathlib import Path

import numpy as np
import zarr
from rich.console import Console
from rich.table import Column, Table

from dlf.store.cells import DIVERGED, INVALID, NOT_RUN, STORE, Store
from dlf.store.files import StoreError, read_json
from experiments import command_line


def entry(folder: Path) -> tuple[str, ...]:
    """Return what the folder of a run or sweep is, in words: folder, kind, status, progress, seconds."""
    try:
        is_being_written = _is_being_written(folder)  # first: it may end meanwhile
        meta = read_json(folder / "meta.json")
        kind = "sweep" if (folder / STORE).exists() else "run"
        status = meta.get("status", "unknown")
        if not is_being_written and status == "running":
            status = "interrupted"  # killed before it could say so
        seconds = f"{float(meta['seconds']):,.0f}" if "seconds" in meta else ""
        return str(folder), kind, status, _progress(folder), seconds
    except (StoreError, OSError, KeyError, TypeError, ValueError) as error:
        return str(folder), "?", "damaged", " ".join(str(error).split()), ""


def _is_being_written(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _progress(folder: Path) -> str:
    if not (folder / STORE).exists():
        group = zarr.open_group(folder / "metrics.zarr", mode="r")
        return f"{group.attrs['committed_steps']:,} of {group['step'].shape[0]:,} steps"
    status = Store(folder).status()
    bad = {name: int(np.sum(status == n)) for n, name in ((DIVERGED, "diverged"), (INVALID, "invalid"))}
    notes = "".join(f", {number} {name}" for name, number in bad.items() if number)
    return f"{np.sum(status != NOT_RUN):,} of {status.size:,} cells{notes}"


def main() -> None:
    """Run `dlf-ls`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(prog="dlf-ls", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default="results")
    root = parser.parse_args().folder
    if not root.is_dir():
        raise command_line.ConfigError(f"{root} is no folder: name one that holds runs or sweeps")
    table = Table(Column("folder", overflow="fold"), "kind", "status", "progress", "seconds")
    for path in sorted(root.rglob("meta.json")):
        table.add_row(*entry(path.parent))
    Console().print(table if table.row_count else f"no run and no sweep below {root}")
    return 0


if __name__ == "__main__":
    main()
