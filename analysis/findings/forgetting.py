"""What networks that add forget of one list of facts while they learn another."""

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from analysis.findings import adders
from dlf.data import facts

CRITERIA = ("within_tenth", "right_side", "best_match")
LISTS = ("ones", "twos")
_SHOWN = (5, 20, 100)  # additions after which the pairs are drawn
_NUM_UNITS = 24
_LATE = 10  # trials of twos, from when on wrong answers are looked at
# McCloskey and Cohen 1989: best match of ones in % after so many trials of twos, in two runs; squared errors
# a unit before and after one trial; trials of ones until all outputs are within .1.
PUBLISHED = {0: 100, 1: 57, 2: 30}
ERRORS, _UNTIL = (0.0015, 0.0453), (15, 35)


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put together shares of right answers over trials, additions and periods, and the curvature.

    Along `band`, `over_seeds`: `classical_share` [criterion, list, order, trial] and `unit_error` [list,
    order, trial], with trial 0 at the end of the first list, `as_other`, what share of the wrong answers to
    ones is right of twos; `clauses_share` [set, tied, trial]; `pairs_share` [tied, initial_scale,
    learning_rate, additions] of all pairs of 5 bits; `turns_lowest` and `turns_mean` [amplitude, period] of
    the last cycle under a loss that emphasises a list at a time; sharpness and alignment of the lists'
    kernels of each network by the trial. For each seed `trials_until_learned`, `additions_until`, and
    `pairs_after` [tied], the share of pairs after both lists. `order_gap` [trial], by how much more of twos
    is forgotten than of ones, with its standard error; `pairs_solved`, the share of seeds; `pairs_right`
    [shown, a, b]; `clause` and `longer_share` as in `adders.longer_numbers`; `bound`.
    """
    found = _of_lists(results["classical"], results["clauses"])
    for more in (_of_pairs(results["pairs"]), _of_turns(results["turns"]), results["measured"]):
        found = found.merge(more, combine_attrs="override")
    return found.assign(bound=adders.bound())


def over_seeds(of: xr.DataArray) -> xr.DataArray:
    """Return mean, standard deviation and the limits of eight seeds in ten, along a dimension `band`."""
    low, high = (of.quantile(q, "seed", skipna=False).drop_vars("quantile") for q in (0.1, 0.9))
    bands = {"mean": of.mean("seed"), "sd": of.std("seed", ddof=1), "low": low, "high": high}
    return xr.concat([*bands.values()], xr.Variable("band", [*bands]))


def _trials(sweep: xr.Dataset) -> xr.Dataset:
    """Return what was measured by the trial, with 0 at the end of the first list."""
    before = json.loads(sweep.attrs["config"])["batches"]["num_epochs"][0]
    of = sweep.rename(answers_step="trial")
    return of.assign_coords(trial=np.arange(of.sizes["trial"]) - before)


def _of_lists(classical: xr.Dataset, clauses: xr.Dataset) -> xr.Dataset:
    classical, clauses = map(_trials, (classical, clauses))
    shares = [
        [classical[f"{name}_{criterion}"].mean(f"{name}_example") for name in LISTS] for criterion in CRITERIA
    ]
    errors = [classical[f"{name}_squared_error"].mean(f"{name}_example") / _NUM_UNITS for name in LISTS]
    lists, criteria = xr.Variable("list", list(LISTS)), xr.Variable("criterion", list(CRITERIA))
    share = xr.concat([xr.concat(of, lists) for of in shares], criteria)
    sets = [clauses[f"{name}_right_side"].mean(f"{name}_example") for name in (*LISTS, "pairs")]
    wrong = as_the_other(classical.sel(order="ones first", drop=True))
    late = wrong.where(wrong["trial"] >= _LATE)
    forgotten = share.sel(criterion="best_match", drop=True)
    gap = forgotten.sel(order="ones first", list="ones", drop=True) - forgotten.sel(
        order="twos first", list="twos", drop=True
    )
    found = xr.Dataset(
        {
            "classical_share": over_seeds(share),
            "unit_error": over_seeds(xr.concat(errors, lists)),
            "as_other": over_seeds(late.mean("trial")),
            "clauses_share": over_seeds(xr.concat(sets, xr.Variable("set", [*LISTS, "pairs"]))),
            "pairs_after": sets[-1].isel(trial=-1, drop=True),
            "order_gap": gap.mean("seed"),
            "order_gap_error": gap.std("seed", ddof=1) / gap.sizes["seed"] ** 0.5,
        }
    )
    within = share.sel(order="ones first", criterion="within_tenth", list="ones", drop=True)
    found["trials_until_learned"] = first_where(within == 1, "trial")
    return found


def first_where(holds: xr.DataArray, dim: str) -> xr.DataArray:
    """Return how many places along a dimension come before the first where something holds, NaN for never.

    >>> first_where(xr.DataArray([False, True, False, True], dims="trial"), "trial").item()
    1.0
    """
    return holds.argmax(dim).where(holds.any(dim)).astype(float)


def as_the_other(classical: xr.Dataset) -> xr.DataArray:
    """Return the share of wrong answers to ones that would be right of twos; NaN where none is wrong."""
    tests = facts().test
    known = np.concatenate([_sums(tests[name].labels) for name in sorted(tests)])
    answered = classical["ones_answer"].copy(data=known[classical["ones_answer"].values.astype(int)])
    wrong = classical["ones_best_match"] == 0
    is_other = answered == xr.DataArray(_sums(tests["ones"].labels) + 1, dims="ones_example")
    return (is_other & wrong).sum("ones_example") / wrong.sum("ones_example")


def _sums(labels: Array) -> np.ndarray:
    """Return the numbers that targets in the coarse code are of."""
    tens, ones = np.split(np.asarray(labels[:, 1:]) > 0.5, 2, axis=1)
    return 10 * tens.argmax(axis=1) + ones.argmax(axis=1)


def _of_pairs(sweep: xr.Dataset) -> xr.Dataset:
    right = sweep["pairs_right_side"].rename(answers_step="additions")
    share = right.mean("pairs_example")
    solved = share == 1
    backwards = slice(None, None, -1)  # from where on all pairs are right, to the end
    to_the_end = solved.isel(additions=backwards).cumprod("additions").isel(additions=backwards)
    spacing = int(right["additions"][1] - right["additions"][0])
    one = right.isel(tied=0, initial_scale=0, learning_rate=0).mean("seed")
    at = [n for n in _SHOWN if n <= int(right["additions"][-1])]
    side = int(right.sizes["pairs_example"] ** 0.5)
    drawn = one.sel(additions=at).transpose("additions", ...).values.reshape(len(at), side, side)
    return xr.Dataset(
        {
            "pairs_share": over_seeds(share),
            "pairs_solved": solved.isel(additions=-1).mean("seed"),
            "additions_until": spacing * first_where(to_the_end == 1, "additions"),
            "pairs_right": (("shown", "a", "b"), drawn),
        },
        {"shown": at},
    )


def _of_turns(sweep: xr.Dataset) -> xr.Dataset:
    """Return of the last cycle of each period the lowest share of a list, and the mean over both."""
    shares = [sweep[f"{name}_best_match"].mean(f"{name}_example") for name in LISTS]
    both = xr.concat(shares, xr.Variable("list", list(LISTS)))
    last = both["answers_step"] > both["answers_step"][-1] - 2 * sweep["period"]
    of = both.where(last)
    found = {
        "turns_lowest": of.min(("answers_step", "list")),
        "turns_mean": of.mean(("answers_step", "list")),
    }
    return xr.Dataset({name: over_seeds(of) for name, of in found.items()})


def curvature(
    name: str,
    sharpness: Float[np.ndarray, "seeds trials"],
    kernels: Float[np.ndarray, "seeds trials examples examples"],
    num_before: int,
) -> xr.Dataset:
    """Return a network's sharpness and the alignment of both lists' kernels `over_seeds`, by the trial.

        |K_12| / sqrt(|K_11| |K_22|),    K of the examples of the first list, then of the second

    Trial 0 is the end of the first list, which has `num_before`.
    """
    half = kernels.shape[-1] // 2
    one, both, other = (
        np.linalg.norm(kernels[..., rows, columns], axis=(-2, -1))
        for rows, columns in (
            (slice(half), slice(half)),
            (slice(half), slice(half, None)),
            (slice(half, None),) * 2,
        )
    )
    along = {"trial": np.arange(kernels.shape[1]) - num_before}
    found = {"alignment": both / np.sqrt(one * other), "sharpness": sharpness}
    return xr.Dataset(
        {
            f"{name}_{key}": over_seeds(xr.DataArray(values, along, ("seed", "trial")))
            for key, values in found.items()
        }
    )


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the published numbers against those found, what the clauses learn, and lists in turn."""
    return {
        "ones while twos are learned": _criteria(found),
        "classical network": _classical(found),
        "curvature": _curvature(found),
        "clauses": _clauses(found),
        "random additions": _additions(found),
        "in turn": _turns(found),
    }


