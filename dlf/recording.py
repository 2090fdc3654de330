"""What a run records: the series of steps and probes, and what stands for a gap in them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf.labels import is_wide
from dlf.types import Probe, Series, TrainState

Rows = dict[str, Array]  # what was measured, by name
StepFn = Callable[..., tuple[TrainState, Rows]]  # of a state, and of what probes measured if it `reads` any

# What every step of a problem records, where it has it.
SERIES = {
    "loss": Series((), "nat", "dynamical loss F"),
    "static_loss": Series((), "nat", "loss with all class weights one"),
    "accuracy": Series((), "1", "training accuracy"),
    "class_weights": Series(("class",), "1", "class weights Gamma"),
    "learning_rate": Series((), "1", "learning rate eta"),
    "threshold": Series((), "nat", "sharpness above which the optimizer is unstable"),
}


def missing(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return NaN, which stands for "not measured"; the largest number while `jax_debug_nans` looks for NaN.

    On the host `with_gaps` turns it into NaN.
    """
    return jnp.full(shape, jnp.finfo(dtype).max if jax.config.jax_debug_nans else jnp.nan, dtype)


def is_missing(values: Array) -> Array:
    """Return where an array holds what `missing` gives.

    >>> is_missing(jnp.asarray([1.0, jnp.nan])).tolist()
    [False, True]
    """
    return values == jnp.finfo(values.dtype).max if jax.config.jax_debug_nans else jnp.isnan(values)


def with_gaps(rows: Mapping[str, Array | np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows as arrays of NumPy in which NaN stands for what was not measured, see `missing`."""
    found = {name: np.asarray(of) for name, of in rows.items()}
    if not jax.config.jax_debug_nans:
        return found
    return {k: np.where(x == np.finfo(x.dtype).max, x.dtype.type(np.nan), x) for k, x in found.items()}


def step_series(step_fn: StepFn, state: TrainState) -> dict[str, Series]:
    """Return the series that every step records, with the shape and dtype of a row.

    What a user's step measures beside `SERIES` is described by its name alone. Raises ValueError for what a
    store cannot hold.
    """
    rows = jax.eval_shape(step_fn, state)[1]
    known = {name: of for name, of in SERIES.items() if name in rows}
    own = {name: Series(tuple(f"{name}_{i}" for i in range(of.ndim)), "", name) for name, of in rows.items()}
    return _completed(known | {name: of for name, of in own.items() if name not in known}, "step", 1, rows)


def probe_series(name: str, probe: Probe, state: TrainState) -> dict[str, Series]:
    """Return the series of a probe in a loop that knows it by this name.

    Raises ValueError for a probe that does not measure what it declares, or what a store cannot hold, or
    whose carry changes its kind.
    """
    if not isinstance(probe, Probe):
        raise ValueError(f"must be a Probe, got {type(probe).__name__}")
    first = probe.init(state)
    found = jax.eval_shape(probe.measure, first, state)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise ValueError("measure must return the next carry and a dict of arrays")
    carry, rows = found
    if rows.keys() != probe.series.keys():
        declared, measured = (", ".join(sorted(names)) or "nothing" for names in (probe.series, rows))
        raise ValueError(f"declares the series {declared}, but measures {measured}")
    kinds = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree, is_leaf=lambda x: x is None)
        for tree in (first, carry)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError("measure must return a carry of the shapes and dtypes that init returns")
    return _completed(probe.series, f"{name}_step", probe.every, rows)


def check_names(series: Mapping[str, Series]) -> None:
    """Raise ValueError for series that one labelled data set cannot hold.

    Their names, those of their dimensions, and those of their step coordinates are different words; a
    dimension has one size. Only ranks may differ in number: those that are fewer are filled up with NaN.

    >>> check_names({"loss": Series(("loss",), "nat", "F", shape=(3,))})
    Traceback (most recent call last):
    ValueError: loss is the name of a series and of a dimension or step: rename one
    """
    sizes: dict[str, tuple[int, str]] = {}
    labels = {of.step for of in series.values()}
    for name, of in series.items():
        for dim, size in zip(of.dims, of.shape, strict=True):
            known, other = sizes.setdefault(dim, (size, name))
            if known != size and dim != "rank":
                raise ValueError(f"{dim!r} has {size} labels in {name}, {known} in {other}: rename one")
    if twice := (labels | sizes.keys()) & series.keys() or labels & sizes.keys():
        raise ValueError(f"{min(twice)} is the name of a series and of a dimension or step: rename one")


def _completed(series, step, every, rows):
    """Return series with what is known in a loop; raise ValueError for what a store cannot hold."""
    if type(every) is not int or not 1 <= every < 2**31:
        raise ValueError(f"every must be a whole number of steps of at least 1, got {every!r}")
    found = {}
    for name, of in series.items():
        words = of.dims if isinstance(of, Series) and isinstance(of.dims, tuple) else (None,)
        if not all(isinstance(word, str) and word.isidentifier() for word in (name, *words)):
            raise ValueError(f"{name!r} must be a Series, it and its dimensions words: letters, digits, _")
        if not (isinstance(of.units, str) and isinstance(of.description, str)):
            raise ValueError(f"{name}: units and description must be words")
        shape, dtype = rows[name].shape, rows[name].dtype
        if len(shape) != len(of.dims) or len(set(of.dims)) < len(shape):
            raise ValueError(f"{name} is {list(shape)} when measured, but has the dimensions {of.dims}")
        if 0 in shape or not is_wide(dtype):
            raise ValueError(f"{name} must be real, of 32 or 64 bits and not empty, got {dtype}{list(shape)}")
        found[name] = of._replace(step=step, every=every, shape=shape, dtype=dtype)
    return found
