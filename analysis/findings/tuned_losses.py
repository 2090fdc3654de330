"""What a dynamical loss does to networks of images: accuracy over learning rates, tuned, and the sharpness.

The protocol: both losses share seeds; dead runs stand apart; a learning rate is chosen for each loss by
validation accuracy over the first third of the seeds and judged by test accuracy over the others.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from analysis.findings.diagrams import mean_error, paired_gain
from dlf.store.cells import DIVERGED

EQUIVALENT = 0.005  # differences of the accuracy up to which two losses are as good
_LEVEL = 0.05
VERDICTS = ("undecided", "better", "worse", f"as good, within {100 * EQUIVALENT:g} points")


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps over learning rate, amplitude and seed, one for each data set, to what they show.

    Along `data`: `accuracy`, the mean test accuracy of live runs with `_error`; `dead`, the share of runs
    that diverged or stayed below twice the accuracy of guessing, with `_low` and `_high` of its 95 % Wilson
    interval; `gain` of the dynamical loss over the static one, paired over seeds (see `paired_gain`,
    two-sided); under `tuned_` what the chosen learning rates give (see `tuned`). A sweep "plane" of amplitude
    and period gives `plane_gain` over the static loss at its learning rate; runs "<data>_static" and
    "<data>_dynamical" the sharpness along training, along `point`.
    """
    sweeps = {name: of for name, of in results.items() if {"learning_rate", "amplitude"} <= {*of.dims}}
    found = joined({name: over_rates(sweep).merge(tuned(sweep)) for name, sweep in sweeps.items()})
    is_real, sign = adjusted(found["tuned_p_value"]) <= _LEVEL, np.where(found["tuned_gain"] > 0, 1, 2)
    found["tuned_verdict"] = xr.where(is_real, sign, xr.where(found["tuned_equivalent"], 3, 0))
    if "plane" in results:
        found = found.merge(_plane(results["plane"], next(iter(sweeps.values()))))
    along = {name: _along(results, name) for name in sweeps if f"{name}_static" in results}
    if along:
        found = found.merge(joined(along))
    first = next(iter(sweeps.values()))
    return found.assign_attrs(
        commit=first.attrs.get("commit", ""), num_seeds=first.sizes["seed"], num_tuning=_num_tuning(first)
    )


def adjusted(p_values: xr.DataArray) -> xr.DataArray:
    """Return p-values that bound the rate of false discoveries, NaN where nothing was tested."""
    found, tested = p_values.copy(), p_values.notnull().values
    found.values[tested] = stats.false_discovery_control(p_values.values[tested])
    return found


def joined(datasets: Mapping[Any, xr.Dataset], dim: str = "data") -> xr.Dataset:
    """Return data sets along a dimension, whose labels are their keys; NaN where one lacks something."""
    along = xr.IndexVariable(dim, [*datasets])
    return xr.concat([*datasets.values()], along, join="outer", combine_attrs="drop", data_vars="all")


def over_rates(sweep: xr.Dataset) -> xr.Dataset:
    """Return accuracy and share of dead runs for each learning rate and loss, and what the loss gains."""
    dead, live = is_dead(sweep), sweep["test_accuracy"].astype(float).where(~is_dead(sweep))
    mean, error = mean_error(live)
    found = xr.Dataset({"accuracy": mean, "accuracy_error": error, "dead": dead.mean("seed")})
    found["dead_low"], found["dead_high"] = _wilson(dead)
    static, dynamical = _both(live)
    gain = paired_gain(dynamical, static, alternative="two-sided")
    return found.merge(gain)


def tuned(sweep: xr.Dataset) -> xr.Dataset:
    """Return what the learning rates give that the first seeds choose, over the other seeds.

    For each amplitude `tuned_rate`, `tuned_accuracy` with `_error`, `tuned_dead` and `tuned_worst_class`, the
    lowest mean accuracy of a class; over the pairs in which both runs live `tuned_gain` with `_error` and
    `tuned_p_value` (sign-flip, two-sided); `tuned_equivalent`, whether the 90 % interval of the gain lies
    within `EQUIVALENT` of zero and no run is dead.
    """
    num_tuning = _num_tuning(sweep)
    first, others = sweep.isel(seed=slice(num_tuning)), sweep.isel(seed=slice(num_tuning, None))
    guess = 1 / sweep.attrs["num_classes"]
    validation = first["validation_accuracy"].where(first["status"] != DIVERGED, guess).mean("seed")
    rate = validation.idxmax("learning_rate")
    chosen = others.sel(learning_rate=rate)
    live = chosen["test_accuracy"].astype(float).where(~is_dead(chosen))
    mean, error = mean_error(live)
    static, dynamical = _both(live)
    both_live = (static + dynamical).dropna("seed")["seed"]
    pairs = both_live.size
    gain = (
        _no_gain()
        if pairs < 2
        else paired_gain(dynamical.sel(seed=both_live), static.sel(seed=both_live), alternative="two-sided")
    )
    margin = stats.t.ppf(1 - _LEVEL, max(pairs - 1, 1)) * gain["gain_error"]
    of_classes = chosen["test_class_accuracy"].where(~is_dead(chosen)).mean("seed")
    found = {
        "rate": rate,
        "accuracy": mean,
        "accuracy_error": error,
        "dead": is_dead(chosen).mean("seed"),
        "worst_class": of_classes.min("class"),
        "gain": gain["gain"],
        "gain_error": gain["gain_error"],
        "p_value": gain["p_value"],
        "equivalent": (np.abs(gain["gain"]) + margin <= EQUIVALENT) & (pairs == live.sizes["seed"]),
    }
    return xr.Dataset(
        {f"tuned_{name}": of.drop_vars("learning_rate", errors="ignore") for name, of in found.items()}
    )


