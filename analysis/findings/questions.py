"""The open questions of dynamical losses on images: effects with their intervals, verdicts, and a table.

The plan, with what counts as what, is that of experiments/configs/open_questions.py.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from analysis.findings import shifts, tuned_losses
from dlf.store.cells import DIVERGED

VERDICTS = ("open", "more", "less", "none")
CURVATURES = ("sharpness", "over_bulk", "over_mean")
_TIMES = {"first": 0, "early": 1, "last": -1}  # of the measurements of the curvature
_LEVEL = 0.05
_QUESTIONS = {"E2": "Q1", "E3": "Q2", "E4": "Q3", "E6": "Q3"}
_NETWORKS = ("wide_resnet", "digits", "fashion_mnist")


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Reduce the sweeps and the trials that ran again ("measured") to what they show.

    Along `effect`, whose labels begin with the experiment: `value` with `error`, `low`, `high` (95 %),
    `within` (largest modulus in the 90 % interval), `p_value`, `adjusted`, `verdict` (of `VERDICTS`), and
    `is_shift`. Gains, their changes and slopes (for a factor of ten) are shares, a shift is a factor.
    `condition_gain` along `condition`, beside `condition_<curvature>` at each `time`; `expected_best` test
    accuracy along `normalization`, `moving` and `budget`.
    """
    effects = dict(_of_regularizers(results["regularizers"], results["fixed_product"]))
    conditions = _conditions(results["conditions"], results["curvature"])
    effects |= dict(_slopes(conditions)) | dict(_of_trials(results["measured"]))
    gains = {name: _dataset(draws) for name, draws in effects.items()}
    transferred = dict(_transferred(results))
    gains |= {name: _dataset(draws[1]) for name, draws in transferred.items()}
    found = tuned_losses.joined(gains, "effect")
    found["adjusted"] = tuned_losses.adjusted(found["p_value"])
    is_real, is_none = found["adjusted"] <= _LEVEL, found["within"] <= tuned_losses.EQUIVALENT
    found["verdict"] = xr.where(is_real, xr.where(found["value"] > 0, 1, 2), xr.where(is_none, 3, 0))
    of_shifts = {f"{name}: shift": _dataset(draws[0]) for name, draws in transferred.items()}
    moved = tuned_losses.joined(of_shifts, "effect").drop_vars("p_value")
    moved["verdict"] = xr.where(moved["low"] > 1, 1, xr.where(moved["high"] < 1, 2, 0))
    found = xr.concat(
        [
            found.assign(is_shift=("effect", [0] * len(gains))),
            moved.assign(is_shift=("effect", [1] * len(of_shifts))),
        ],
        "effect",
        data_vars="all",
        join="outer",
    )
    gain = conditions.pop("gains")
    found["condition_gain"] = "condition", gain[:, 0]
    found["condition_gain_error"] = "condition", gain[:, 1:].std(axis=1, ddof=1)
    found["condition_is_normalized"] = "condition", conditions.pop("is_normalized")
    for name, values in conditions.items():
        found[f"condition_{name}"] = ("condition", "time"), values
    found = found.assign_coords(time=list(_TIMES)).merge(expected_best(results["trials"]))
    first = results["regularizers"]
    return found.assign_attrs(commit=first.attrs.get("commit", ""), num_seeds=first.sizes["seed"])


def _dataset(draws: Float[np.ndarray, " draws"]) -> xr.Dataset:
    low, within, high, error = shifts.interval(draws[1:])
    p_value = 2 * stats.norm.sf(abs(draws[0]) / error) if error > 0 else np.nan
    names = "value", "low", "within", "high", "error", "p_value"
    return xr.Dataset(dict(zip(names, (draws[0], low, within, high, error, p_value), strict=True)))


def _gains(sweep: xr.Dataset, *dims: str) -> xr.DataArray:
    """Return what the dynamical loss gains at the peaks in every cell, and in every draw of seeds."""
    shape = [sweep.sizes[dim] for dim in dims]
    cells = [shifts.drawn(sweep.isel(dict(zip(dims, at, strict=True))))[1] for at in np.ndindex(*shape)]
    coordinates = {dim: sweep[dim].values for dim in dims}
    return xr.DataArray(np.reshape(cells, (*shape, -1)), coordinates, (*dims, "draw"))


