"""List the runs and sweeps below a folder, with their status.

dlf-ls [FOLDER]        or: python -m experiments.listing [FOLDER]
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from dlf.store.cells import DIVERGED, INVALID, NOT_RUN, STORE, Store
from dlf.store.files import StoreError, read_json
from experiments import command_line


class Entry(NamedTuple):
    """One run or sweep: where it is, what it is, how far it has come."""

    folder: Path
    kind: str
    status: str
    progress: str
    seconds: float


def entries(root: Path) -> Iterator[Entry]:
    """Yield each run and sweep below a folder, in the order of their names."""
    for path in sorted(root.rglob("meta.json")):
        folder = path.parent
        try:
            is_being_written = _is_being_written(folder)  # first: it may end meanwhile
            meta = read_json(path)
            kind = "sweep" if (folder / STORE).exists() else "run"
            status = meta.get("status", "unknown")
            if not is_being_written and status == "running":
                status = "interrupted"  # killed before it could say so
            progress = _cells(folder) if kind == "sweep" else _steps(folder)
            yield Entry(folder, kind, status, progress, float(meta.get("seconds", np.nan)))
        except (StoreError, OSError, KeyError, TypeError, ValueError) as error:
            yield Entry(folder, "?", "damaged", " ".join(str(error).split()), np.nan)


def _is_being_written(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _cells(folder: Path) -> str:
    status = Store(folder).status()
    names = {DIVERGED: "diverged", INVALID: "invalid"}
    notes = [f"{n} {name}" for number, name in names.items() if (n := int(np.sum(status == number)))]
    return f"{np.sum(status != NOT_RUN):,} of {status.size:,} cells" + "".join(f", {note}" for note in notes)


def _steps(folder: Path) -> str:
    group = zarr.open_group(folder / "metrics.zarr", mode="r")
    return f"{group.attrs['committed_steps']:,} of {group['step'].shape[0]:,} steps"


def main() -> None:
    """Run `dlf-ls`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(prog="dlf-ls", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default="results")
    root = parser.parse_args().folder
    if not root.is_dir():
        raise command_line.ConfigError(f"{root} is no folder: name one that holds runs or sweeps")
    table = Table("folder", "kind", "status", "progress", "seconds")
    for entry in entries(root):
        seconds = "" if np.isnan(entry.seconds) else f"{entry.seconds:,.0f}"
        table.add_row(str(entry.folder), entry.kind, entry.status, entry.progress, seconds)
    Console().print(table if table.row_count else f"no run and no sweep below {root}")
    return 0


if __name__ == "__main__":
    main()
