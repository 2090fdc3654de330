"""From the runs to one data set of all that the figures of the cascades show."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from rich.table import Table

from analysis import cascades, stability, tracking
from dlf import schedules
from experiments.cascades.second_pass import measure_windows

HORIZONS = (500, 1_500, 2_500)  # steps, of a forecast whose error is told


def steps_per_class(config: ConfigDict) -> int:
    """Return the number of steps in which one class is emphasised."""
    return config.schedule.period + int(config.schedule.hold_step)


def threshold(config: ConfigDict) -> float:
    """Return the threshold of the run's optimizer, in nat."""
    return float(stability.threshold(**config.optimizer))


def label(run: xr.Dataset) -> cascades.Windows:
    """Label the windows of a run's loss, with its exponent."""
    return cascades.label(run["loss"].values, run["log_growth"].values[:, 0])


def second_pass(config: ConfigDict, workdir: Path, windows: cascades.Windows) -> xr.Dataset:
    """Measure the onset of every instability of a run at every step.

    From one window before it to two after its growth; an empty data set without any instability.
    """
    width = int(windows.first_step[1])
    spans = []
    for part in cascades.find(windows):
        start, growth = int(windows.first_step[part.start]), windows.labels[part] == cascades.GROWING
        num_growing = len(growth) if growth.all() else int(np.argmin(growth))
        spans.append((max(start - width, 0), start + (num_growing + 2) * width))
    return measure_windows(config, workdir, spans) if spans else xr.Dataset(coords={"step": np.arange(0)})


def instabilities(
    config: ConfigDict, run: xr.Dataset, windows: cascades.Windows, fine: xr.Dataset
) -> list[cascades.Instability]:
    """Return the table of instabilities of a run."""
    empty = xr.DataArray(np.zeros(0), [("step", np.arange(0))])
    optimizer = dict(config.optimizer)
    rate = optimizer.pop("learning_rate")
    return cascades.table(
        run,
        windows,
        fine["tracked_eigenvalues"].sel(rank=0) if len(fine["step"]) else empty,
        threshold=threshold(config),
        steps_per_class=steps_per_class(config),
        learning_rate=rate if optimizer == {"name": "sgd"} else None,
    )