def _of_regularizers(sweep: xr.Dataset, fixed: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield by how much decay and augmentation change the gain, under each norm."""
    gains = _gains(sweep, "normalization", "decay", "augmented")
    for name in gains["normalization"].values:
        of = gains.sel(normalization=name)
        by_decay, by_augmented = of.mean("augmented"), of.mean("decay")
        for decay in of["decay"].values[1:]:
            yield f"E2 {name}: decay {decay:g}", (by_decay.sel(decay=decay) - by_decay.sel(decay=0)).values
        yield (
            f"E2 {name}: shifted signals",
            (by_augmented.sel(augmented=True) - by_augmented.sel(augmented=False)).values,
        )
    ((name, changed),) = _gains(fixed, "normalization").groupby("normalization")
    plain = gains.sel(normalization=name, decay=0, augmented=False)
    yield f"E2 {name}: rate times decay fixed", (changed.squeeze("normalization") - plain).values


def _conditions(sweep: xr.Dataset, curvature: xr.Dataset) -> dict[str, np.ndarray]:
    """Return gains [condition, draw], whether a norm is there, and logarithms (base ten) of the curvature."""
    dims = "normalization", "kernel_scale", "whitened", "warm_up"
    gains = _gains(sweep, *dims)
    found: dict[str, Any] = {"gains": gains.values.reshape(-1, gains.sizes["draw"])}
    names = np.broadcast_to((gains["normalization"].values != "none").reshape(-1, 1, 1, 1), gains.shape[:-1])
    found["is_normalized"] = names.ravel().astype(float)
    alive = curvature["status"] != DIVERGED
    for name in CURVATURES:
        logs = np.log10(curvature[name].where(alive)).mean("seed")
        at = logs.isel({logs.dims[-1]: list(_TIMES.values())}).transpose(*dims, ...)
        found[name] = at.values.reshape(-1, len(_TIMES))
    return found


def _slopes(conditions: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the slope of the gain over each curvature at each time, for a factor of ten, in every draw.

    gain = a + b log10 curvature + c (norm)
    """
    gains, norm = conditions["gains"], conditions["is_normalized"]
    for name, (time, place) in itertools.product(CURVATURES, zip(_TIMES, range(len(_TIMES)), strict=True)):
        regressors = np.stack([np.ones_like(norm), conditions[name][:, place], norm], axis=1)
        known = np.isfinite(regressors).all(axis=1) & np.isfinite(gains[:, 0])
        slope = np.full(gains.shape[1], np.nan)
        if known.sum() > 3:
            slope = (np.linalg.pinv(regressors[known]) @ gains[known])[1]
        yield f"E3 {name.replace('_', ' ')}, {time}", slope


def best(trials: xr.Dataset, number: int) -> list[dict[str, Any]]:
    """Return momentum, decay and trial of the best trials of a loss by validation accuracy, best first."""
    dims = "momentum", "decay", "trial"
    alive = ~tuned_losses.is_dead(trials)
    accuracy = trials["validation_accuracy"].where(alive, -1.0).transpose(*dims)
    order = np.argsort(-accuracy.values, axis=None, kind="stable")[:number]
    places = zip(*np.unravel_index(order, accuracy.shape), strict=True)
    return [{dim: trials[dim].values[i].item() for dim, i in zip(dims, at, strict=True)} for at in places]


def _of_trials(again: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the dynamical loss gains with the best of its trials over the best of the static ones."""
    live = [again[f"{name}_accuracy"].astype(float) for name in ("validation", "test")]
    is_dead = (again["status"] == DIVERGED) | (live[0] < 2 / again.attrs["num_classes"])
    for name in again["normalization"].values:
        of = [
            x.where(~is_dead).sel(normalization=name).transpose("moving", "candidate", "seed").values
            for x in live
        ]
        rng, every, found = np.random.default_rng(0), np.arange(again.sizes["seed"]), []
        for draw in range(1 + shifts.DRAWS):
            seeds = rng.choice(every, every.size) if draw else every
            static, dynamical = (_of_best(*(values[loss][:, seeds] for values in of)) for loss in (0, 1))
            found.append(dynamical - static)
        yield f"E4 {name}: equal budgets", np.asarray(found)


def _of_best(validation, test):
    """Return the mean test accuracy of the candidate whose mean validation accuracy is largest."""
    known = np.isfinite(validation).mean(axis=1) >= 0.5
    if not known.any():
        return np.nan
    return np.nanmean(test[known][np.argmax(np.nanmean(validation[known], axis=1))])


def expected_best(trials: xr.Dataset) -> xr.Dataset:
    """Return the test accuracy to expect of the best of n trials, chosen by validation accuracy.

        E_n = sum_i t_(i) ((i / N)^n - ((i - 1) / N)^n),   t_(i) the test accuracy of the i-th worst of N

    for n trials drawn with replacement; dead ones are the worst. Along `normalization`, `moving`, `budget`.

    Source: Dodge et al. 2019 (arXiv 1909.03004), there of the validation accuracy.
    """
    flat = trials.stack(of=("momentum", "decay", "trial")).transpose("normalization", "moving", "of", ...)
    dead = tuned_losses.is_dead(flat)
    guess = 1 / trials.attrs["num_classes"]
    validation, test = (
        flat[f"{name}_accuracy"].where(~dead, guess).values for name in ("validation", "test")
    )
    ordered = np.take_along_axis(test, np.argsort(validation, axis=-1, kind="stable"), axis=-1)
    number = ordered.shape[-1]
    budgets = np.unique(np.geomspace(1, number, 12).round().astype(int))
    share = (np.arange(number + 1) / number) ** budgets[:, None]
    values = ordered @ np.diff(share, axis=1).T
    coordinates = {name: trials[name].values for name in ("normalization", "moving")} | {"budget": budgets}
    return xr.Dataset({"expected_best": (("normalization", "moving", "budget"), values)}, coordinates)


def _transferred(results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield shift and gain of other networks, in every draw."""
    for name in _NETWORKS:
        sweep = results[name]
        if "normalization" not in sweep.dims:
            sweep = sweep.expand_dims("normalization")
        for norm in sweep["normalization"].values:
            words = name.replace("_", " ") + (f", {norm}" if name == "wide_resnet" else "")
            yield f"E6 {words}", shifts.drawn(sweep.sel(normalization=norm))[:2]


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the questions as a table: experiment, effect and its interval, verdict, what would change it."""
    rows = [("question", "effect", "points, or factor", "95 %", "p", "verdict", "seeds to decide")]
    for name in found["effect"].values:
        of = {
            key: float(found[key].sel(effect=name))
            for key in ("value", "low", "high", "error", "adjusted", "verdict", "is_shift")
        }
        unit, form = (1, "{:.2f}") if of["is_shift"] else (100, "{:+.1f}")
        known = np.isfinite([of["value"], of["error"]]).all()
        words = [form.format(unit * of[key]) for key in ("value", "low", "high")] if known else [""] * 3
        p_value = f"{of['adjusted']:.2g}" if np.isfinite(of["adjusted"]) else ""
        verdict = VERDICTS[int(of["verdict"])]
        is_open = verdict == "open" and known and not of["is_shift"]
        needed = f"{_needed(of['value'], of['error'], found.attrs['num_seeds'])}" if is_open else ""
        rows.append(
            (
                _QUESTIONS[str(name)[:2]],
                str(name),
                words[0],
                " to ".join(filter(None, words[1:])),
                p_value,
                verdict,
                needed,
            )
        )
    best = [("test accuracy, %, best of", *(f"{n}" for n in found["budget"].values))]
    for norm in found["normalization"].values:
        for moves, words in ((False, "static"), (True, "dynamical")):
            values = 100 * found["expected_best"].sel(normalization=norm, moving=moves)
            best.append((f"{norm}, {words}", *(f"{value:.1f}" for value in values.values)))
    return {"questions": rows, "equal budgets": best}


def _needed(value: float, error: float, num_seeds: int) -> int:
    """Return the number of seeds at which an effect that stays what it is would count as real, or as none."""
    level = stats.norm.ppf(1 - np.asarray([_LEVEL / 2, _LEVEL]))
    room = np.asarray([abs(value), max(tuned_losses.EQUIVALENT - abs(value), 0)])
    with np.errstate(divide="ignore"):
        least = np.min((level * error / room) ** 2)
    return max(num_seeds + 1, int(np.ceil(num_seeds * least)))
