"""The data set that a configuration names, checked."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf import data
from dlf.types import Batch, Dataset
from experiments.catalogues import blaming, call, untupled


# The cells of a sweep share data; the last argument is JAX's precision.
@lru_cache(maxsize=16)
def dataset_of(section: str, float64: bool) -> Dataset:
    """Return the data set of a section, its test sets by name. Raises ConfigError for what is none."""
    name = (given := untupled(section))["name"]
    with np.errstate(all="ignore"):  # what comes of it is judged
        found = call(data, "dataset", given)
    with blaming(f"dataset {name}"):
        train, test, num_classes = found
        tests = test if isinstance(test, Mapping) else {"validation": test}
        for of in tests:
            if not (isinstance(of, str) and of.isidentifier()):
                raise ValueError(f"a test set needs a name of letters, digits and underscores, got {of!r}")
        train, *others = (Batch(*map(_as_array, of)) for of in (train, *tests.values()))
        for batch in (train, *others):
            if not (batch.inputs.ndim and batch.labels.ndim and len(batch.inputs) == len(batch.labels) > 0):
                raise ValueError("it needs examples, and a label for each")
            if not jnp.isfinite(batch.inputs).all():
                raise ValueError("its inputs are not all finite")
        return Dataset(train, dict(zip(tests, others, strict=True)), num_classes)


def _as_array(values: Any) -> Array:
    """Return an array of JAX; raise ValueError for whole numbers that its precision would wrap."""
    found = jnp.asarray(values)
    if jnp.isdtype(found.dtype, "integral") and not np.array_equal(found, values):
        raise ValueError(f"its whole numbers do not fit {found.dtype}: set float64=True")
    return found