def _criteria(found: xr.Dataset) -> list[tuple[str, ...]]:
    shares = 100 * found["classical_share"].sel(order="ones first", list="ones")
    trials = [n for n in (*PUBLISHED, 25) if n in found["trial"]]
    rows = [("right of ones, %", *(f"after {n} of twos" for n in trials))]
    for name in CRITERIA:
        spreads = (_spread(shares.sel(criterion=name, trial=n)) for n in trials)
        rows.append((name.replace("_", " "), *spreads))
    rows.append(("best match, 1989, two runs", *(str(PUBLISHED.get(n, "")) for n in trials)))
    gap, error = 100 * found["order_gap"], 100 * found["order_gap_error"]
    gaps = (f"{float(gap.sel(trial=n)):+.0f} ± {float(error.sel(trial=n)):.1f}" for n in trials)
    return [*rows, ("ones minus twos if those come first, points ± error", *gaps)]


def _classical(found: xr.Dataset) -> list[tuple[str, ...]]:
    match, errors = found["classical_share"].sel(criterion="best_match"), found["unit_error"]
    first = dict(order="ones first", list="ones")
    published = [
        (f"best match of ones, %, trials of twos: {n}", of, 100 * match.sel(first | {"trial": n}), 0)
        for n, of in PUBLISHED.items()
        if n
    ]
    published += [
        (f"squared error of ones, a unit, trials of twos: {n}", of, errors.sel(first | {"trial": n}), 4)
        for n, of in enumerate(ERRORS)
    ]
    rows = [("quantity", "1989, one run", "found, mean ± sd over seeds", "published is off by")]
    for words, number, of, digits in published:
        rows.append((words, f"{number}", _spread(of, digits), f"{_off(number, of):+.1f} sd"))
    learned = found["trials_until_learned"].dropna("seed")
    never, until = 1 - learned.size / found.sizes["seed"], ("no seed", "")
    if learned.size:
        spread = over_seeds(learned)
        until = _spread(spread), " to ".join(f"{_off(of, spread):+.1f}" for of in _UNTIL) + " sd"
    wrong = f"wrong answers to ones that are right of twos, from trial {_LATE} on, %"
    return [
        *rows,
        ("trials of ones until all are within .1", "15 to 35", *until),
        ("  seeds that are not before twos begin, %", "", f"{100 * never:.0f}", ""),
        (wrong, "most", _spread(100 * found["as_other"]), ""),
    ]