def _no_gain() -> xr.Dataset:
    return xr.Dataset(dict.fromkeys(("gain", "gain_error", "p_value"), ((), np.nan)))


def _num_tuning(sweep: xr.Dataset) -> int:
    return max(sweep.sizes["seed"] // 3, 1)


def is_dead(sweep: xr.Dataset) -> xr.DataArray:
    """Return which runs diverged, or guess: below twice the accuracy of guessing on validation examples."""
    return (sweep["status"] == DIVERGED) | (sweep["validation_accuracy"] < 2 / sweep.attrs["num_classes"])


def _both(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    dynamical = float(values["amplitude"].max())
    return tuple(values.sel(amplitude=of, drop=True) for of in (1.0, dynamical))


def _wilson(dead: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the limits of the 95 % interval of a share.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    number = dead.sizes["seed"]

    def limits(count):
        of = stats.binomtest(int(count), number).proportion_ci(method="wilson")
        return of.low, of.high

    return xr.apply_ufunc(limits, dead.sum("seed"), output_core_dims=[[], []], vectorize=True)


def _plane(plane: xr.Dataset, main: xr.Dataset) -> xr.Dataset:
    """Return what the dynamical loss gains over the static one at every amplitude and period."""
    rate = json.loads(plane.attrs["config"])["optimizer"]["learning_rate"]
    static = main.sel(learning_rate=rate, amplitude=1.0, seed=plane["seed"], drop=True)
    live, reference = (of["test_accuracy"].astype(float).where(~is_dead(of)) for of in (plane, static))
    found = paired_gain(live, reference, alternative="two-sided")
    found["dead"] = is_dead(plane).mean("seed")
    found = found.rename({name: f"plane_{name}" for name in (*found, "amplitude", "period")})
    return found.assign(plane_rate=rate)


def _along(results: Mapping[str, xr.Dataset], name: str) -> xr.Dataset:
    found = []
    for loss in ("static", "dynamical"):
        run = results[f"{name}_{loss}"]
        at = run["hessian_step"].values
        variables = {
            "sharpness": run["hessian_eigenvalues"].isel(rank=0),
            "batch_sharpness": run["batch_sharpness"],
            "batch_sharpness_error": run["batch_sharpness_error"],
            "run_threshold": run["threshold"].sel(step=at),
            "run_step": run["hessian_step"],
        }
        values = {key: ("point", of.values.astype(float)) for key, of in variables.items()}
        found.append(xr.Dataset(values, {"point": np.arange(len(at))}))
    return xr.concat(found, xr.IndexVariable("loss", ["static", "dynamical"]), join="outer")


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return a table of the tuned losses on every data set, and of the gain at each learning rate."""
    names = [str(name) for name in found["data"].values]
    amplitude = float(found["amplitude"].max())
    rows = [("test accuracy, %", *names)]
    for of, value in (("static", 1.0), ("dynamical", amplitude)):
        cells = [found.sel(data=name, amplitude=value) for name in names]
        rows += [
            (
                f"{of}, tuned",
                *(_percent(cell["tuned_accuracy"], cell["tuned_accuracy_error"]) for cell in cells),
            ),
            ("  at η", *(f"{float(cell['tuned_rate']):g}" for cell in cells)),
            ("  dead runs", *(f"{100 * float(cell['tuned_dead']):.0f} %" for cell in cells)),
            ("  lowest class", *(f"{100 * float(cell['tuned_worst_class']):.1f}" for cell in cells)),
        ]
    cells = [found.sel(data=name) for name in names]
    rows += [
        ("gain, tuned", *(_signed(cell["tuned_gain"], cell["tuned_gain_error"]) for cell in cells)),
        ("  p", *(f"{float(cell['tuned_p_value']):.2g}" for cell in cells)),
        ("  dynamical is", *(VERDICTS[int(cell["tuned_verdict"])] for cell in cells)),
    ]
    gains = [("gain at η, points", *names)]
    for rate in found["learning_rate"].values:
        gains.append((f"{rate:.3g}", *(_at_rate(cell, rate) for cell in cells)))
    return {"tuned": rows, "over learning rates": gains}


def _at_rate(cell: xr.Dataset, rate: float) -> str:
    """Return the gain at a learning rate, beside c = rate times first sharpness and what was dead."""
    at = cell.sel(learning_rate=rate)
    words = [_signed(at["gain"], at["gain_error"])]
    static, dynamical = (100 * float(of) for of in _both(at["dead"]))
    if static or dynamical:
        words.append(f"dead {static:.0f} and {dynamical:.0f} %")
    if "sharpness" in cell:
        words.append(f"c = {rate * float(cell['sharpness'].sel(loss='static', point=0)):.2g}")
    return ", ".join(filter(None, words))


def _percent(mean: xr.DataArray, error: xr.DataArray) -> str:
    return f"{100 * float(mean):.1f} ± {100 * float(error):.1f}" if np.isfinite(mean) else "all dead"


def _signed(mean: xr.DataArray, error: xr.DataArray) -> str:
    return f"{100 * float(mean):+.1f} ± {100 * float(error):.1f}" if np.isfinite(mean) else ""
