"""List the runs and sweeps below a folder, with their status.

dlf-ls [FOLDER]        or: python -m experiments.listing [FOLDER]
"""

import fcntl
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dlf import store
from dlf.store.cells import DIVERGED, INVALID, NOT_RUN, STORE, Store
from dlf.store.files import LEDGER, read_meta
from experiments import command_line


def entry(folder: Path) -> tuple[str, ...]:
    """Return what the folder of a run or sweep is, in words: folder, kind, status, progress, seconds."""
    try:
        is_being_written = _is_being_written(folder)  # first: it may end meanwhile
        meta = read_meta(folder)
        kind = "sweep" if (folder / STORE).exists() else "run"
        status = str(meta.get("status", "unknown"))
        if not is_being_written and status == "running":
            status = "interrupted"  # killed before it could say so
        seconds = f"{float(meta['seconds']):,.0f}" if "seconds" in meta else ""
        return str(folder), kind, status, _progress(folder), seconds
    except Exception as error:  # one folder, whatever is in it, does not hide the others
        is_kept = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
        return str(folder), "?", "unreadable" if is_kept else "damaged", " ".join(str(error).split()), ""


def _is_being_written(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def _progress(folder: Path) -> str:
    if not (folder / STORE).exists():
        return "{:,} of {:,} steps".format(*store.committed(folder))
    status = Store(folder).status()
    bad = {name: int(np.sum(status == n)) for n, name in ((DIVERGED, "diverged"), (INVALID, "invalid"))}
    notes = "".join(f", {number} {name}" for name, number in bad.items() if number)
    return f"{np.sum(status != NOT_RUN):,} of {status.size:,} cells{notes}"


def _results(root: Path) -> list[Path]:
    """Return the folders that hold results or what is left of them, or that cannot be looked into."""
    found, unreadable = [], []
    for folder, folders, names in os.walk(root, onerror=unreadable.append):
        is_ours = {"meta.json", LEDGER} & {*names, *folders}
        folders[:] = [name for name in folders if not name.endswith(".zarr") and name != "checkpoints"]
        if is_ours:
            found.append(Path(folder))
    return sorted([*found, *(Path(error.filename) for error in unreadable)])


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
    for folder in _results(root):
        # as it is: no markup, nothing that steers a terminal
        words = ("".join(c if c.isprintable() else "?" for c in word) for word in entry(folder))
        table.add_row(*map(Text, words))
    Console().print(table if table.row_count else f"no run and no sweep below {root}")
    return 0


if __name__ == "__main__":
    main()