def _off(number: float, of: xr.DataArray) -> float:
    return (number - float(of.sel(band="mean"))) / float(of.sel(band="sd"))


def _clauses(found: xr.Dataset) -> list[tuple[str, ...]]:
    rows = [("right, %", "free", "tied")]
    for words, trial in (("after ones, before twos", 0), ("after twos", found["trial"].values[-1])):
        for name in found["set"].values:
            shares = 100 * found["clauses_share"].sel(set=name, trial=trial)
            rows.append((f"{name} {words}", *(_spread(shares.sel(tied=tied)) for tied in (False, True))))
    rows.append(("pairs without the clause that no list has", *[f"{100 * float(found['bound']):.1f}"] * 2))
    after = 100 * found["pairs_after"]
    above = 100 * (found["pairs_after"] > found["bound"] + 1e-6).mean("seed")
    rows.append(("  seeds that are right on more, by luck", *(f"{float(of):.0f}" for of in above)))
    rows.append(("  most pairs of any seed", *(f"{float(of):.1f}" for of in after.max("seed"))))
    return rows


def _curvature(found: xr.Dataset) -> list[tuple[str, ...]]:
    trials = [n for n in (0, 1, 5) if n in found["trial"]]
    rows = [("of both lists", *(f"after {n} of twos" for n in trials))]
    for quantity, digits in (("alignment", 2), ("sharpness", 4)):
        for name in ("classical", "clauses"):
            of = found[f"{name}_{quantity}"]
            rows.append((f"{quantity}, {name}", *(_spread(of.sel(trial=n), digits) for n in trials)))
    return rows


def _additions(found: xr.Dataset) -> list[tuple[str, ...]]:
    rows = [
        ("first parameters, η", "clauses", "seeds right in the end, %", "additions until then: half, all")
    ]
    until, solved = found["additions_until"], found["pairs_solved"]
    for scale in found["initial_scale"].values:
        for rate in found["learning_rate"].values:
            for tied, words in ((False, "free"), (True, "tied")):
                at = dict(initial_scale=scale, learning_rate=rate, tied=tied)
                of = until.sel(at)
                half, every = float(of.median()), float(of.max())
                share = f"{100 * float(solved.sel(at)):.0f}"
                rows.append((f"sd {scale:g}, η {rate:g}", words, share, f"{half:.0f}, {every:.0f}"))
    return rows


def _turns(found: xr.Dataset) -> list[tuple[str, ...]]:
    quantities = {"lowest": found["turns_lowest"], "both": found["turns_mean"]}
    columns = [(amplitude, name) for amplitude in found["amplitude"].values for name in quantities]
    rows = [("steps of a turn", *(f"A = {amplitude:g}: {name}, %" for amplitude, name in columns))]
    for period in found["period"].values:
        cells = [quantities[name].sel(period=period, amplitude=amplitude) for amplitude, name in columns]
        rows.append((f"{period:g}", *(_spread(100 * cell) for cell in cells)))
    return rows


def _spread(of: xr.DataArray, digits: int = 0) -> str:
    mean, deviation = (float(of.sel(band=band)) for band in ("mean", "sd"))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
