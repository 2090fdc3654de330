"""What rates that read the curvature leave of a dynamical loss: its instabilities and its gain.

The plan, with what counts as what, is that of experiments/configs/rate_rules.py.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy import stats

from analysis.findings import tuned_losses
from analysis.findings.diagrams import ACCURACIES, mean_error, paired_gain
from analysis.findings.survival import final_accuracies, instabilities, mean_in_words

_LEVEL = 0.05


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps "spiral" and "slow", and "signals" and "foreseen", to what they show.

    Along `rate` and `amplitude`, for each `seed` of the spiral: `final_accuracy`,
    `final_validation_accuracy`, `instabilities`, `unstable` (see `analysis.findings.survival`) and
    `mean_rate`; `<accuracy>_gain` of the dynamical loss with `_error`, and `<accuracy>_change`, by which it
    differs from that at the first rate, with `_error`, `_low`, `_high` (95 %) and `_within`, the largest
    modulus in its 90 % interval, and the same of `dynamical_<accuracy>_change`, by which the accuracy itself
    differs. Along `normalization` and `rule`, of signals: `signal_accuracy` with
    `_error` and `signal_dead` at each `signal_amplitude`, `signal_gain` with `_error`, and
    `signal_change` with `_error`, `_p_value`, `_adjusted`, `_within`.
    """
    parts = [_of_spiral(results[name]) for name in ("spiral", "slow")]
    found = xr.concat(parts, "rate", combine_attrs="drop")
    for name in ACCURACIES:
        found = found.assign(_change(found[f"{name}_gains"], f"{name}_change")).drop_vars(f"{name}_gains")
        dynamical = found[f"final_{name}"].isel(amplitude=-1, drop=True)
        found = found.assign(_change(dynamical, f"dynamical_{name}_change"))
    found = found.merge(_of_signals(_together(results["signals"], results["foreseen"])))
    return found.assign_attrs(commit=results["spiral"].attrs.get("commit", ""))


def _of_spiral(sweep: xr.Dataset) -> xr.Dataset:
    found = final_accuracies(sweep).merge(instabilities(sweep))
    found["mean_rate"] = sweep["learning_rate"].isel(step=slice(sweep.attrs["stop_after"])).mean("step")
    for name in ACCURACIES:
        of = found[f"final_{name}"]
        dynamical, static = (of.sel(amplitude=end, drop=True) for end in (of["amplitude"].max(), 1.0))
        found[f"{name}_gains"] = dynamical - static
    return found.drop_attrs()


def _change(gains: xr.DataArray, name: str, dim: str = "rate") -> dict[str, xr.DataArray]:
    """Return by how much gains differ from that of the first label, paired over seeds, with intervals."""
    difference = gains - gains.isel({dim: 0}, drop=True)
    mean, error = mean_error(difference)
    freedom = np.maximum(difference.count("seed") - 1, 1)
    t95, t90 = (xr.apply_ufunc(stats.t.ppf, 1 - of, freedom) for of in (_LEVEL / 2, _LEVEL))
    return {
        name: mean,
        f"{name}_error": error,
        f"{name}_low": mean - t95 * error,
        f"{name}_high": mean + t95 * error,
        f"{name}_within": np.abs(mean) + t90 * error,
    }


def _together(signals: xr.Dataset, foreseen: xr.Dataset) -> xr.Dataset:
    """Return both sweeps as one; the static loss of the latter is that of the first rule of the former."""
    kept = ["test_accuracy", "validation_accuracy", "status"]
    rules = foreseen["rule"].values
    static = signals[kept].sel(amplitude=[1.0]).isel(rule=np.zeros(len(rules), int)).assign_coords(rule=rules)
    both = xr.concat([static, foreseen[kept]], "amplitude", combine_attrs="drop_conflicts")
    return xr.concat([signals[kept], both], "rule", combine_attrs="drop_conflicts")


def _of_signals(sweep: xr.Dataset) -> xr.Dataset:
    dead = tuned_losses.is_dead(sweep)
    live = sweep["test_accuracy"].astype(float).where(~dead)
    mean, error = mean_error(live)
    found = {"signal_accuracy": mean, "signal_accuracy_error": error, "signal_dead": dead.mean("seed")}
    found = {name: of.rename(amplitude="signal_amplitude") for name, of in found.items()}
    gains = live.sel(amplitude=live["amplitude"].max(), drop=True) - live.sel(amplitude=1.0, drop=True)
    found["signal_gain"], found["signal_gain_error"] = mean_error(gains)
    found |= _change(gains, "signal_change", "rule")
    difference = (gains - gains.isel(rule=0, drop=True)).transpose("normalization", "rule", "seed")
    p_values = xr.full_like(found["signal_gain"], np.nan).transpose("normalization", "rule")
    for place in np.ndindex(p_values.shape):
        pairs = difference[place].dropna("seed")
        if place[1] and pairs.size > 1:
            against = xr.zeros_like(pairs)
            p_values[place] = paired_gain(pairs, against, alternative="two-sided")["p_value"].item()
    found["signal_change_p_value"] = p_values
    found["signal_change_adjusted"] = tuned_losses.adjusted(p_values)
    return xr.Dataset(found)


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return a table of the spiral's rates and one of the signals' rules."""
    spiral = [("", *(str(name) for name in found["rate"].values))]
    for words, variable in (
        ("mean rate", "mean_rate"),
        ("instabilities", "instabilities"),
        ("accuracy", "final_accuracy"),
        ("validation", "final_validation_accuracy"),
    ):
        for loss, place in ((f"{words}, static", 0), ("  dynamical", -1)):
            cells = (found[variable].sel(rate=name).isel(amplitude=place) for name in found["rate"].values)
            spiral.append((loss, *(mean_in_words(cell) for cell in cells)))
        if variable.startswith("final_"):
            name = variable.removeprefix("final_")
            spiral += [
                _row(found, f"dynamical_{name}_change", "  change of that"),
                _row(found, f"{name}_gain", "  gain"),
                _row(found, f"{name}_change", "  change of the gain"),
            ]
    signals = [("", "static", "dynamical", "gain", "change of the gain", "p")]
    for normalization in found["normalization"].values:
        for rule in found["rule"].values:
            cell = found.sel(normalization=normalization, rule=rule)
            both = (cell.isel(signal_amplitude=end) for end in (0, -1))
            p_value = float(cell["signal_change_adjusted"])
            signals.append(
                (
                    f"{normalization}: {rule}",
                    *(_points(of, "signal_accuracy", "{:.1f}") for of in both),
                    _points(cell, "signal_gain"),
                    _points(cell, "signal_change") if rule != found["rule"].values[0] else "",
                    f"{p_value:.2g}" if np.isfinite(p_value) else "",
                )
            )
    return {"spiral, mean ± standard error": spiral, "signals, test accuracy in %": signals}


def _row(found, variable, words):
    cells = (found[[variable, f"{variable}_error"]].sel(rate=name) for name in found["rate"].values)
    numbers = [(float(cell[variable]), float(cell[f"{variable}_error"])) for cell in cells]
    return (words, *(f"{mean:+.3f} ± {error:.1g}" if error else "" for mean, error in numbers))


def _points(cell, variable, form="{:+.1f}"):
    mean, error = (100 * float(cell[name]) for name in (variable, f"{variable}_error"))
    return f"{form} ± {{:.1f}}".format(mean, error) if np.isfinite(mean) else "all dead"
