"""What networks that add have learned and forgotten as tables, beside the published numbers."""

import xarray as xr

from analysis.findings.diagrams import mean_error
from analysis.findings.forgetting import CRITERIA, LATE

# McCloskey and Cohen 1989: best match of ones in % after so many trials of twos, in two runs; squared errors
# a unit before and after one trial; trials of ones until all outputs are within .1.
PUBLISHED = {0: 100, 1: 57, 2: 30}
ERRORS, _UNTIL = (0.0015, 0.0453), (15, 35)


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
    rows.append(("best match, 1989", *(str(PUBLISHED.get(n, "")) for n in trials)))
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
    rows = [("quantity", "1989", "found, mean ± sd over seeds", "published is off by")]
    for words, number, of, digits in published:
        rows.append((words, f"{number}", _spread(of, digits), f"{_off(number, of):+.1f} sd"))
    never, until = float(found["trials_until_learned"].isnull().mean()), ("no seed", "")
    if never < 1:
        spread = found["trials_learned"]
        until = _spread(spread), " to ".join(f"{_off(of, spread):+.1f}" for of in _UNTIL) + " sd"
    wrong = f"wrong answers to ones that are right of twos, from trial {LATE} on, %"
    return [
        *rows,
        ("trials of ones until all tested are within .1", "15 to 35", *until),
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
    change = after - 100 * found["pairs_before"]
    mean, error = mean_error(change)
    changes = (f"{float(m):+.2f} ± {float(e):.2f}" for m, e in zip(mean, error, strict=True))
    rows.append(("  change with the twos, points ± error", *changes))
    for words, of in (("better", change > 0), ("worse", change < 0)):
        rows.append((f"  seeds that are {words} after the twos", *(f"{int(n)}" for n in of.sum("seed"))))
    return rows


def _curvature(found: xr.Dataset) -> list[tuple[str, ...]]:
    trials = [n for n in (0, 1, 5) if n in found["trial"]]
    rows = [("of both lists", *(f"after {n} of twos" for n in trials))]
    for quantity, digits in (("alignment", 2), ("kernel", 4), ("sharpness", 4)):
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
                half, every = float(found["additions_half"].sel(at)), float(of.max())
                share = f"{100 * float(solved.sel(at)):.0f}"
                rows.append((f"sd {scale:g}, η {rate:g}", words, share, f"{half:.0f}, {every:.0f}"))
    return rows


def _turns(found: xr.Dataset) -> list[tuple[str, ...]]:
    amplitudes = found["amplitude"].values
    words = "list right least, %", "error a unit, 1e-4"
    rows = [("steps of a turn", *(f"A = {amplitude:g}: {of}" for of in words for amplitude in amplitudes))]
    for period in found["period"].values:
        of = [found[name].sel(period=period) for name in ("turns_lowest", "turns_error")]
        shares, errors = ([cells.sel(amplitude=amplitude) for amplitude in amplitudes] for cells in of)
        cells = *(_spread(100 * of) for of in shares), *(_spread(1e4 * of, 1) for of in errors)
        rows.append((f"{period:g}", *cells))
    return rows


def _spread(of: xr.DataArray, digits: int = 0) -> str:
    mean, deviation = (float(of.sel(band=band)) for band in ("mean", "sd"))
    return f"{round(mean, digits) + 0.0:.{digits}f} ± {deviation:.{digits}f}"  # no minus before a zero
