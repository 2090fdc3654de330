"""Is a dynamical loss a larger learning rate? Shifts of accuracy over the rate, with intervals and controls.

The plan, with what counts as what, is that of experiments/configs/learning_rate_shift.py.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from analysis.findings import tuned_losses
from analysis.findings.diagrams import mean_error, paired_gain

LARGEST = 4.0  # shift that is looked for, and its inverse
_DRAWS = 1_000  # of a bootstrap
_LEVEL = 0.05


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps "main", "controls" and "sharpness" to what they show.

    Along `normalization` and `amplitude`: `accuracy` over `learning_rate` with `_error`, the share of `dead`
    runs with `_low` and `_high`; of the dynamical losses `shift` with `_low` and `_high`, the tuned
    difference `gain` with `_error`, `_p_value`, `_adjusted`, and `verdict`; `sharpness_ratio` with `_error`,
    and `law_holds`. Along `control`: `control_gain` with `_error` and `_p_value`, the difference to the
    dynamical loss of largest amplitude at the same rate, also of the static loss at s times the rate.
    """
    main = results["main"]
    found = xr.combine_nested(
        [_of_norm(main.sel(normalization=name)) for name in main["normalization"].values],
        xr.IndexVariable("normalization", main["normalization"].values),
        combine_attrs="drop",
    )
    found["gain_adjusted"] = _adjusted(found["gain_p_value"])
    found["verdict"] = _verdict(found)
    if "controls" in results:
        found = found.merge(_controls(results["controls"], main, found["shift"]))
    if "sharpness" in results:
        found = found.merge(_law(results["sharpness"], found))
    return found.assign_attrs(commit=main.attrs.get("commit", ""), num_seeds=main.sizes["seed"])


def _of_norm(sweep: xr.Dataset) -> xr.Dataset:
    parts = []
    for amplitude in sweep["amplitude"].values:
        pair = sweep.sel(amplitude=sorted({1.0, float(amplitude)}))
        over = tuned_losses.over_rates(pair).sel(amplitude=amplitude)
        part = over[["accuracy", "accuracy_error", "dead", "dead_low", "dead_high"]]
        if amplitude > 1:
            tuned = tuned_losses.tuned(pair)
            part = part.merge({name: tuned[f"tuned_{name}"] for name in ("gain", "gain_error")})
            part["gain_p_value"], part["equivalent"] = tuned["tuned_p_value"], tuned["tuned_equivalent"]
            part = part.merge(_intervals(pair))
        parts.append(part)
    return xr.concat(parts, "amplitude", join="outer", combine_attrs="drop", data_vars="all")


def _intervals(pair: xr.Dataset) -> xr.Dataset:
    """Return the shift of a dynamical loss, with its bootstrap interval over seeds."""
    live = pair["test_accuracy"].astype(float).where(~tuned_losses.is_dead(pair))
    static, dynamical = (live.isel(amplitude=of).transpose("learning_rate", "seed").values for of in (0, 1))
    x, rng = np.log(pair["learning_rate"].values), np.random.default_rng(0)
    drawn = [shift(x, static, dynamical)]
    for _ in range(_DRAWS):
        seeds = rng.integers(0, live.sizes["seed"], live.sizes["seed"])
        drawn.append(shift(x, static[:, seeds], dynamical[:, seeds]))
    low, high = (
        np.nanquantile(drawn[1:], (_LEVEL / 2, 1 - _LEVEL / 2)) if np.isfinite(drawn[0]) else [np.nan] * 2
    )
    return xr.Dataset({"shift": drawn[0], "shift_low": low, "shift_high": high})


def shift(
    log_rates: Float[np.ndarray, " rates"],
    static: Float[np.ndarray, "rates seeds"],
    dynamical: Float[np.ndarray, "rates seeds"],
) -> float:
    """Return by which factor the static loss needs a larger rate to be as accurate as a dynamical one.

        s = argmin sum_x (d(x) - c(x + log s))^2,   x = log eta up to the maximum of d

    c and d are mean accuracies over the seeds that live (not NaN), at rates where at least half of them do;
    c is linear in between, and at least three rates must lie within it. NaN where there are no three.

    >>> x, curve = np.log([0.1, 0.2, 0.4, 0.8, 1.6]), lambda x: 1 - np.exp(-2 * np.exp(x))[:, None]
    >>> round(shift(x, curve(x), curve(x + np.log(1.5))), 1)
    1.5
    """
    means, known = [], []
    for values in (static, dynamical):
        alive = np.isfinite(values)
        known.append(alive.mean(axis=1) >= 0.5)
        means.append(
            np.where(known[-1], np.nansum(values, axis=1) / np.maximum(alive.sum(axis=1), 1), -np.inf)
        )
    rising = known[1] & (np.arange(len(log_rates)) <= np.argmax(means[1]))
    x, d, c, at = log_rates[rising], means[1][rising], means[0][known[0]], log_rates[known[0]]
    best, least = np.nan, np.inf
    for moved in np.linspace(-np.log(LARGEST), np.log(LARGEST), 201):
        inside = (
            (x + moved >= at[0] - 1e-9) & (x + moved <= at[-1] + 1e-9) if len(at) else np.zeros(len(x), bool)
        )
        if inside.sum() >= 3:
            apart = np.mean((d[inside] - np.interp(x[inside] + moved, at, c)) ** 2)
            best, least = (moved, apart) if apart < least else (best, least)
    return float(np.exp(best))


