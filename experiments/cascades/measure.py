"""From the runs to one data set of all that the figures of the cascades show."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from rich.table import Table

from analysis import cascades, stability, tracking
from dlf import schedules

_CALM = 8  # windows of period 1 before an instability that counts
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


def onset_spans(windows: cascades.Windows, num_steps: int) -> list[tuple[int, int]]:
    """Return the steps [start, stop) about every onset: one window before its growth to two after it."""
    spans = []
    for part in cascades.find(windows):
        first = cascades.onset_windows(windows, part)
        start, stop = (
            int(windows.first_step[0]) + windows.width * i for i in (first.start - 1, first.stop + 2)
        )
        spans.append((max(start, 0), min(stop, num_steps)))
    return spans


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
    steps = run["tracker_step"].values
    quiet = windows.labels[np.minimum(steps // windows.width, len(windows.labels) - 1)] == 1
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
    found = run[["loss", "accuracy", "sharpness", "tracked_eigenvalues"]]
    found["label"] = ("window_step", windows.labels)
    found = found.assign_coords(window_step=("window_step", windows.first_step, {"units": "step"}))
    return found.assign_attrs(
        config=config.to_json(),
        threshold=threshold(config),
        steps_per_class=steps_per_class(config),
        window=windows.width,
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
    """Lay out how good the measurements are: tracker, split, forecasts, and the thresholds.

    ηλ/2 stands for each learning rate in turn: mean ± standard error (number of seeds with an instability).
    """
    layout = Table("quantity", "found")
    audits = run["tracked_audit"].values[np.isfinite(run["tracked_audit"].values)]
    if len(audits):
        worst = np.abs(audits).max()
        layout.add_row("audits of the tracker", f"{len(audits)}, cold and warm differ by at most {worst:.0e}")
    layout.add_row("Hessian products a measurement", f"{run['tracked_matvecs'].mean():.1f}")
    layout.add_row("converged measurements", f"{run['tracked_converged'].mean():.1%}")
    layout.add_row("first eigenvalue: split valid", f"{run['split_valid'].sel(rank=0).mean():.0%}")
    for horizon, (error, num) in forecast_errors(run, windows, found["forecast"]).items():
        if num:
            text = f"{error:.0%} in the median of {num}"
            layout.add_row(f"forecast {horizon:,} steps ahead is off by", text)
    ratio = rates["sharpness"] * rates["learning_rate"] / 2
    for width in rates["width"].values:
        cells = ratio.sel(width=width)
        num = cells.notnull().sum("seed")
        error = cells.std("seed", ddof=1) / np.sqrt(num)
        texts = [
            f"{float(mean):.3f} ± {float(e):.3f} ({int(n)})"
            if n > 1
            else "none"
            if n == 0
            else f"{float(mean):.3f} (1)"
            for mean, e, n in zip(cells.mean("seed"), error, num, strict=True)
        ]
        layout.add_row(f"ηλ/2 at the onset, width {width:g}", "; ".join(texts))
    return layout


def rates(sweep: xr.Dataset) -> xr.Dataset:
    """Return the sharpness at the first onset of every cell, in nat: NaN where there is none.

    An instability counts if it breaks at least eight windows of period 1 and the sharpness was below the
    threshold at the last measurement before: not one into which the first parameters were drawn. The
    sharpness is extrapolated from the last two measurements up to the onset: a burst may have begun before
    the next one.
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
                calm = windows.labels[max(part.start - _CALM, 0) : part.start]
                if len(calm) == _CALM and (calm == 1).all() and ratio[before[-1]] < 1:
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
