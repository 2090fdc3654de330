"""From the cells of a sweep to a phase diagram: means over seeds, and tests that one loss is better."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy import stats

from dlf.store.cells import DIVERGED

ACCURACIES = ("accuracy", "validation_accuracy")
_MOST_SIGN_FLIPS = 10_000  # all of them up to 13 seeds, a random draw of as many beyond


def reduce(sweeps: Mapping[str, xr.Dataset], num_classes: int | None = None) -> xr.Dataset:
    """Reduce the sweeps of one diagram to what its figure shows.

    `sweeps` holds "main"; the static loss is its amplitude 1 or the sweep "static"; "control" holds some
    cells of "main" in double precision. For every variable the result has `_mean` and `_std` (over seeds,
    one delta degree of freedom); for accuracies `_gain`, `_gain_error`, `_p_value` and `_significant`
    against the static loss (see `paired_gain`); under `reference_` the static loss of a sweep of its own;
    under `control_` what double precision changes (see `control`). A diverged run counts with the accuracy
    of guessing, 1 / num_classes (by default as "main" has it among its attributes), and elsewhere not at all.

    Raises ValueError for a sweep that is not complete.
    """
    num_classes = sweeps["main"].attrs["num_classes"] if num_classes is None else num_classes
    for name, sweep in sweeps.items():
        missing = int((sweep["status"] == 0).sum())
        if missing:
            raise ValueError(f"{missing} cells of the sweep {name!r} have not been run")
    main = _fill_guesses(sweeps["main"], num_classes)
    reduced = _over_seeds(main).assign_attrs(num_seeds=main.sizes["seed"])
    reduced.attrs["commit"] = sweeps["main"].attrs.get("commit", "")  # of the code that ran it
    reduced["diverged"] = (main["status"] == DIVERGED).mean("seed").assign_attrs(units="1")
    static = None
    if "static" in sweeps:
        static = _fill_guesses(sweeps["static"], num_classes).sel(amplitude=1.0, drop=True)
        reference = _over_seeds(static)
        reduced = reduced.merge(reference.rename({name: f"reference_{name}" for name in reference}))
    elif "amplitude" in main.dims and (main["amplitude"] == 1).any():
        static = main.sel(amplitude=1.0, drop=True)
        main = main.sel(amplitude=main["amplitude"] > 1)
    if static is not None:
        for name in set(ACCURACIES) & set(main):
            gain = paired_gain(main[name], static[name])
            reduced = reduced.merge(gain.rename({k: f"{name}_{k}" for k in gain}), join="outer")
    if "control" in sweeps:
        reduced = reduced.merge(control(sweeps["control"], sweeps["main"], num_classes))
    return reduced


def control(double: xr.Dataset, single: xr.Dataset, num_classes: int) -> xr.Dataset:
    """Compare the cells of a sweep in double precision with the same cells in single.

    For each accuracy: `control_<name>_shift`, the mean over seeds of the difference in every cell, with its
    standard error `_error`; and over all cells the mean of the shift and its standard error as attributes.
    """
    double = _fill_guesses(double.squeeze("precision", drop=True), num_classes)
    # of a series, the last value
    single = single.isel({dim: -1 for dim in single.dims if dim.endswith("step")}, drop=True)
    single = _fill_guesses(single, num_classes).sel({name: double[name] for name in double.dims})
    found = xr.Dataset()
    for name in set(ACCURACIES) & set(double):
        difference = (double[name] - single[name]).astype(float)
        shift, error = mean_error(difference)
        # the seeds are the same in every cell: their means are what is independent
        _, of_all = mean_error(difference.mean(shift.dims))
        attributes = {"num_cells": shift.size, "mean": float(shift.mean()), "error": float(of_all)}
        renamed = {dim: f"control_{dim}" for dim in shift.dims}
        found[f"control_{name}_shift"] = shift.rename(renamed).assign_attrs(attributes)
        found[f"control_{name}_error"] = error.rename(renamed)
    return found


def in_words(reduced: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return a table of what a diagram found, in words and numbers."""
    rows, root = [("quantity", "found")], reduced.attrs["num_seeds"] ** 0.5
    for name in ACCURACIES:
        if f"{name}_mean" not in reduced:
            continue
        label, mean, error = name.replace("_", " "), reduced[f"{name}_mean"], reduced[f"{name}_std"] / root
        if (static := f"reference_{name}_mean") in reduced:
            words = f"{reduced[static]:.3f} ± {reduced[f'reference_{name}_std'] / root:.3f}"
            rows.append((f"{label}, static loss", words))
        if 1 in reduced.get("amplitude", ()):
            rows.append((f"best {label}, static loss", _best(mean.sel(amplitude=1), error.sel(amplitude=1))))
        rows.append((f"best {label}", _best(mean, error)))
        if f"{name}_significant" in reduced:
            tested = reduced[f"{name}_p_value"].notnull()
            significant = int(reduced[f"{name}_significant"].where(tested).sum())
            rows.append((f"cells significantly better in {label}", f"{significant} of {int(tested.sum())}"))
        if f"control_{name}_shift" in reduced:
            shift = reduced[f"control_{name}_shift"]
            words = f"{label}: float64 minus float32, {shift.attrs['num_cells']} cells"
            rows.append((words, f"{shift.attrs['mean']:+.4f} ± {shift.attrs['error']:.4f}"))
    diverged = f"{100 * float(reduced['diverged'].mean()):.1f} %"
    return {"diagram": [*rows, ("runs that diverged", diverged)]}


