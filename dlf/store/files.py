"""Work folders with one writer, JSON files that are read whole or not at all, and the error for both."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class StoreError(Exception):
    """A work folder cannot be read or written as asked; the message says what to do."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one move: a reader sees the old content or the new, never a part."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises StoreError that names the file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: {path.parent} holds no run") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged: move {path.parent} away and run again") from error
    if not isinstance(content, dict) or not content:
        raise StoreError(f"{path} is damaged: move {path.parent} away and run again")
    return content


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
            _lock(folder)
            yield
    except BlockingIOError as error:
        raise StoreError(f"another process is writing to {workdir}: wait for it to end") from error
    except OSError as error:
        raise StoreError(f"cannot write to {workdir}: {error.strerror or error}") from error


def _lock(folder: int) -> None:
    for patience in (0.05, 0.1, 0.2, 0.0):
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not patience:
                raise
            time.sleep(patience)  # `dlf-ls` holds a lock for an instant, to see whether it is free
