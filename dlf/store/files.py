"""JSON files that are read whole or not at all, and the error that says what to do."""

import json
import os
from collections.abc import Mapping
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
