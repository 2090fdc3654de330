"""What networks that add forget of one list of facts while they learn another."""

import json
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from dlf import outputs
from dlf.data import facts
from dlf.types import Model, Params

CRITERIA = ("within_tenth", "right_side", "best_match")
LISTS = ("ones", "twos")
_SHOWN = (5, 20, 100)  # additions after which the pairs are drawn
_NUM_UNITS = 24
_LATE = 10  # trials of twos, from when on wrong answers are looked at
# Of one run each, MC: best match of ones in % after so many trials of twos, squared errors a unit before and
# after one trial.
PUBLISHED = {1: 57, 2: 30}
_ERRORS = (0.0015, 0.0453)


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put together shares of right answers over trials, additions and periods, and the curvature.

    `classical_share` [criterion, list, order, trial] and `clauses_share` [set, tied, trial], with trial 0 at
    the end of the first list; `pairs_share` [tied, initial_scale, learning_rate, additions] of all pairs of 5
    bits; `turns_lowest` and `turns_mean` [amplitude, period] of the last cycle under a loss that emphasises a
    list at a time: all of them `over_seeds`. Of one run of each network sharpness and alignment of kernels.
    """
    found = _of_lists(results["classical"], results["clauses"])
    for more in (_of_pairs(results["pairs"]), _of_turns(results["turns"]), results["measured"]):
        found = found.merge(more, combine_attrs="override")
    for name in ("classical", "clauses"):
        found = found.merge(_of_run(name, results[f"{name}_run"]), combine_attrs="override")
    return found.assign(bound=bound())


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
    wrong = _as_the_other(classical.sel(order="ones first", drop=True))
    late = wrong.where(wrong["trial"] >= _LATE)
    found = xr.Dataset(
        {
            "classical_share": over_seeds(share),
            "unit_error": over_seeds(xr.concat(errors, lists)),
            "as_other": over_seeds(late.mean("trial")),
            "clauses_share": over_seeds(xr.concat(sets, xr.Variable("set", [*LISTS, "pairs"]))),
        }
    )
    learned = share.sel(order="ones first", criterion="within_tenth", list="ones") == 1
    first = learned.argmax("trial").where(learned.any("trial"))
    found["trials_until_learned"] = first
    return found


def _as_the_other(classical: xr.Dataset) -> xr.DataArray:
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
    # from where on all pairs are right, to the end
    from_here = (
        solved.isel(additions=slice(None, None, -1))
        .cumprod("additions")
        .isel(additions=slice(None, None, -1))
    )
    first = right["additions"].values[from_here.argmax("additions")]
    one = right.isel(tied=0, initial_scale=0, learning_rate=0).mean("seed")
    at = [n for n in _SHOWN if n <= int(right["additions"][-1])]
    side = int(right.sizes["pairs_example"] ** 0.5)
    drawn = one.sel(additions=at).transpose("additions", ...).values.reshape(len(at), side, side)
    dims = from_here.isel(additions=0).dims
    return xr.Dataset(
        {
            "pairs_share": over_seeds(share),
            "pairs_solved": solved.isel(additions=-1).mean("seed"),
            "additions_until": (dims, np.where(from_here.any("additions").transpose(*dims), first, np.nan)),
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


def _of_run(name: str, run: xr.Dataset) -> xr.Dataset:
    """Return sharpness and alignment of the lists' kernels by the trial: |K_12| / sqrt(|K_11| |K_22|)."""
    kernels = run["empirical_ntk"].transpose("kernel_step", ...).values
    half = kernels.shape[1] // 2
    one, both, other = (
        np.linalg.norm(kernels[:, rows, columns], axis=(1, 2))
        for rows, columns in (
            (slice(half), slice(half)),
            (slice(half), slice(half, None)),
            (slice(half, None),) * 2,
        )
    )
    before = json.loads(run.attrs["config"])["batches"]["num_epochs"][0]
    sharpness = run["hessian_eigenvalues"].isel(rank=0).values
    return xr.Dataset(
        {
            f"{name}_alignment": ("trial", both / np.sqrt(one * other)),
            f"{name}_sharpness": ("trial", sharpness, {"units": "nat"}),
        },
        {"trial": np.arange(len(kernels)) - before},
    )


def longer_numbers(model: Model, learned: Sequence[Params], bits: Iterable[int]) -> xr.Dataset:
    """Return what networks of clauses have learned, and the share of right additions of longer numbers.

    `clause` [network, of, carry, bit_a, bit_b], sigma of the parameters; `longer_share` [bits, network].
    """
    rng, shares = np.random.default_rng(0), []
    of_all = jax.tree.map(lambda *leaves: jnp.stack(leaves), *learned)

    @jax.jit
    def right(inputs, labels):
        logits = jax.vmap(model.apply, in_axes=(0, None, None))(of_all, (), inputs)
        return jax.vmap(outputs.right_side, in_axes=(0, None))(logits, labels).mean(axis=1)

    for num in (bits := list(bits)):
        pairs, places = rng.integers(0, 2**num, (200, 2)), np.arange(num + 1)
        inputs = jnp.asarray(pairs[:, None, :] >> places[:, None] & 1, float)
        digits = pairs.sum(axis=1)[:, None] >> places & 1
        labels = jnp.asarray(np.column_stack([np.zeros(len(pairs)), digits]), float)
        shares.append(np.asarray(right(inputs, labels), float))
    tables = [[1 / (1 + np.exp(-np.asarray(p[name]))) for name in ("digit", "carry")] for p in learned]
    return xr.Dataset(
        {
            "clause": (("network", "of", "carry", "bit_a", "bit_b"), np.asarray(tables)),
            "longer_share": (("bits", "network"), np.asarray(shares)),
        },
        {"of": ["digit", "carry"], "bits": bits},
    )


