"""Data sets and batch functions. `__all__` is the catalogue that a config names a data set from."""

from dlf.data.batches import full_batch as full_batch
from dlf.data.images import digits
from dlf.data.synthetic import spiral

__all__ = ["digits", "spiral"]
