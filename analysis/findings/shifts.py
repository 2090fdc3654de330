"""Is a dynamical loss a larger learning rate? Shifts of accuracy over the rate, with intervals and controls.

The plan, with what counts as what, is that of experiments/configs/learning_rate_shift.py.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from analysis.findings import tuned_losses
from analysis.findings.curves import flank, peak
from analysis.findings.diagrams import mean_error
from dlf.store.cells import DIVERGED

DRAWS = 1_000  # of a bootstrap
_NUM_NULLS, _NULL_DRAWS = 100, 100  # of controls without an effect
_LEVEL = 0.05


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps "main", "controls" and "sharpness" to what they show.

    Along `normalization` and `amplitude`: `accuracy` over `learning_rate` with `_error`, the share of `dead`
    runs with `_low` and `_high`; of the dynamical losses `shift` and `gain`, how much smaller the rate of
    their peak is than the static one's and how much higher the peak, and `flank`, each with `_low` and
    `_high`; of the gain `_error`, `_p_value`, `_adjusted`, and `verdict`; of the largest amplitude
    `null_shuffled` and `null_static` (see `nulls`); `sharpness_ratio` with `_error`, and `law_holds`, NaN
    where the shift is open. Along `control`: `control_gain` with `_error`, the
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
        if amplitude == sweep["amplitude"].max():
            part = part.assign({f"null_{name}": of for name, of in nulls(pair).items()})
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
    x, validation, test = _arrays(pair)
    found = []
    for seeds in _draws_of_seeds(test.shape[-1], DRAWS):
        static, dynamical = _peaks(x, validation[..., seeds], test[..., seeds])
        shift, gain = np.exp(static[0] - dynamical[0]), dynamical[1] - static[1]
        found.append((shift, gain, flank(x, *test[..., seeds])))
    return np.asarray(found).T


def _arrays(pair):
    """Return log eta, and validation and test accuracies [2 losses, rates, seeds] of the runs that live."""
    dead = tuned_losses.is_dead(pair)
    live = [pair[f"{name}_accuracy"].astype(float).where(~dead) for name in ("validation", "test")]
    of_seeds = [of.transpose("amplitude", "learning_rate", "seed").values for of in live]
    return np.log(pair["learning_rate"].values), *of_seeds


def _draws_of_seeds(num, num_draws):
    rng, every = np.random.default_rng(0), np.arange(num)
    return [every, *(rng.choice(every, num) for _ in range(num_draws))]


def _peaks(x, validation, test):
    return [peak(x, *of) for of in zip(validation, test, strict=True)]


def nulls(pair: xr.Dataset) -> dict[str, float]:
    """Return how often a gain is called one at 5 % where there is none, in draws of two kinds.

    "shuffled": for each seed it is drawn which of its two runs counts as the dynamical one; "static": half of
    the static runs against the other half.
    """
    x, *both = _arrays(pair)
    rng, num, found = np.random.default_rng(1), both[0].shape[-1], {"shuffled": [], "static": []}
    for _ in range(_NUM_NULLS):
        is_swapped = rng.random(num) < 0.5
        found["shuffled"].append([np.where(is_swapped, of[::-1], of) for of in both])
        halves = rng.permutation(num)[: 2 * (num // 2)].reshape(2, -1)
        found["static"].append([np.stack([of[0][:, half] for half in halves]) for of in both])
    return {name: np.mean([_p_value(x, *of) <= _LEVEL for of in cases]) for name, cases in found.items()}


def _p_value(x, validation, test):
    gains = []
    for seeds in _draws_of_seeds(test.shape[-1], _NULL_DRAWS):
        static, dynamical = _peaks(x, validation[..., seeds], test[..., seeds])
        gains.append(dynamical[1] - static[1])
    return _tested(gains[0], np.nan, interval(np.asarray(gains[1:]))[-1])["gain_p_value"]


def _tested(gain, within, error):
    p_value = 2 * stats.norm.sf(abs(gain) / error) if error > 0 else np.nan
    return {
        "gain_error": error,
        "gain_p_value": p_value,
        "equivalent": float(within <= tuned_losses.EQUIVALENT),
    }


def interval(draws: Float[np.ndarray, " draws"]) -> tuple[float, float, float, float]:
    """Return lower end of the 95 % interval, largest modulus in the 90 % one, upper end, standard error."""
    known = draws[np.isfinite(draws)]
    if len(known) <= len(draws) / 2:
        return (np.nan,) * 4
    low, *inner, high = np.quantile(known, (_LEVEL / 2, _LEVEL, 1 - _LEVEL, 1 - _LEVEL / 2))
    return low, np.abs(inner).max(), high, known.std(ddof=1)


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
    gains = [
        (
            "normalization, A",
            "gain at the peak, points",
            "p",
            "dynamical is",
            "shuffled, static called real, %",
        )
    ]
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
            words = (gain, f"{number['gain_adjusted']:.2g}") if np.isfinite(number["gain"]) else ("", "")
            shares = [100 * number[f"null_{kind}"] for kind in ("shuffled", "static")]
            null = " and ".join(f"{of:.0f}" for of in shares if np.isfinite(of))
            gains.append((of, *words, verdict, null))
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
