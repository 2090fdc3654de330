"""Is a dynamical loss a larger learning rate? Shifts of accuracy over the rate, with intervals and controls.

The plan, with what counts as what, is that of experiments/configs/learning_rate_shift.py.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from analysis.findings import tuned_losses
from analysis.findings.diagrams import mean_error
from dlf.store.cells import DIVERGED

LARGEST = 4.0  # of the shifts of flanks that are looked for, and its inverse
DRAWS = 1_000  # of a bootstrap
_LEVEL = 0.05


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps "main", "controls" and "sharpness" to what they show.

    Along `normalization` and `amplitude`: `accuracy` over `learning_rate` with `_error`, the share of `dead`
    runs with `_low` and `_high`; of the dynamical losses `shift` and `gain`, how much smaller the rate of
    their peak is than the static one's and how much higher the peak, and `flank`, each with `_low` and
    `_high`; of the gain `_error`, `_p_value`, `_adjusted`, and `verdict`; `sharpness_ratio` with `_error`,
    and `law_holds`, NaN where the shift is open. Along `control`: `control_gain` with `_error`, the
    difference to the dynamical loss of largest amplitude at the same rate, also of the static loss at s times
    the rate.
    """
    main = results["main"]
    of_norms = {name: _of_norm(main.sel(normalization=name)) for name in main["normalization"].values}
    found = tuned_losses.joined(of_norms, "normalization")
    found["gain_adjusted"] = tuned_losses.adjusted(found["gain_p_value"])
    found["verdict"] = _verdict(found)
    if "controls" in results:
        found = found.merge(_controls(results["controls"], main, found["shift"]), join="left")
    if "sharpness" in results:
        found = found.assign(_law(results["sharpness"], found))
    return found.assign_attrs(commit=main.attrs.get("commit", ""), num_seeds=main.sizes["seed"])


def _of_norm(sweep: xr.Dataset) -> xr.Dataset:
    sweep, parts = sweep.drop_vars("normalization"), {}
    for amplitude in sweep["amplitude"].values:
        pair = sweep.sel(amplitude=sorted({1.0, float(amplitude)}))
        part = tuned_losses.over_rates(pair)[["accuracy", "accuracy_error", "dead", "dead_low", "dead_high"]]
        part = part.sel(amplitude=amplitude, drop=True)
        if amplitude > 1:
            part = part.assign(_effects(pair))
        parts[float(amplitude)] = part
    return tuned_losses.joined(parts, "amplitude")


def _effects(pair: xr.Dataset) -> xr.Dataset:
    """Return shift and difference of the peaks of a dynamical loss, with bootstraps of both over seeds."""
    found = {}
    for name, draws in zip(("shift", "gain", "flank"), drawn(pair), strict=True):
        low, within, high, error = interval(draws[1:])
        found |= {name: draws[0], f"{name}_low": low, f"{name}_high": high}
        if name == "gain":
            found |= _tested(draws[0], within, error)
    return xr.Dataset(found)


def drawn(pair: xr.Dataset) -> Float[np.ndarray, "3 draws"]:
    """Return shift, gain and flank of a static and a dynamical loss: those found, then of each draw of seeds.

    The draws of two pairs with as many seeds are of the same seeds, so that their difference is one in pairs.
    """
    dead = tuned_losses.is_dead(pair)
    live = [pair[f"{name}_accuracy"].astype(float).where(~dead) for name in ("validation", "test")]
    of_seeds = [of.transpose("amplitude", "learning_rate", "seed").values for of in live]
    x, rng, found = np.log(pair["learning_rate"].values), np.random.default_rng(0), []
    every = np.arange(pair.sizes["seed"])
    for draw in range(1 + DRAWS):
        seeds = rng.choice(every, every.size) if draw else every
        validation, test = (values[..., seeds] for values in of_seeds)
        (static, dynamical) = (peak(x, *of) for of in zip(validation, test, strict=True))
        found.append((np.exp(static[0] - dynamical[0]), dynamical[1] - static[1], flank(x, *test)))
    return np.asarray(found).T


def _tested(gain, within, error):
    p_value = 2 * stats.norm.sf(abs(gain) / error) if error > 0 else np.nan
    return {
        "gain_error": error,
        "gain_p_value": p_value,
        "equivalent": float(within <= tuned_losses.EQUIVALENT),
    }


def interval(draws: Float[np.ndarray, " draws"]) -> tuple[float, float, float, float]:
    """Return lower end of the 95 % interval, largest modulus in the 90 % one, upper end, standard error."""
    draws = draws[np.isfinite(draws)]
    if len(draws) <= DRAWS / 2:
        return (np.nan,) * 4
    low, *inner, high = np.quantile(draws, (_LEVEL / 2, _LEVEL, 1 - _LEVEL, 1 - _LEVEL / 2))
    return low, np.abs(inner).max(), high, draws.std(ddof=1)


def peak(
    log_rates: Float[np.ndarray, " rates"],
    validation: Float[np.ndarray, "rates seeds"],
    test: Float[np.ndarray, "rates seeds"],
) -> tuple[float, float]:
    """Return log eta at which the validation accuracy is largest, and the test accuracy there.

    Both are means over the seeds that live (not NaN), at rates where at least half of them do, with parabolas
    through the best rate and its neighbours, so that a grid of rates need not hit a maximum. The place is NaN
    where the best rate is the first or the last of these, and the maximum may lie beyond.

    >>> x = np.log([0.1, 0.2, 0.4])
    >>> curve = 0.9 - (x - np.log(0.25))[:, None] ** 2
    >>> [round(of, 4) for of in peak(x, curve, curve)] == [round(np.log(0.25), 4), 0.9]
    True
    """
    (v, x), (t, _) = (_living(log_rates, values) for values in (validation, test))
    if not len(x):
        return np.nan, np.nan
    best = int(np.argmax(v))
    if not 0 < best < len(x) - 1:
        return np.nan, float(t[best])
    around = slice(best - 1, best + 2)
    (a, b, _), height = (np.polyfit(x[around] - x[best], of[around], 2) for of in (v, t))
    at = np.clip(-b / (2 * a), x[best - 1] - x[best], x[best + 1] - x[best]) if a < 0 else 0.0
    return float(x[best] + at), float(np.polyval(height, at))