def forecasts(config: ConfigDict, run: xr.Dataset) -> xr.Dataset:
    """Forecast the sharpness from every step where that was prepared, up to the end of the cycle.

    `forecast` [forecast_step, tracker_step] holds NaN outside of the rest of the cycle, one turn of all
    classes; `two_steps` the sharpness that was measured.
    """
    settings = {key: value for key, value in config.schedule.items() if key != "name"}
    num_classes = config.dataset.num_classes
    schedule = getattr(schedules, config.schedule.name)(num_classes=num_classes, **settings)
    schedule = schedules.stop_after(schedule, config.stop_after)
    steps = run["tracker_step"].values
    weights = np.asarray(jax.vmap(schedule)(jnp.asarray(steps, jnp.zeros((), jnp.int32).dtype)))
    cycle = num_classes * steps_per_class(config)
    found = np.full((run.sizes["forecast_step"], len(steps)), np.nan)
    for row, (start, matrices) in enumerate(
        zip(run["forecast_step"].values, run["forecast_matrices"].values, strict=True)
    ):
        due = (steps >= start) & (steps < (start // cycle + 1) * cycle)
        found[row, due] = tracking.forecast(matrices, weights[due])
    coordinates = {"forecast_step": run["forecast_step"].values, "tracker_step": steps}
    return xr.Dataset({"forecast": (("forecast_step", "tracker_step"), found, {"units": "nat"})}, coordinates)


def forecast_errors(run: xr.Dataset, windows: cascades.Windows, forecast: xr.DataArray) -> dict[int, Any]:
    """Return the median of |log(forecast / measured)| at each horizon, and from how many forecasts.

    Only steps in windows of period 1 count, in which the sharpness does not alternate.
    """
    width = int(windows.first_step[1])
    steps = run["tracker_step"].values
    quiet = windows.labels[np.minimum(steps // width, len(windows.labels) - 1)] == 1
    measured = run["tracked_eigenvalues"].sel(rank=0).values
    found = {}
    for horizon in HORIZONS:
        errors = []
        for start, row in zip(forecast["forecast_step"].values, forecast.values, strict=True):
            at = np.flatnonzero((steps >= start + horizon) & quiet & np.isfinite(row))[:1]
            if len(at) and steps[at[0]] < start + horizon + 100:
                errors.append(abs(np.log(row[at[0]] / measured[at[0]])))
        found[horizon] = (float(np.median(errors)) if errors else np.nan, len(errors))
    return found


def labelled(config: ConfigDict, run: xr.Dataset) -> xr.Dataset:
    """Return the series of a run that every figure shows, with the label of each window."""
    windows = label(run)
    found = run[["loss", "accuracy", "tracked_eigenvalues"]]
    found["label"] = ("window_step", windows.labels)
    found = found.assign_coords(window_step=("window_step", windows.first_step, {"units": "step"}))
    return found.assign_attrs(
        config=config.to_json(), threshold=threshold(config), steps_per_class=steps_per_class(config)
    )


def everything(
    config: ConfigDict, run: xr.Dataset, windows: cascades.Windows, rows: list[cascades.Instability]
) -> xr.Dataset:
    """Put together what the figures of one run show."""
    found = labelled(config, run).merge(run[["loss_moved", "network_moved", "split_valid"]])
    found = found.merge(forecasts(config, run), combine_attrs="override")
    found["exponent"] = ("window_step", windows.exponent, {"units": "nat/step"})
    found["exponent_error"] = ("window_step", windows.exponent_error, {"units": "nat/step"})
    found["onset"] = ("instability", np.array([row.onset for row in rows], int), {"units": "step"})
    return found


def summary(run: xr.Dataset, windows: cascades.Windows, found: xr.Dataset, rates: xr.Dataset) -> Table:
    """Lay out how good the measurements are: tracker, split, forecasts, thresholds."""
    layout = Table("quantity", "found")
    audits = run["tracked_audit"].values[np.isfinite(run["tracked_audit"].values)]
    if len(audits):
        layout.add_row("audits of the tracker", f"{len(audits)}, at most {audits.max():.0e} above warm")
    layout.add_row("Hessian products a measurement", f"{run['tracked_matvecs'].mean():.1f}")
    layout.add_row("converged measurements", f"{run['tracked_converged'].mean():.1%}")
    layout.add_row("first eigenvalue: split valid", f"{run['split_valid'].sel(rank=0).mean():.0%}")
    for horizon, (error, num) in forecast_errors(run, windows, found["forecast"]).items():
        if num:
            text = f"{error:.0%} in the median of {num}"
            layout.add_row(f"forecast {horizon:,} steps ahead is off by", text)
    ratio = rates["sharpness"] * rates["learning_rate"] / 2
    if ratio.notnull().any():
        per_width = ratio.mean(["learning_rate", "seed"]).values
        layout.add_row(
            "eta lambda / 2 at the onset, all cells", f"{float(ratio.mean()):.3f} +- {float(ratio.std()):.3f}"
        )
        pairs = zip(rates["width"].values, per_width, strict=True)
        layout.add_row("by width", ", ".join(f"{width:g}: {value:.3f}" for width, value in pairs))
    return layout


def rates(sweep: xr.Dataset) -> xr.Dataset:
    """Return the sharpness at the first onset of every cell, in nat: NaN where there is none.

    An instability counts if the sharpness was below the threshold at the last measurement before its first
    window, so not one into which the first parameters were drawn. The sharpness is extrapolated from the last
    two measurements up to the onset: a burst may have begun before the next one.
    """
    onset = np.full(sweep["status"].shape, np.nan)
    sharpness = np.full(sweep["status"].shape, np.nan)
    steps = sweep["stability_step"].values
    for cell in np.ndindex(onset.shape):
        loss = sweep["loss"].values[cell]
        measured = sweep["sharpness"].values[cell]
        if np.isfinite(loss).all() and np.isfinite(measured).all():
            ratio = sweep["stability_ratio"].values[cell]
            windows = cascades.label(loss)
            for part, step in zip(cascades.find(windows), cascades.onsets(loss, windows), strict=True):
                before = np.flatnonzero(steps < windows.first_step[part.start])
                if len(before) and ratio[before[-1]] < 1:
                    last = max(int(np.searchsorted(steps, step, side="right")) - 1, 1)
                    slope = (measured[last] - measured[last - 1]) / (steps[last] - steps[last - 1])
                    sharpness[cell] = measured[last] + slope * (step - steps[last])
                    onset[cell] = step
                    break
    dims = sweep["status"].dims
    return xr.Dataset(
        {"sharpness": (dims, sharpness, {"units": "nat"}), "onset": (dims, onset, {"units": "step"})},
        {dim: sweep[dim] for dim in dims},
    )
