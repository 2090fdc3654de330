"""What a run records: the series of steps and probes, and what stands for a gap in them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf.types import Probe, Series, TrainState

Rows = dict[str, Array]  # what was measured, by name
StepFn = Callable[[TrainState], tuple[TrainState, Rows]]

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
    """Return NaN, which stands for "not measured"; infinity while JAX looks for NaN (`jax_debug_nans`).

    On the host `with_gaps` turns it into NaN.
    """
    return jnp.full(shape, jnp.inf if jax.config.jax_debug_nans else jnp.nan, dtype)


def with_gaps(rows: Mapping[str, Array | np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows as arrays of NumPy in which NaN stands for what was not measured, see `missing`."""
    found = {name: np.asarray(of) for name, of in rows.items()}
    if not jax.config.jax_debug_nans:
        return found
    return {name: np.where(np.isposinf(of), of.dtype.type(np.nan), of) for name, of in found.items()}


def step_series(step_fn: StepFn, state: TrainState) -> dict[str, Series]:
    """Return the series that every step records, with the shape and dtype of a row.

    What a user's step measures beside `SERIES` is described by its name alone.
    """
    rows = jax.eval_shape(step_fn, state)[1]
    known = {name: of for name, of in SERIES.items() if name in rows}
    own = {name: Series(tuple(f"{name}_{i}" for i in range(of.ndim)), "", name) for name, of in rows.items()}
    return _completed(known | {name: of for name, of in own.items() if name not in known}, "step", 1, rows)


def probe_series(name: str, probe: Probe, state: TrainState) -> dict[str, Series]:
    """Return the series of a probe in a loop that knows it by this name.

    Raises ValueError for a probe that does not measure what it declares, or whose carry changes its kind.
    """
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
    for key, of in probe.series.items():
        shape, dtype = rows[key].shape, rows[key].dtype
        if len(shape) != len(of.dims):
            raise ValueError(
                f"{key} has {len(of.dims)} dimensions by its series, but {len(shape)} when measured"
            )
        if not jnp.isdtype(dtype, "real floating"):
            raise ValueError(f"{key} must be of a real floating dtype, got {dtype}")
    return _completed(probe.series, f"{name}_step", probe.every, rows)


def _completed(series, step, every, rows):
    return {
        name: of._replace(step=step, every=every, shape=rows[name].shape, dtype=rows[name].dtype)
        for name, of in series.items()
    }
