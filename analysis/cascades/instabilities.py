"""A table of instabilities: when each began and ended, at which sharpness, how deep it went, what it did."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from analysis.cascades.periods import (
    CATAPULT,
    CHAOS,
    GROWING,
    IRREGULAR,
    UNDEFINED,
    Windows,
    alternating_part,
    name,
)

_MERGED = 2  # quiet windows between two parts of one instability
_BLOCK = 8  # steps over which an amplitude is averaged
_OUTGROWN = 10.0  # times what an alternation was before: it grows by itself
_VISIBLE = 0.01  # of the loss: the end of the growth
_RAISED = 2.0  # times the least before its peak: the loss in a catapult
# in the order of a cascade
_DEPTHS = (1, GROWING, CATAPULT, IRREGULAR, 2, 4, 8, 16, CHAOS)


class Instability(NamedTuple):
    """One departure from period 1 and the return to it.

    Since the sharpness alternates with the loss, its mean over two consecutive steps is taken throughout, NaN
    where it was not measured. What an alternation is ten times of may be rounding, so that the onset depends
    on the precision; where it is visible does not. A catapult has none: its onset is where the loss is twice
    its least before the peak, its growth, up to the peak, half that of the loss, which is quadratic in what
    grows. The budget is less than the growth where an alternation is driven, and rises with the sharpness
    before it grows by itself.
    """

    onset: int  # step at which the alternation is ten times what was there before, or see above
    visible: int  # step at which the alternation is a hundredth of the loss, -1 if it never is
    end: int  # step of the return
    emphasised: int  # class with the largest weight at the onset, -1 if all are alike
    phase: float  # the part of its turn that has gone at the onset, 0 to 1
    sharpness: float  # at the onset, in nat
    threshold: float  # of the optimizer, in nat
    crossing: int  # first step measured in the instability at which the sharpness exceeds it, -1 if none
    deepest: str  # the last label of the cascade that it reached
    growth_steps: int  # from the onset until the alternation is a hundredth of the loss
    growth: float  # log of the factor by which it grew in these steps
    budget: float  # of plain gradient descent, in nat: sum of log |1 - eta lambda| over these steps
    ntk_drop: float  # 1 - after / before of the NTK's largest eigenvalue
    accuracy_before: float  # mean over the window before the onset
    accuracy_after: float  # mean over the window after the end


def find(windows: Windows) -> list[slice]:
    """Return the windows of every instability: those that are not period 1, with pauses up to two windows.

    >>> from analysis.cascades.periods import label
    >>> n = np.arange(512)
    >>> windows = label(1.0 + 0.1 * (-1.0) ** n * ((n >= 128) & (n < 256)))
    >>> find(windows)
    [slice(2, 4, None)]
    """
    away = np.flatnonzero((windows.labels != 1) & (windows.labels != UNDEFINED))
    if not len(away):
        return []
    parts = np.split(away, np.flatnonzero(np.diff(away) > _MERGED + 1) + 1)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def table(
    run: xr.Dataset,
    windows: Windows,
    sharpness: xr.DataArray,
    *,
    threshold: float | Float[np.ndarray, " steps"],
    steps_per_turn: int,
    learning_rate: float | Float[np.ndarray, " steps"] | None = None,
) -> list[Instability]:
    """Return all instabilities of a run, in the order of time.

    `run` holds `loss`, `accuracy`, `class_weights` and, if measured, `ntk_eigenvalues`, as `dlf.store.load`
    gives them; `windows` are the labels of its loss; `sharpness` [step] the largest eigenvalue where it was
    measured. `threshold` and `learning_rate` are numbers, or series where they move; the latter is that of
    plain gradient descent, None for others, which have no budget.
    """
    loss, width = run["loss"].values, windows.width
    threshold = np.broadcast_to(threshold, loss.shape)
    known = sharpness.astype(float).reindex(step=np.arange(len(loss) + 1)).values
    known = (known[:-1] + known[1:]) / 2
    ntk = run["ntk_eigenvalues"].sel(rank=0) if "ntk_eigenvalues" in run else None
    rows = []
    for part in find(windows):
        end = int(windows.first_step[part.stop - 1]) + width
        onset, peak = _onset(loss, windows, part)
        first = max(int(windows.first_step[part.start]) - width, 0)
        above = np.flatnonzero(known[first:end] > threshold[first:end])
        crossing = first + int(above[0]) if len(above) else -1
        weights = run["class_weights"].values[onset]
        emphasised = int(np.argmax(weights)) if np.ptp(weights) > 0 else -1
        phase = onset % steps_per_turn / steps_per_turn
        at_onset = emphasised, phase, float(known[onset]), float(threshold[onset])
        deepest = name(max(windows.labels[part], key=_DEPTHS.index))
        budget = np.nan
        if learning_rate is not None and peak > onset:
            rate = np.broadcast_to(learning_rate, loss.shape)[onset:peak]
            budget = float(np.sum(np.log(np.abs(1 - rate * known[onset:peak]))))
        is_catapult = windows.labels[part.start] == CATAPULT
        growth = peak - onset, _log_ratio(loss, onset, peak, is_catapult), budget
        before, after = (max(onset - width, 0), onset), (end, end + width)
        drop = np.nan if ntk is None else 1 - _mean(ntk, *after) / _mean(ntk, *before)
        accuracies = _mean(run["accuracy"], *before), _mean(run["accuracy"], *after)
        rows.append(
            Instability(
                onset,
                _visible(loss, windows, part),
                end,
                *at_onset,
                crossing,
                deepest,
                *growth,
                drop,
                *accuracies,
            )
        )
    return rows


def onsets(loss: Float[np.ndarray, " steps"], windows: Windows) -> list[int]:
    """Return the onset of every instability (see `Instability`), in the order of `find`."""
    return [_onset(loss, windows, part)[0] for part in find(windows)]


def visible_onsets(loss: Float[np.ndarray, " steps"], windows: Windows) -> list[int]:
    """Return the step at which the alternation of every instability is a hundredth of the loss.

    -1 where it never is; in the order of `find`. Unlike the onset it does not depend on the rounding of the
    precision.

    >>> from analysis.cascades.periods import label
    >>> n = np.arange(1024)
    >>> loss = 1.0 + np.minimum(1e-9 * np.exp(0.04 * n), 0.1) * (-1.0) ** n
    >>> visible_onsets(loss, label(loss))  # 1e-9 exp(0.04 n) is a hundredth at n = 403
    [402]
    """
    return [_visible(loss, windows, part) for part in find(windows)]


def onset_windows(windows: Windows, part: slice) -> slice:
    """Return those windows of an instability, at least the first, in which it grows out of period 1."""
    growing = np.isin(windows.labels[part], (GROWING, CATAPULT))
    num = len(growing) if growing.all() else max(int(np.argmin(growing)), 1)
    return slice(part.start, part.start + num)


def _onset(loss, windows, part):
    """Return the step at which an alternation is ten times what it was, and the step at which it is visible.

    What it was is its median over the window before its windows. Rounding and the kinks of a ReLU drive an
    alternation that grows already as the multiplier comes near -1, by 1 / sqrt(1 - mu^2): 10 times at
    mu = -0.995. Visible is a hundredth of the loss, or the largest in these windows: beyond, it saturates.
    """
    first, width = onset_windows(windows, part), windows.width
    start, stop = (int(windows.first_step[0]) + width * i for i in (first.start, first.stop))
    if windows.labels[first.start] == CATAPULT:
        first = max(start - width, 0)
        peak = start + int(np.argmax(loss[start:stop]))
        least = first + int(np.argmin(loss[first : peak + 1]))
        return least + int(np.argmax(loss[least : peak + 1] > _RAISED * loss[least])), peak
    if windows.labels[first.start] != GROWING:  # a burst, which may have begun in the window before
        start -= width
    first = max(start - width, 2)
    blocks, is_visible = _blocks(loss, first, stop)
    visible = np.flatnonzero(is_visible)
    end = int(visible[0]) if len(visible) else int(np.argmax(blocks))
    small = np.flatnonzero(blocks[: end + 1] <= _OUTGROWN * np.median(blocks[: width // _BLOCK]))
    onset = int(small[-1]) + 1 if len(small) else 0
    return first + min(onset, end) * _BLOCK, first + end * _BLOCK


def _visible(loss, windows, part):
    """Return the step at which an alternation is visible, from the window before an instability on."""
    start, stop = (int(windows.first_step[0]) + windows.width * i for i in (part.start - 1, part.stop))
    start = max(start, 2)
    visible = np.flatnonzero(_blocks(loss, start, stop)[1])
    return start + int(visible[0]) * _BLOCK if len(visible) else -1


def _blocks(loss, start, stop):
    """Return the mean size of the alternation in each block of steps, and whether it is visible."""
    size = np.abs(alternating_part(loss[start - 2 : stop + 2]))
    num = len(size) // _BLOCK
    blocks = np.nan_to_num(size[: num * _BLOCK].reshape(num, _BLOCK).mean(axis=1))
    level = loss[start : start + num * _BLOCK].reshape(num, _BLOCK).mean(axis=1)
    return blocks, blocks > _VISIBLE * np.abs(level)


def _log_ratio(loss, onset, peak, of_loss):
    if peak <= onset:  # faster than can be resolved
        return np.nan
    if of_loss:
        return float(np.log(loss[peak] / loss[onset]) / 2)
    ends = [np.abs(alternating_part(loss[max(s - 2, 0) : s + _BLOCK + 2])).mean() for s in (onset, peak)]
    return float(np.log(ends[1] / ends[0])) if min(ends) > 0 else np.nan


def _mean(series, start, stop):
    steps = series[series.dims[0]].values
    part = series.values[(steps >= start) & (steps < stop)]
    return float(np.mean(part)) if len(part) else np.nan
