"""How much fits into the memory of the machine: asked before anything large is made."""

import os
from pathlib import Path

__all__ = ["require"]

# of a container, by both versions of Linux's control groups; "max" is none
_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def require(what: str, num_bytes: int | float) -> None:
    """Raise ValueError if something takes more bytes than the machine has memory.

    >>> require("a kernel of 10^7 examples", 8 * 1e14)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: a kernel of 10^7 examples would take 7.45e+05 GiB, this machine has ...
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in map(Path, _LIMITS):
        if limit.is_file() and (words := limit.read_text().strip()).isdigit():
            memory = min(memory, int(words))
    if num_bytes > memory:
        raise ValueError(
            f"{what} would take {num_bytes / 2**30:.3g} GiB, this machine has {memory / 2**30:.3g}"
        )
