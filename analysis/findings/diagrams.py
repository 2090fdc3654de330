"""From the cells of a sweep to a phase diagram: means over seeds, and where a loss is better than another."""

from collections.abc import Mapping

import xarray as xr

from analysis.findings.statistics import mean_error, paired_gain
from dlf.store.cells import DIVERGED

ACCURACIES = ("accuracy", "validation_accuracy")


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
    rows = [("quantity", "found")]
    for name in ACCURACIES:
        if f"{name}_mean" not in reduced:
            continue
        label, mean, spread = name.replace("_", " "), reduced[f"{name}_mean"], reduced[f"{name}_std"]
        if (static := f"reference_{name}_mean") in reduced:
            words = f"{reduced[static]:.3f} ± {reduced[f'reference_{name}_std']:.3f} over seeds"
            rows.append((f"{label}, static loss", words))
        best = mean.where(mean == mean.max(), drop=True)
        where = {dim: best[dim].values[0] for dim in best.dims}
        place = ", ".join(f"{dim} {value}" for dim, value in where.items())
        rows.append((f"best {label}", f"{float(mean.max()):.3f} ± {float(spread.sel(where)):.3f} at {place}"))
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
