"""Work folders with one writer, files that are whole or not there, and the error for both."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LEDGER = "ledger.json"  # of a run or a sweep: the digests of its metadata, see `dlf.store.run` and `cells`


class StoreError(Exception):
    """A work folder cannot be read or written as asked; the message says what to do."""


def write_json(path: Path, content: Mapping[str, Any], signed: bool = False) -> None:
    """Write a JSON file in one move: a reader sees the old content or the new, never a part.

    A `signed` one holds a digest of the rest, by which `read_json` knows it, unless the ledger beside it is
    from before there were any. Raises StoreError where a link lies in the way of the part under way: it is
    not followed.
    """
    signed = signed and (path.name == LEDGER or _id_of(path.parent) != "")
    partial = path.with_suffix(".partial")
    refuse_links(path.parent, partial)
    partial.unlink(missing_ok=True)  # of a process that was killed
    content = dict(content) | ({"digest": _sign(path, content)} if signed else {})
    with open(partial, "x") as file:
        file.write(json.dumps(content, indent=None if path.name == LEDGER else 2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def refuse_links(workdir: Path, path: Path) -> None:
    """Raise StoreError if a path below a work folder leads out of it: what is there is not dlf's."""
    if Path(os.path.realpath(path)) != Path(os.path.realpath(workdir)) / path.relative_to(workdir):
        parts = [
            part for part in (*path.parents[::-1], path) if part != workdir and part.is_relative_to(workdir)
        ]
        link = next((part for part in parts if part.is_symlink()), path)
        raise StoreError(f"{link} is a link, and nothing of dlf's: remove it")


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def which(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from any other one at its path, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_own(workdir: Path, is_own: bool) -> None:
    """Raise StoreError where a work folder is not as its writer left it: nothing is made anew in silence."""
    if not is_own:
        raise StoreError(
            f"{workdir} was moved, removed or changed while it was written to: no more is written (parts "
            "of a chunk may have come to lie there); look where it is now, or run again in another folder"
        )


def sync(path: Path) -> None:
    """Let the system write a file, or the names in a folder, to the disk now."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def read_json(path: Path, signed: bool = False) -> dict[str, Any]:
    """Read a JSON file of a run or sweep. Raises StoreError that names the file.

    A file with a digest must agree with it, and a `signed` one must have it.
    """
    damaged = StoreError(f"{path} is damaged: move {path.parent} away and run again")
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        is_ours = path.with_name(LEDGER).exists()
        advice = f"move {path.parent} away and run again" if is_ours else f"{path.parent} holds no results"
        raise StoreError(f"{path} is missing: {advice}") from error
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(content, dict) or not content:
        raise damaged
    found = content.pop("digest", None)
    if (found is None and signed) or found not in (None, _sign(path, content)):
        other = "" if path.name == LEDGER else f", or the {LEDGER} beside it is, or is missing"
        raise StoreError(f"{path} is damaged{other}: move {path.parent} away and run again")
    return content


def _sign(path: Path, content: Mapping[str, Any]) -> str:
    """Return the digest of a file's content, of this name, beside the ledger of this run or sweep."""
    of = "" if path.name == LEDGER else _id_of(path.parent)
    return digest(json.dumps([path.name, of, {k: v for k, v in content.items() if k != "digest"}]).encode())


def _id_of(workdir: Path) -> str:
    """Return the id that the ledger of a run or sweep begins with, "" for one without."""
    try:
        with open(workdir / LEDGER, "rb") as file:  # it may be long
            return (re.match(rb'{"id": "([0-9a-f]+)"', file.read(64)) or [b"", b""])[1].decode()
    except OSError:
        return ""


def digest(content: bytes) -> str:
    """Return a digest of 64 bits, which tells any two contents apart that do not conspire.

    >>> digest(b"dlf")
    '9bca761cc4e44739'
    """
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def read_meta(workdir: Path) -> dict[str, Any]:
    """Read the meta.json of a run or sweep. Raises StoreError that names the file."""
    # a ledger without an id is that of a run from before there were digests, which goes on
    return read_json(workdir / "meta.json", signed=bool(_id_of(workdir)))


def read_ledger(workdir: Path) -> dict[str, Any] | None:
    """Return the ledger of a run or sweep, None before there were any; warn of what is from before them.

    Raises StoreError for one that is missing or damaged.
    """
    path, meta = workdir / LEDGER, workdir / "meta.json"
    content = read_json(path, signed=True) if path.exists() else None
    if meta.is_file():  # which is written after it
        if content is None and b'"digest"' in meta.read_bytes():
            raise StoreError(f"{path} is missing: move {workdir} away and run again")
        if "id" not in (content or {}):
            warnings.warn(f"{workdir} is from before dlf kept digests: damage may pass unseen", stacklevel=1)
    return content


def digests_of_metadata(workdir: Path, store: str, pattern: str = "*") -> dict[str, str]:
    """Return the digests of all files of a store that was just allocated, or of some of another one."""
    files = [path for path in (workdir / store).rglob(pattern) if path.is_file()]
    files += [path for path in [workdir / "config.json"] if path.is_file()]
    return {str(path.relative_to(workdir)): digest(path.read_bytes()) for path in files}


def check_metadata(workdir: Path, ledger: Mapping[str, Any]) -> None:
    """Raise StoreError that names the first file of a ledger's metadata that is not as it was written."""
    for name, expected in ledger["metadata"].items():
        try:
            found = digest((workdir / name).read_bytes())
        except PermissionError as error:
            raise StoreError(f"cannot read {workdir / name}: {error.strerror}") from error
        except OSError:
            found = ""
        if found != expected:
            raise StoreError(f"{workdir / name} is damaged or missing: move {workdir} away and run again")


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[Callable[[], None]]:
    """Create the work folder and keep other writers out until the block ends, or the process.

    Yields what raises StoreError once the folder at this path is another one.

    Raises StoreError if the folder is taken, cannot be written, or a write in the block fails.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise StoreError(f"{workdir} is no folder: name another one")
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, folder)
            _lock(folder)

            def check_same() -> None:
                check_own(workdir, workdir.is_dir() and os.path.samestat(os.fstat(folder), os.stat(workdir)))

            try:
                yield check_same
            except OSError:
                check_same()
                raise
    except BlockingIOError as error:
        raise StoreError(f"another process is writing to {workdir}: wait for it to end") from error
    except OSError as error:
        what = "read or write" if isinstance(error, PermissionError) else "write to"
        place = Path(os.fsdecode(error.filename or os.devnull))  # other libraries have names of their own
        place = place if workdir in place.parents or place in workdir.parents else workdir
        raise StoreError(f"cannot {what} {place}: {error.strerror or error}") from error


def _lock(folder: int) -> None:
    for patience in (0.05, 0.1, 0.2, 0.0):
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not patience:
                raise
            time.sleep(patience)  # `dlf-ls` holds a lock for an instant, to see whether it is free
        except OSError as error:
            if error.errno != errno.ENOLCK and error.errno != errno.EOPNOTSUPP:
                raise
            return None  # a file system without locks: the user sees to it that one writes
