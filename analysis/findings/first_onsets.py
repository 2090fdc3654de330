"""At which sharpness the runs of a sweep first become unstable."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis import cascades
from analysis.findings.diagrams import mean_error
from analysis.stability import threshold

_CALM = 8  # windows of period 1 before an instability that counts
_SERIES = ("loss", "sharpness", "stability_ratio")
_KINDS = {  # prefix of the variables: title of the table
    "": "ηλ/2 where the alternation is ten times what it was",
    "visible_": "ηλ/2 where the alternation is 1 % of the loss",
}


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the sharpness at the first onset of every cell of "main", in nat: NaN where there is none.

    An instability counts if it breaks at least eight windows of period 1 and the sharpness was below the
    threshold at the last measurement before: not one into which the first parameters were drawn. The
    sharpness is extrapolated from the last two measurements before the onset: a burst may have begun before
    the next one. `visible_onset` and `visible_sharpness` are those where the alternation of the first such
    instability that comes so far is a hundredth of the loss: unlike the onset that does not depend on
    rounding, but there the sharpness alternates, too, of which a measurement is one branch. `ratio` and
    `visible_ratio`, with `_error`, are the means over seeds in units of 2 / learning rate, `least_` and
    `largest_` their extremes, where more than one seed became unstable.
    """
    sweep = results["main"]
    dims, shape = sweep["status"].dims, sweep["status"].shape
    found = {name: np.full((2, *shape), np.nan) for name in _KINDS}
    for cell in np.ndindex(shape):
        of = {name: sweep[name].values[cell] for name in (*_SERIES, "class_weights") if name in sweep}
        if all(np.isfinite(of[name]).all() for name in ("loss", "sharpness")):
            for kind, found_there in zip(_KINDS, _first(of, sweep["stability_step"].values), strict=True):
                found[kind][(slice(None), *cell)] = found_there
    reduced = xr.Dataset(coords={dim: sweep[dim] for dim in dims})
    for kind, (onset, sharpness) in found.items():
        reduced[f"{kind}onset"] = dims, onset, {"units": "step"}
        reduced[f"{kind}sharpness"] = dims, sharpness, {"units": "nat"}
        in_units = reduced[f"{kind}sharpness"] * reduced["learning_rate"] / threshold("sgd", 1.0)
        ratio, error = mean_error(in_units)
        several = ratio.where(in_units.count("seed") > 1)
        reduced[f"{kind}ratio"], reduced[f"{kind}ratio_error"] = ratio, error
        reduced[f"least_{kind}ratio"], reduced[f"largest_{kind}ratio"] = several.min(), several.max()
    return reduced


def _first(of, steps):
    """Return onset and sharpness of the first instability that counts, and of the first that is visible."""
    windows = cascades.label(of["loss"], weights=of.get("class_weights"))
    at = [cascades.onsets(of["loss"], windows), cascades.visible_onsets(of["loss"], windows)]
    found = np.full((2, 2), np.nan)
    for part, *onsets in zip(cascades.find(windows), *at, strict=True):
        before = np.flatnonzero(steps < windows.first_step[part.start])
        calm = windows.labels[max(part.start - _CALM, 0) : part.start]
        if len(calm) == _CALM and (calm == 1).all() and of["stability_ratio"][before[-1]] < 1:
            for row, step in zip(found, onsets, strict=True):
                if step >= 0 and np.isnan(row[0]):
                    row[:] = step, _extrapolated(steps, of["sharpness"], step)
    return found


def _extrapolated(steps, measured, step):
    last = max(int(np.searchsorted(steps, step)) - 1, 1)  # that at the onset may be in a burst
    slope = (measured[last] - measured[last - 1]) / (steps[last] - steps[last - 1])
    return measured[last] + slope * (step - steps[last])


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return ηλ/2 at the onsets: mean ± standard error (number of seeds with an instability)."""
    tables = {}
    for kind, title in _KINDS.items():
        rows = [("width", *(f"η = {rate:g}" for rate in found["learning_rate"].values))]
        for width in found["width"].values:
            cells, words = found.sel(width=width), [f"{width:g}"]
            for rate in cells["learning_rate"].values:
                cell = cells.sel(learning_rate=rate)
                num = int(cell[f"{kind}sharpness"].count())
                error = f" ± {float(cell[f'{kind}ratio_error']):.3f}" if num > 1 else ""
                words.append(f"{float(cell[f'{kind}ratio']):.3f}{error} ({num})" if num else "none")
            rows.append(tuple(words))
        tables[title] = rows
    return tables