def flank(
    log_rates: Float[np.ndarray, " rates"],
    static: Float[np.ndarray, "rates seeds"],
    dynamical: Float[np.ndarray, "rates seeds"],
) -> float:
    """Return by which factor the static loss needs a larger rate to be as accurate as a dynamical one.

    On the rising side, where a gain at every rate looks like a shift: it says how the curves lie, not why.

        s = argmin sum_x (d(x) - c(x + log s))^2,   x = log eta up to the maximum of d

    c and d are mean accuracies over the seeds that live (not NaN), at rates where at least half of them do;
    c is linear in between, and at least three rates must lie within it. NaN where there are no three.

    >>> x, curve = np.log([0.1, 0.2, 0.4, 0.8, 1.6]), lambda x: 1 - np.exp(-2 * np.exp(x))[:, None]
    >>> round(flank(x, curve(x), curve(x + np.log(1.5))), 1)
    1.5
    """
    (c, at), (d, x) = (_living(log_rates, values) for values in (static, dynamical))
    if not (len(at) and len(x)):
        return np.nan
    rising = np.arange(len(x)) <= np.argmax(d)
    d, moved = d[rising], np.linspace(-np.log(LARGEST), np.log(LARGEST), 201)
    wanted = x[rising] + moved[:, None]
    inside = (wanted >= at[0] - 1e-9) & (wanted <= at[-1] + 1e-9)
    apart = np.where(inside, (d - np.interp(wanted, at, c)) ** 2, 0).sum(axis=1)
    number = inside.sum(axis=1)
    mean = np.where(number >= 3, apart / np.maximum(number, 1), np.inf)
    return float(np.exp(moved[mean.argmin()])) if np.isfinite(mean).any() else np.nan


def _living(log_rates, values):
    """Return the means over those that live, and the rates, where at least half of them do."""
    alive = np.isfinite(values)
    known = alive.mean(axis=1) >= 0.5
    return np.nanmean(values[known], axis=1), log_rates[known]


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
    gain, error = mean_error(values - dynamical)
    found = xr.Dataset({"control_gain": gain, "control_gain_error": error})
    return found.rename(learning_rate="controlled_rate")


def _law(sharpness: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """Return the largest sharpness over that of the static loss, geometric mean over seeds."""
    values = sharpness["hessian_eigenvalues"].isel(rank=0)
    largest = values.where(sharpness["status"] != DIVERGED).max("hessian_step")
    logs = np.log(largest / largest.sel(amplitude=1.0))
    mean, error = mean_error(logs)
    ratio = np.exp(mean)
    holds = (found["shift_low"] <= ratio) & (ratio <= found["shift_high"])
    holds = holds.where(found["shift_low"].notnull())
    return xr.Dataset({"sharpness_ratio": ratio, "sharpness_ratio_error": ratio * error, "law_holds": holds})


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return shifts, gains and controls as tables."""
    shifts = [("normalization, A", "shift s", "sharpness ratio", "on the flank")]
    gains = [("normalization, A", "gain at the peak, points", "p", "dynamical is")]
    for name in found["normalization"].values:
        for amplitude in found["amplitude"].values[1:]:
            cell, of = found.sel(normalization=name, amplitude=amplitude), f"{name}, {amplitude:g}"
            number = {key: float(cell[key]) for key in cell if cell[key].ndim == 0}
            ratio = ""
            if "sharpness_ratio" in number:
                ratio = f"{number['sharpness_ratio']:.2f} ± {number['sharpness_ratio_error']:.2f}"
            shifts.append((of, _within(number, "shift"), ratio, _within(number, "flank")))
            gain = f"{100 * number['gain']:+.1f} ± {100 * number['gain_error']:.1f}"
            verdict = tuned_losses.VERDICTS[int(number["verdict"])]
            known = np.isfinite(number["gain"])
            gains.append(
                (of, gain, f"{number['gain_adjusted']:.2g}", verdict) if known else (of, "", "", verdict)
            )
    tables = {"shifts": shifts, "gains": gains}
    if "control_gain" in found:
        rates = found["controlled_rate"].values
        rows = [("control minus dynamical, points at η = unit x", *(f"{rate:.3g}" for rate in rates))]
        for name in found["control_gain"]["normalization"].values:
            for control in found["control"].values:
                cells = found.sel(normalization=name, control=control)
                words = (
                    f"{100 * float(gain):+.1f} ± {100 * float(error):.1f}" if np.isfinite(gain) else ""
                    for gain, error in zip(cells["control_gain"], cells["control_gain_error"], strict=True)
                )
                unit = float(found["rate_unit"].sel(normalization=name))
                rows.append((f"{name} (unit {unit:g}): {control}", *words))
        tables["controls"] = rows
    return tables


def _within(number, name):
    ends = [number[key] for key in (name, f"{name}_low", f"{name}_high")]
    return "{:.2f}, {:.2f} to {:.2f}".format(*ends) if np.isfinite(ends).all() else "open"