def _living(log_rates, values):
    """Return the means over those that live, and the rates, where at least half of them do."""
    alive = np.isfinite(values)
    known = alive.mean(axis=1) >= 0.5
    return np.nanmean(values[known], axis=1), log_rates[known]


def _adjusted(p_values: xr.DataArray) -> xr.DataArray:
    adjusted, tested = p_values.copy(), p_values.notnull().values
    adjusted.values[tested] = stats.false_discovery_control(p_values.values[tested])
    return adjusted


def _verdict(found: xr.Dataset) -> xr.DataArray:
    """Return 1 for a gain, 2 for a loss, 3 for no effect by equivalence, 0 for an open question."""
    is_real = found["gain_adjusted"] <= _LEVEL
    sign = xr.where(found["gain"] > 0, 1, 2)
    return xr.where(is_real, sign, xr.where(found["equivalent"].fillna(0).astype(bool), 3, 0))


def _controls(controls: xr.Dataset, main: xr.Dataset, shifts: xr.DataArray) -> xr.Dataset:
    """Return what each control gains over the dynamical loss of the largest amplitude at the same rate."""
    most = float(main["amplitude"].max())
    of = {name: controls[name] for name in ("normalization", "learning_rate", "seed")}
    live = main["test_accuracy"].astype(float).where(~tuned_losses.is_dead(main))
    dynamical = live.sel(amplitude=most, drop=True).sel(of)
    others = controls["test_accuracy"].astype(float).where(~tuned_losses.is_dead(controls))
    x, parts = np.log(main["learning_rate"].values), [others]
    at = np.log(
        of["learning_rate"] * shifts.sel(amplitude=most, normalization=of["normalization"], drop=True)
    )
    static = live.sel(amplitude=1.0, normalization=of["normalization"], drop=True)

    def read(curve, wanted):
        known = np.isfinite(curve)
        return np.interp(wanted, x[known], curve[known], left=np.nan, right=np.nan) if known.any() else np.nan

    moved = xr.apply_ufunc(
        read, static.rename(learning_rate="from"), at, input_core_dims=[["from"], []], vectorize=True
    )
    parts.append(moved.expand_dims(control=["static at s eta"]).transpose(*others.dims))
    values = xr.concat(parts, "control")
    gain = paired_gain(values, dynamical, alternative="two-sided")
    return gain.rename({name: f"control_{name}" for name in gain}).rename(learning_rate="controlled_rate")


def _law(sharpness: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """Return the largest sharpness over that of the static loss, geometric mean over seeds."""
    values = sharpness["hessian_eigenvalues"].isel(rank=0)
    largest = values.max("hessian_step")
    logs = np.log(largest / largest.sel(amplitude=1.0))
    mean, error = mean_error(logs)
    ratio = np.exp(mean)
    holds = (found["shift_low"] <= ratio) & (ratio <= found["shift_high"])
    return xr.Dataset({"sharpness_ratio": ratio, "sharpness_ratio_error": ratio * error, "law_holds": holds})


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the shifts and gains, and the controls, as tables."""
    rows = [("normalization", "A", "shift s", "sharpness ratio", "tuned gain, points", "p", "dynamical is")]
    for name in found["normalization"].values:
        for amplitude in found["amplitude"].values[1:]:
            cell = found.sel(normalization=name, amplitude=amplitude)
            number = {key: float(cell[key]) for key in cell if cell[key].ndim == 0}
            ratio = ""
            if "sharpness_ratio" in number:
                ratio = f"{number['sharpness_ratio']:.2f} ± {number['sharpness_ratio_error']:.2f}"
            rows.append(
                (
                    str(name),
                    f"{amplitude:g}",
                    f"{number['shift']:.2f}, {number['shift_low']:.2f} to {number['shift_high']:.2f}",
                    ratio,
                    f"{100 * number['gain']:+.1f} ± {100 * number['gain_error']:.1f}",
                    f"{number['gain_adjusted']:.2g}",
                    tuned_losses.VERDICTS[int(number["verdict"])],
                )
            )
    tables = {"shifts": rows}
    if "control_gain" in found:
        rates = found["controlled_rate"].values
        tables["controls"] = [("control minus dynamical, points", *(f"η = {rate:.3g}" for rate in rates))]
        for name in found["control_gain"]["normalization"].values:
            for control in found["control"].values:
                cells = found.sel(normalization=name, control=control)
                words = (
                    f"{100 * float(gain):+.1f} ± {100 * float(error):.1f}" if np.isfinite(gain) else ""
                    for gain, error in zip(cells["control_gain"], cells["control_gain_error"], strict=True)
                )
                tables["controls"].append((f"{name}: {control}", *words))
    return tables
