"""When a run becomes unstable, at which sharpness, and how far ahead that could be seen."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis import cascades, tracking

_HORIZONS = (500, 1_500, 2_500)  # steps, of a forecast whose error is told
_SERIES = ("loss", "accuracy", "sharpness", "tracked_eigenvalues")
_TRACKED = (
    "loss_moved", "network_moved", "split_valid", "tracked_audit", "tracked_matvecs", "tracked_converged"
)  # fmt: skip


def label(run: xr.Dataset) -> cascades.Windows:
    """Label the windows of a run's loss, with its exponent and its weights."""
    exponent, weights = run["log_growth"].values[:, 0], run["class_weights"].values
    return cascades.label(run["loss"].values, exponent, weights=weights)


def spans(run: xr.Dataset) -> list[tuple[int, int]]:
    """Return the steps [start, stop) about every onset: one window before its growth to two after it."""
    windows, found = label(run), []
    for part in cascades.find(windows):
        first = cascades.onset_windows(windows, part)
        edges = first.start - 1, first.stop + 2
        start, stop = (int(windows.first_step[0]) + windows.width * edge for edge in edges)
        found.append((max(start, 0), min(stop, run.sizes["step"])))
    return found


def instabilities(run: xr.Dataset, fine: xr.Dataset) -> list[cascades.Instability]:
    """Return the instabilities of a run; `fine` has the eigenvalues about its onsets at every step."""
    unknown = xr.DataArray(np.zeros(0), [("step", np.zeros(0, int))])
    return cascades.table(
        run,
        label(run),
        fine["tracked_eigenvalues"].sel(rank=0) if "tracked_eigenvalues" in fine else unknown,
        threshold=run.attrs["threshold"] if "threshold" in run.attrs else run["threshold"].values,
        steps_per_turn=run.attrs["turn"],
        learning_rate=run.attrs.get("learning_rate"),
    )


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put together what is read out of a run that becomes unstable.

    `results` holds "run", with `turn` (steps), `threshold` (nat) and, of plain gradient descent,
    `learning_rate` as attributes, "measured", the eigenvalues about the onsets at every step, and, if there
    is one, "static", the twin under the static loss. The result has the series of the run, and under
    `reference_` those of its twin; `label` and `exponent` of each window; `forecast` (see `forecasts`); and
    the fields of `cascades.Instability` under `instability_`.
    """
    run = results["run"]
    rows, windows = instabilities(run, results["measured"]), label(run)
    moving = [] if "threshold" in run.attrs else ["threshold"]
    found = run[[*_SERIES, *_TRACKED, *moving]].assign(forecast=forecasts(run), num_instabilities=len(rows))
    for name in ("exponent", "exponent_error"):
        found[name] = ("window_step", getattr(windows, name), {"units": "nat/step"})
    found["label"] = ("window_step", windows.labels)
    if "static" in results:
        twin = results["static"][[*_SERIES]].assign(label=("window_step", label(results["static"]).labels))
        twin = twin.rename({name: f"reference_{name}" for name in twin})
        found = found.merge(twin, combine_attrs="override")
    for name in cascades.Instability._fields:
        found[f"instability_{name}"] = ("instability", np.array([getattr(row, name) for row in rows]))
    found = found.assign_coords(window_step=("window_step", windows.first_step, {"units": "step"}))
    return found.assign_coords(instability=np.arange(len(rows))).assign_attrs(window=windows.width)


def forecasts(run: xr.Dataset) -> xr.DataArray:
    """Forecast the sharpness from every step where that was prepared, up to the end of the cycle.

    [forecast_step, tracker_step] in nat, NaN outside of the rest of the cycle, one turn of all classes.
    """
    steps, starts = run["tracker_step"].values, run["forecast_step"].values
    weights = run["class_weights"].sel(step=steps).values
    cycle = run.attrs["cycle"]
    found = np.full((len(starts), len(steps)), np.nan)
    for row, start, matrices in zip(found, starts, run["forecast_matrices"].values, strict=True):
        due = (steps >= start) & (steps < (start // cycle + 1) * cycle)
        row[due] = tracking.forecast(matrices, weights[due])
    coordinates = {"forecast_step": starts, "tracker_step": steps}
    return xr.DataArray(found, coordinates, ("forecast_step", "tracker_step"), attrs={"units": "nat"})


def forecast_errors(found: xr.Dataset) -> dict[int, tuple[float, int]]:
    """Return the median of |log(forecast / measured)| at each horizon, and from how many forecasts.

    Only steps in windows of period 1 count, in which the sharpness does not alternate.
    """
    steps, labels = found["tracker_step"].values, found["label"].values
    quiet = labels[np.minimum(steps // found.attrs["window"], len(labels) - 1)] == 1
    measured = found["tracked_eigenvalues"].sel(rank=0).values
    medians = {}
    for horizon in _HORIZONS:
        errors = []
        for start, row in zip(found["forecast_step"].values, found["forecast"].values, strict=True):
            at = np.flatnonzero((steps >= start + horizon) & quiet & np.isfinite(row))[:1]
            if len(at) and steps[at[0]] < start + horizon + 100:
                errors.append(abs(np.log(row[at[0]] / measured[at[0]])))
        medians[horizon] = (float(np.median(errors)) if errors else np.nan, len(errors))
    return medians


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the table of instabilities, and how good the measurements are.

    1 %: step at which the alternation is so much of the loss; λ in nat, mean of two steps at the onset;
    above: first step at which it exceeds the threshold; growth and budget in nat; NTK: change of its largest
    eigenvalue.
    """
    heads = (
        "onset", "1 %", "end", "class", "phase", "λ", "above", "deepest", "growth", "budget", "NTK",
        "accuracy"
    )  # fmt: skip
    rows, columns = [heads], [found[f"instability_{name}"].values for name in cascades.Instability._fields]
    for row in map(cascades.Instability, *columns):
        emphasised = "all" if row.emphasised < 0 else str(row.emphasised)
        visible, crossing = (f"{at:,}" if at >= 0 else "never" for at in (row.visible, row.crossing))
        rows.append((
            f"{row.onset:,}", visible, f"{row.end:,}", emphasised, f"{row.phase:.2f}", f"{row.sharpness:.3g}",
            crossing, str(row.deepest), f"{row.growth:.1f}", f"{row.budget:.1f}",
            f"{-row.ntk_drop:+.0%}", f"{row.accuracy_before:.2f} → {row.accuracy_after:.2f}",
        ))  # fmt: skip
    quality = [("quantity", "found")]
    audits = found["tracked_audit"].values[np.isfinite(found["tracked_audit"].values)]
    if len(audits):
        worst = f"{len(audits)}, cold and warm differ by at most {np.abs(audits).max():.0e}"
        quality.append(("audits of the tracker", worst))
    quality += [
        ("Hessian products a measurement", f"{found['tracked_matvecs'].mean():.1f}"),
        ("converged measurements", f"{found['tracked_converged'].mean():.1%}"),
        ("first eigenvalue: split valid", f"{found['split_valid'].sel(rank=0).mean():.0%}"),
    ]
    for horizon, (error, num) in forecast_errors(found).items():
        if num:
            words = f"forecast {horizon:,} steps ahead is off by"
            quality.append((words, f"{error:.0%} in the median of {num}"))
    number = f"{found.attrs['threshold']:.4g} nat" if "threshold" in found.attrs else "moves"
    threshold = f"threshold {number}" if len(rows) > 1 else "none"
    return {f"instabilities: {threshold}": rows, "measurements": quality}
