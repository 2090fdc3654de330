"""Standard streams that may be full, closed, or without a reader."""

import contextlib
from collections.abc import Callable
from typing import Any, TextIO


class Stream:
    """A standard stream that lets the program go on where nobody reads it, or where its disk is full."""

    def __init__(self, stream: TextIO):
        self._stream, self.lost = stream, None
        with contextlib.suppress(AttributeError):  # only files know it: letters that they do not have
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, words: str) -> int:
        self._try(self._stream.write, words)
        return len(words)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable, *words: str) -> None:
        try:
            act(*words)
        except OSError as error:
            self.lost = error
