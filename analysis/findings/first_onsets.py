"""At which sharpness the runs of a sweep first become unstable."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis import cascades
from analysis.findings.diagrams import mean_error

_CALM = 8  # windows of period 1 before an instability that counts


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the sharpness at the first onset of every cell of "main", in nat: NaN where there is none.

    An instability counts if it breaks at least eight windows of period 1 and the sharpness was below the
    threshold at the last measurement before: not one into which the first parameters were drawn. The
    sharpness is extrapolated from the last two measurements up to the onset: a burst may have begun before
    the next one. `ratio`, with `ratio_error`, is the mean over seeds in units of 2 / learning rate;
    `least_ratio` and `largest_ratio` are its extremes, where more than one seed became unstable.
    """
    sweep = results["main"]
    onset, sharpness = np.full((2, *sweep["status"].shape), np.nan)
    steps = sweep["stability_step"].values
    for cell in np.ndindex(onset.shape):
        loss, measured = sweep["loss"].values[cell], sweep["sharpness"].values[cell]
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
    found = xr.Dataset(
        {"sharpness": (dims, sharpness, {"units": "nat"}), "onset": (dims, onset, {"units": "step"})},
        {dim: sweep[dim] for dim in dims},
    )
    found["ratio"], found["ratio_error"] = mean_error(found["sharpness"] * found["learning_rate"] / 2)
    several = found["ratio"].where(found["sharpness"].count("seed") > 1)
    return found.assign(least_ratio=several.min(), largest_ratio=several.max())


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return ηλ/2 at the onset: mean ± standard error (number of seeds with an instability)."""
    rows = [("width", *(f"η = {rate:g}" for rate in found["learning_rate"].values))]
    for width in found["width"].values:
        cells, words = found.sel(width=width), [f"{width:g}"]
        for rate in cells["learning_rate"].values:
            cell = cells.sel(learning_rate=rate)
            num = int(cell["sharpness"].count())
            error = f" ± {float(cell['ratio_error']):.3f}" if num > 1 else ""
            words.append(f"{float(cell['ratio']):.3f}{error} ({num})" if num else "none")
        rows.append(tuple(words))
    return {"ηλ/2 at the first onset": rows}