def _best(mean: xr.DataArray, error: xr.DataArray) -> str:
    best = mean.where(mean == mean.max(), drop=True)
    where = {dim: best[dim].values[0] for dim in best.dims}
    place = ", ".join(f"{dim} {value}" for dim, value in where.items())
    return f"{float(mean.max()):.3f} ± {float(error.sel(where)):.3f} at {place}"


def mean_error(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the mean over `seed` and its standard error, of the seeds that are not NaN.

        error = std_s / sqrt(number of seeds)

    >>> [found.item() for found in mean_error(xr.DataArray([1.0, 2.0, np.nan], dims="seed"))]
    [1.5, 0.5]
    """
    return values.mean("seed"), values.std("seed", ddof=1) / np.sqrt(values.count("seed"))


def paired_gain(values: xr.DataArray, reference: xr.DataArray, alternative: str = "greater") -> xr.Dataset:
    """Test in every cell whether values exceed a reference, paired over `seed`.

        gain = mean_s (values_s - reference_s)        with its standard error

    `p_value` is that of the sign-flip permutation test of the mean, for `alternative` "greater" or
    "two-sided", which assumes no more than that without an effect a difference is as likely as its negative:
    exact up to 13 seeds, from a fixed random draw beyond. `significant` holds at a false discovery rate of
    5 % over all cells. A cell in which a value is missing is not tested.

    Raises ValueError for fewer than two seeds.

    Source: Fisher 1935, The Design of Experiments, section 21; Benjamini and Hochberg 1995.

    >>> seeds = {"dims": ("cell", "seed")}
    >>> better = xr.DataArray([[0.6, 0.7, 0.9, 0.8], [0.5, 0.5, 0.5, 0.5]], **seeds)
    >>> gain = paired_gain(better, xr.DataArray([0.5, 0.5, 0.5, 0.5], dims="seed"))
    >>> gain["gain"].values.round(3).tolist(), gain["p_value"].values.tolist()
    ([0.25, 0.0], [0.0625, 1.0])
    """
    difference = (values - reference).transpose(..., "seed").astype(float)
    if difference.sizes["seed"] < 2:
        raise ValueError("a paired test needs two seeds")
    tested = difference.notnull().all("seed")
    p_value = stats.permutation_test(
        (difference.fillna(0.0).values,), lambda rows, axis: np.mean(rows, axis=axis), vectorized=True,
        permutation_type="samples", alternative=alternative, n_resamples=_MOST_SIGN_FLIPS, batch=100, axis=-1,
        rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    p_value = tested.copy(data=p_value).where(tested)
    significant = tested.copy(data=np.zeros(tested.shape, np.int8))
    if tested.any():
        adjusted = stats.false_discovery_control(p_value.values[tested.values])
        significant.values[tested.values] = adjusted <= 0.05
    gain, error = mean_error(difference)
    return xr.Dataset(dict(gain=gain, gain_error=error, p_value=p_value, significant=significant))


def _fill_guesses(sweep: xr.Dataset, num_classes: int) -> xr.Dataset:
    """Return the measured values, thinned to the steps of the probe, diverged accuracies as guesses."""
    if "hessian_eigenvalues" in sweep:
        sweep = sweep.assign(sharpness=sweep["hessian_eigenvalues"].isel(rank=0)).drop_dims("rank")
    if "hessian_step" in sweep.dims and "step" in sweep.dims:  # all series where the sharpness was measured
        at = sweep["hessian_step"]
        sweep = sweep.assign({name: v.sel(step=at) for name, v in sweep.items() if "step" in v.dims})
        sweep = sweep.drop_dims("step").rename(hessian_step="step")
    for name in set(ACCURACIES) & set(sweep):
        sweep = sweep.assign({name: sweep[name].where(sweep["status"] != DIVERGED, 1 / num_classes)})
    return sweep


def _over_seeds(cells: xr.Dataset) -> xr.Dataset:
    found = xr.Dataset()
    for name, values in cells.items():
        if values.dtype.kind == "f":
            attributes = {key: values.attrs[key] for key in ("units", "long_name") if key in values.attrs}
            found[f"{name}_mean"] = values.mean("seed").assign_attrs(attributes)
            found[f"{name}_std"] = values.std("seed", ddof=1).assign_attrs(attributes)
    return found