def bound(num_bits: int = 5) -> float:
    """Return the share of all pairs that never meet the clause (1, 1, carry 1), by counting.

    >>> round(bound(), 3)
    0.708
    """
    numbers = np.arange(2**num_bits)
    a, b = np.meshgrid(numbers, numbers)
    carry, met = np.zeros_like(a), np.zeros(a.shape, bool)
    for place in range(num_bits):
        of = (a >> place & 1) + (b >> place & 1) + carry
        met |= of == 3
        carry = of // 2
    return float(1 - met.mean())


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return the published numbers against those found, what the clauses learn, and lists in turn."""
    return {"classical network": _classical(found), "clauses": _clauses(found), "in turn": _turns(found)}


def _classical(found: xr.Dataset) -> list[tuple[str, ...]]:
    match, errors = found["classical_share"].sel(criterion="best_match"), found["unit_error"]
    first, other = dict(order="ones first", list="ones"), dict(order="twos first", list="twos")
    published = [
        (f"ones, best match after {n} trials of twos, %", of, 100 * match.sel(first | {"trial": n}))
        for n, of in PUBLISHED.items()
    ]
    published += [
        (f"squared error of ones, a unit, after {n} trials", of, errors.sel(first | {"trial": n}))
        for n, of in enumerate(_ERRORS)
    ]
    rows = [("quantity", "1989, one run", "found, mean ± sd over seeds", "published is off by")]
    for words, number, of in published:
        off = (number - float(of.sel(band="mean"))) / float(of.sel(band="sd"))
        rows.append((words, f"{number}", _spread(of), f"{off:+.1f} sd"))
    for n in PUBLISHED:
        words = f"the other way round: twos after {n} trials of ones, %"
        rows.append((words, "", _spread(100 * match.sel(other | {"trial": n})), ""))
    learned = found["trials_until_learned"].dropna("seed")
    never = 1 - learned.size / found.sizes["seed"]
    words = f"never {never:.0%}"
    if learned.size:
        words = f"{float(learned.median()):.0f}, {int(learned.min())} to {int(learned.max())}, {words}"
    wrong = f"wrong answers to ones that are right of twos, from trial {_LATE} on, %"
    return [
        *rows,
        ("trials of ones until all are within .1", "15 to 35", words, ""),
        (wrong, "most", _spread(100 * found["as_other"]), ""),
    ]


def _clauses(found: xr.Dataset) -> list[tuple[str, ...]]:
    rows = [("right, %", "free", "tied")]
    for words, trial in (("after ones, before twos", 0), ("after twos", found["trial"].values[-1])):
        for name in found["set"].values:
            shares = 100 * found["clauses_share"].sel(set=name, trial=trial)
            rows.append((f"{name} {words}", *(_spread(shares.sel(tied=tied)) for tied in (False, True))))
    rows.append(("pairs that the lists can teach, by counting", *[f"{100 * float(found['bound']):.1f}"] * 2))
    until, solved = found["additions_until"], found["pairs_solved"]
    for scale in found["initial_scale"].values:
        for rate in found["learning_rate"].values:
            at = [dict(initial_scale=scale, learning_rate=rate, tied=tied) for tied in (False, True)]
            words = [f"{100 * float(solved.sel(of)):.0f}, {float(until.sel(of).median()):.0f}" for of in at]
            rows.append(
                (f"seeds right on all pairs, additions until then: scale {scale:g}, η {rate:g}", *words)
            )
    return rows


def _turns(found: xr.Dataset) -> list[tuple[str, ...]]:
    quantities = {"lowest": found["turns_lowest"], "both": found["turns_mean"]}
    columns = [(amplitude, name) for amplitude in found["amplitude"].values for name in quantities]
    rows = [("steps of a turn", *(f"A = {amplitude:g}: {name}, %" for amplitude, name in columns))]
    for period in found["period"].values:
        cells = [quantities[name].sel(period=period, amplitude=amplitude) for amplitude, name in columns]
        rows.append((f"{period:g}", *(_spread(100 * cell) for cell in cells)))
    return rows


def _spread(of: xr.DataArray) -> str:
    mean, deviation = (float(of.sel(band=band)) for band in ("mean", "sd"))
    digits = 4 if 0 < mean < 0.1 else 0
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
