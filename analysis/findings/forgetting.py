"""What networks that add forget of one list of facts while they learn another."""

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from analysis.findings import adders
from analysis.findings.diagrams import mean_error
from dlf.data import facts

CRITERIA = ("within_tenth", "right_side", "best_match")
LISTS = ("ones", "twos")
_SHOWN = (5, 20, 100)  # additions after which the pairs are drawn
_NUM_UNITS = 24
LATE = 10  # trials of twos, from when on wrong answers are looked at


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put together shares of right answers over trials, additions and periods, and the curvature.

    Along `band`, `over_seeds`: `classical_share` [criterion, list, order, trial] and `unit_error` [list,
    order, trial], with trial 0 at the end of the first list, `as_other`, what share of the wrong answers to
    ones is right of twos; `clauses_share` [set, tied, trial]; `pairs_unseen` [tied, initial_scale,
    learning_rate, additions] of the pairs of 5 bits that have not been shown, at least: what was shown is
    taken to be right; of the last cycle under a loss that emphasises a list at a time `turns_lowest`
    [amplitude, period], the share of the list that is right least, and `turns_error`, the squared error a
    unit of both; of each network by the trial what `curvature` returns; `trials_learned` of
    the seeds that learn. For each seed `trials_until_learned`, `additions_until`, `pairs_before` and
    `pairs_after` [tied], the share of pairs before and after the second list. Over all seeds `order_gap`
    [trial], by how much more of twos is forgotten than of ones, with its standard error; `additions_half`,
    the median of those that solve all pairs; `pairs_solved`, the share of seeds; `pairs_right` [shown, a, b];
    `clause` and `longer_share` as in `adders.longer_numbers`; `bound`.
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
    late = wrong.where(wrong["trial"] >= LATE)
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
            "pairs_before": sets[-1].sel(trial=0, drop=True),
            "pairs_after": sets[-1].isel(trial=-1, drop=True),
        }
    )
    found["order_gap"], found["order_gap_error"] = mean_error(gap)
    within = share.sel(order="ones first", criterion="within_tenth", list="ones", drop=True)
    found["trials_until_learned"] = first_where(within == 1, "trial")
    learned = found["trials_until_learned"].dropna("seed")
    return found.assign(trials_learned=over_seeds(learned)) if learned.size else found


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
    num, shown = right.sizes["pairs_example"], right["additions"]  # each once
    unseen = (num * share - shown).clip(0) / (num - shown)
    side = int(num**0.5)
    drawn = one.sel(additions=at).transpose("additions", ...).values.reshape(len(at), side, side)
    until = spacing * first_where(to_the_end == 1, "additions")
    return xr.Dataset(
        {
            "pairs_unseen": over_seeds(unseen),
            "pairs_solved": solved.isel(additions=-1).mean("seed"),
            "additions_until": until,
            "additions_half": until.median("seed"),
            "pairs_right": (("shown", "a", "b"), drawn),
        },
        {"shown": at},
    )


def _of_turns(sweep: xr.Dataset) -> xr.Dataset:
    """Return of the last cycle of each period the lowest share of a list, and the error of both."""
    last = sweep["answers_step"] > sweep["answers_step"][-1] - 2 * sweep["period"]

    def both(criterion):
        of = [sweep[f"{name}_{criterion}"].mean(f"{name}_example") for name in LISTS]
        return xr.concat(of, xr.Variable("list", list(LISTS))).where(last)

    along = "answers_step", "list"
    found = {
        "turns_lowest": both("best_match").min(along),
        "turns_error": both("squared_error").mean(along) / _NUM_UNITS,
    }
    return xr.Dataset({name: over_seeds(of) for name, of in found.items()})


def curvature(
    name: str,
    sharpness: Float[np.ndarray, "seeds trials"],
    kernels: Float[np.ndarray, "seeds trials examples examples"],
    num_before: int,
) -> xr.Dataset:
    """Return a network's sharpness and its kernel's size and alignment `over_seeds`, by the trial.

        lambda_max(K),   |K_12| / sqrt(|K_11| |K_22|),    K of the examples of the first list, then the second

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
    found = {
        "alignment": both / np.sqrt(one * other),
        "kernel": np.linalg.eigvalsh(kernels)[..., -1],
        "sharpness": sharpness,
    }
    return xr.Dataset(
        {
            f"{name}_{key}": over_seeds(xr.DataArray(values, along, ("seed", "trial")))
            for key, values in found.items()
        }
    )
