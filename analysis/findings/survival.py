"""What of a dynamical loss's effects a network shows, real or linearised."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis import cascades
from analysis.findings.diagrams import ACCURACIES, mean_error, paired_gain
from dlf.store.cells import DIVERGED

_EFFECTS = {
    "final_accuracy": "accuracy",
    "final_validation_accuracy": "validation",
    "unstable": "unstable",
    "instabilities": "onsets",
    "peak": "peak ηλ/2",
    "sharpness_change": "λ, change",
    "ntk_change": "NTK, change",
}
_CAPTION = (
    "mean ± standard error over {} seeds; unstable: part of the time in which F has not period 1; "
    "onsets: how often that begins; peak: largest after the first turn; changes: of mid-turn λ from the "
    "first to the last cycle, of the largest NTK eigenvalue over the run"
)
_SERIES = ("loss", "accuracy", "sharpness", "ntk_eigenvalues")


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put together what the figure shows.

    `effects` and `final_accuracies` of the sweep "main", with the series of its first seed; the latter of
    the sweep "easier" under `easier_`; and "measured".
    """
    main, easier = results["main"], final_accuracies(results["easier"].squeeze("num_turns", drop=True))
    found = main[[*_SERIES]].isel(seed=0, drop=True).merge(effects(main), combine_attrs="override")
    found = found.merge(final_accuracies(main)).merge(results["measured"], combine_attrs="override")
    return found.merge(easier.rename({name: f"easier_{name}" for name in easier}))


def effects(sweep: xr.Dataset) -> xr.Dataset:
    """Return what each cell shows beside its accuracies.

    What `instabilities` returns; while the loss of the dynamical twin moves, up to `stop_after`, `peak`, the
    largest sharpness measured after the first `turn`, in units of 2 / learning rate; over all steps
    `sharpness_change`, the mean mid-turn sharpness of the last cycle over that of the first, and
    `ntk_change`, the largest NTK eigenvalue at the end over that at the start. A diverged run does not count.
    """
    turn, cycle, stop_after = (sweep.attrs[name] for name in ("turn", "cycle", "stop_after"))
    num_classes, num_turns = cycle // turn, stop_after // cycle * cycle // turn
    middles = (turn * (np.arange(num_turns) + 0.5)).astype(int)
    sharpness = sweep["sharpness"].sel(stability_step=middles, method="nearest")
    first = sharpness.isel(stability_step=slice(num_classes)).mean("stability_step")
    last = sharpness.isel(stability_step=slice(-num_classes, None)).mean("stability_step")
    moving = sweep["stability_ratio"].sel(stability_step=slice(turn, stop_after - 1))
    ntk = sweep["ntk_eigenvalues"].isel(rank=0, drop=True)
    found = xr.Dataset(
        {
            "peak": moving.max("stability_step"),
            "sharpness_change": last / first,
            "ntk_change": ntk.isel(ntk_step=-1, drop=True) / ntk.isel(ntk_step=0, drop=True),
        }
    )
    return found.merge(instabilities(sweep)).where(sweep["status"] != DIVERGED)


def instabilities(sweep: xr.Dataset) -> xr.Dataset:
    """Return `instabilities`, how often F departs from period 1 up to `stop_after`, and `unstable`.

    The latter is the part of the time that departures take.
    """
    stop_after = sweep.attrs["stop_after"]
    dims, shape = sweep["status"].dims, sweep["status"].shape
    series = sweep["loss"].sel(step=slice(None, stop_after - 1)).transpose(*dims, "step")
    losses = series.values.reshape(-1, series.sizes["step"])
    weights = [None] * len(losses)
    if "class_weights" in sweep:  # with which catapults count, too
        moving_weights = sweep["class_weights"].sel(step=slice(None, stop_after - 1))
        weights = moving_weights.transpose(*dims, "step", "class").values.reshape(*losses.shape, -1)
    windows = [cascades.label(loss, weights=of) for loss, of in zip(losses, weights, strict=True)]
    away = [np.mean((w.labels != 1) & (w.labels != cascades.UNDEFINED)) for w in windows]
    return xr.Dataset(
        {
            "instabilities": (dims, np.reshape([len(cascades.find(w)) for w in windows], shape)),
            "unstable": (dims, np.reshape(away, shape)),
        }
    ).where(sweep["status"] != DIVERGED)


def final_accuracies(sweep: xr.Dataset) -> xr.Dataset:
    """Return `final_accuracy` and `final_validation_accuracy` of every cell, and what the loss gains.

    `<accuracy>_gain`, with `_gain_error`, is that over the static twin, amplitude 1, paired over seeds. A
    diverged run counts with the accuracy of guessing.
    """
    found = xr.Dataset()
    for name in ACCURACIES:
        last = {dim: -1 for dim in sweep[name].dims if dim.endswith("step")}
        final = sweep[name].isel(last, drop=True)
        final = final.where(sweep["status"] != DIVERGED, 1 / sweep.attrs["num_classes"])
        dynamical = final.sel(amplitude=final["amplitude"].max(), drop=True)
        gain = paired_gain(dynamical, final.sel(amplitude=1.0, drop=True))
        found[f"final_{name}"] = final
        found[f"{name}_gain"], found[f"{name}_gain_error"] = gain["gain"], gain["gain_error"]
    return found


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return tables of what both losses do, of what they do on the easier data, and of the closed form."""
    kinds = [(rate, kind) for rate in found["learning_rate"].values for kind in (False, True)]
    cells = [found.sel(learning_rate=rate, linearized=kind) for rate, kind in kinds]
    rows = [("", *(f"{'linearised' if kind else 'real'}\nη = {rate:g}" for rate, kind in kinds))]
    for variable, words in _EFFECTS.items():
        for loss, amplitude in ((f"{words}, static", 0), ("  dynamical", -1)):
            rows.append((loss, *(mean_in_words(cell[variable].isel(amplitude=amplitude)) for cell in cells)))
        if variable.startswith("final_"):
            rows.append(("  gain", *(_gain(cell, variable.removeprefix("final_")) for cell in cells)))
    easier = [("linearised, easier spiral", "static", "dynamical", "gain")]
    for name in ACCURACIES:
        both = (mean_in_words(found[f"easier_final_{name}"].isel(amplitude=a)) for a in (0, -1))
        easier.append((_EFFECTS[f"final_{name}"], *both, _gain(found, f"easier_{name}")))
    flow = [("closed form", "difference")]
    for rate in found["flow_rate"].values:
        flow.append((f"η = {rate:g}", f"{float(found['flow_difference'].sel(flow_rate=rate)):.1e}"))
    return {_CAPTION.format(found.sizes["seed"]): rows, "easier": easier, "static squared loss": flow}


def mean_in_words(values: xr.DataArray) -> str:
    """Return mean ± standard error over seeds.

    >>> mean_in_words(xr.DataArray([1.0, 2.0, np.nan], dims="seed"))
    '1.5 ± 0.5'
    """
    mean, error = mean_error(values)
    return f"{float(mean):.3g} ± {float(error):.1g}"


def _gain(cell: xr.Dataset, name: str) -> str:
    return f"{float(cell[f'{name}_gain']):+.3f} ± {float(cell[f'{name}_gain_error']):.1g}"
