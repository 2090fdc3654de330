"""Label every window of a series with its period.

A window is read as p interleaved branches, each a straight line in time on top of one smooth drift: drifts,
branches that cross, and noise well below their distance change no period.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

PERIODS = (1, 2, 4, 8, 16)
# the labels that are no period
GROWING, CHAOS, IRREGULAR, UNDEFINED, CATAPULT = -1, -2, -3, -4, -5
_NAMES = {
    GROWING: "growing", CHAOS: "chaos", IRREGULAR: "irregular", UNDEFINED: "undefined", CATAPULT: "catapult"
}  # fmt: skip

_ROUNDING = 1e3  # eps: an alternation below it, relative to the values, is none
_RESOLUTION = 0.005  # a finer splitting of branches than this part of their spread is not looked for
_LOOSE = 0.5  # of the spread: where branches explain less, they are none
_ONSET = 2.0  # factor over a window by which an alternation grows in an onset
_BLOCK = 16  # steps: of all periods, so that block means do not alternate
_IN_A_ROW, _IN_ALL = 5, 8  # changes of sign that no kink, jump or spike makes
_SMOOTH = 7  # changes of sign about a drift in 64 steps: of a rotation of period 16 there are 8
_CATAPULT = 2.0  # factor by which a loss rises that should fall
_DRIFT = 4  # degree of the polynomial that a smooth drift is within a window


class Windows(NamedTuple):
    """The label of every window, beside what decided it."""

    width: int  # steps of a window
    first_step: Int[np.ndarray, " windows"]  # from the beginning of the series
    labels: Int[np.ndarray, " windows"]
    amplitude: Float[np.ndarray, " windows"]  # root mean square of the fast part, in the unit of the series
    growth: Float[np.ndarray, " windows"]  # factor by which it grows over the window
    spread: Float[np.ndarray, " windows"]  # standard deviation of the series about its drift
    exponent: Float[np.ndarray, " windows"]  # mean of the log growth over the window, NaN without one
    exponent_error: Float[np.ndarray, " windows"]  # its standard error


def name(label: int) -> str:
    """Return a label in words.

    >>> name(4), name(CHAOS)
    ('period 4', 'chaos')
    """
    return _NAMES.get(label, f"period {label}")


def label(
    series: Float[np.ndarray, " steps"],
    log_growth: Float[np.ndarray, " steps"] | None = None,
    *,
    weights: Float[np.ndarray, "steps classes"] | None = None,
    window: int = 64,
    noise: float = 1e-3,
) -> Windows:
    """Label each of the consecutive windows of a series, measured at every step.

        x_n = a_k + b_k n + drift(n) + rest,  k = n mod p        s_p: standard deviation of the rest

    drift is one polynomial of degree 4. The label is the smallest p of 1, 2, 4, 8, 16 whose s_p is at most
    twice that of the best p, or below 0.5 % of s_1. Before that, the fast part h of x (`alternating_part`)
    decides. Unless it exceeds `noise` times the largest |x| of the window and changes sign there 5 times in a
    row or 8 times in all (a kink of a schedule does twice), the period is 1; or unless x leaves its drift by
    as much and crosses it 8 times or more. If h alternates in sign and grows, relative to x, by more than 2
    over the window, it is GROWING, the onset of an instability, also below `noise` where the following
    windows grow on beyond it, but not within a cascade. A series that goes to zero has no level to compare
    with: add one. Of minibatches, `noise` must exceed the scatter.

    Where no period explains three quarters of the variance, a window is CHAOS if its exponent is positive by
    more than its standard error and nearby runs part by two e-folds before a period fits again, else
    IRREGULAR (random noise, period 3, a rotation). A period that leaves more than 0.5 % of s_1 is a noisy
    period, or chaos in bands: CHAOS if nearby runs part by an e-fold within the window (negative curvature
    makes the exponent of a slow drift slightly positive). A window with NaN is UNDEFINED, rows at the end
    that fill no window have no label.

    `log_growth` holds the log of a tangent's growth at every step (`analysis.stability.log_growth`); its
    error comes from blocks of 16 steps.

    A flip that is symmetric in the loss does not alternate it: the loss only grows and comes back. Given the
    class weights, equal ones of a static loss, such windows of period 1 are a CATAPULT, where

        F_n+1 <= max_c (weights_n+1,c / weights_n,c) F_n     for steps that do not raise F at held weights

    is broken by more than a factor of 2, from the first value or the least of the windows' highest before,
    until it is kept again. No schedule does that, whatever it moves, nor the oscillations of momentum if they
    are shorter than a window; other examples at another step may. Without weights catapults are not looked
    for.

    Raises ValueError for a window below 64 or no multiple of 16, for a series shorter than a window or not of
    32 or 64 bits, or a log growth or weights of another shape.

    Source: ours.

    >>> n = np.arange(256)
    >>> windows = label(1.0 + 0.001 * n + 0.1 * (-1.0) ** n * (n >= 128))
    >>> [name(found) for found in windows.labels]
    ['period 1', 'period 1', 'period 2', 'period 2']
    """
    series = np.asarray(series)
    if type(window) is not int or window < 4 * _BLOCK or window % _BLOCK:
        raise ValueError(f"window must be a multiple of {_BLOCK}, at least {4 * _BLOCK}, got {window}")
    if series.ndim != 1 or len(series) < window:
        raise ValueError(
            f"need one series of at least a window, {window} steps, got {series.shape}: a smaller window?"
        )
    if series.dtype.kind != "f" or series.dtype.itemsize < 4:
        raise ValueError(f"need a series of real numbers of 32 or 64 bits, got {series.dtype}")
    if log_growth is not None and np.shape(log_growth) != series.shape:
        raise ValueError(f"need a log growth for each of {len(series)} steps, got {np.shape(log_growth)}")
    if weights is not None and (np.ndim(weights) != 2 or len(weights) != len(series)):
        raise ValueError(f"need weights [steps, classes] of {len(series)} steps, got {np.shape(weights)}")
    num = len(series) // window
    x = series[: num * window].reshape(num, window)
    defined = np.isfinite(x).all(axis=1)
    x = np.where(defined[:, None], x, 0)
    exponent, error = _exponents(log_growth, num, window)
    size = np.max(np.abs(x), axis=1)
    # a power of two, which rounds nothing: squares of a window far from one would overflow, or vanish
    unit = np.exp2(np.floor(np.log2(np.where(size > 0, size, 1))))
    x, size = x / unit[:, None], size / unit
    floor = _ROUNDING * np.finfo(x.dtype).eps * size
    limit = np.maximum(noise * size, floor)
    alternating, growth, h = _alternation(x)
    amplitude = np.sqrt(np.mean(h**2, axis=1))
    loud, rests = _loud(h, limit), [_rest(x, p) for p in PERIODS]
    smooth = np.sum(rests[0][:, 1:] * rests[0][:, :-1] < 0, axis=1) <= _SMOOTH * window / 64
    degrees = [window - (2 * p + _DRIFT - 1) for p in PERIODS]  # a rest has so many coefficients less
    spreads = np.sqrt([np.sum(rest**2, axis=1) / n for rest, n in zip(rests, degrees, strict=True)])
    labels, tight = _fit(spreads, floor)
    still = ~loud & (smooth | (spreads[0] <= limit))
    labels = np.where((smooth & (labels == IRREGULAR) & ~loud) | still, 1, labels)
    labels = np.where(defined, labels, UNDEFINED)
    labels = np.where(_chaotic(labels, tight, exponent, error, window), CHAOS, labels)
    cycles = labels.copy()
    onset = defined & alternating & (growth > _ONSET) & (amplitude > floor)
    for index in reversed(np.flatnonzero(onset)):
        if loud[index] or (index + 1 < num and labels[index + 1] not in (1, UNDEFINED)):
            labels[index] = GROWING
    for index in range(1, num):  # within a cascade it is no onset
        if labels[index] == GROWING and labels[index - 1] not in (1, GROWING, UNDEFINED):
            labels[index] = cycles[index]
    if weights is not None:
        climb = _climb(series, weights)[: num * window].reshape(num, window)
        labels[_catapults(climb, labels == 1, np.log(_CATAPULT + 4 * noise))] = CATAPULT
    sizes = amplitude * unit, growth, spreads[0] * unit
    return Windows(window, np.arange(num) * window, labels, *sizes, exponent, error)


def _chaotic(labels, tight, exponent, error, window):
    """Return which windows are chaos: see `label`."""
    irregular = labels == IRREGULAR
    stretch = np.cumsum(np.diff(irregular, prepend=False))
    folds = np.bincount(stretch, np.where(irregular, np.nan_to_num(exponent), 0) * window)[stretch]
    in_bands = (labels > 1) & ~tight & (exponent * window > 1)
    return (exponent > error) & ((irregular & (folds > 2)) | in_bands)


def _climb(series, weights):
    """Return log F less the most that the moving weights can have added since the beginning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(weights[1:] / weights[:-1])  # 0 of a class that has no weight in both
    added = np.append(0, np.cumsum(np.log(ratio.max(axis=1))))
    level = _ROUNDING * np.finfo(series.dtype).eps * np.fmax.accumulate(np.abs(series))
    return np.log(np.maximum(series, np.maximum(level, np.finfo(series.dtype).tiny))) - added


def _catapults(climb, quiet, rise):
    """Return which quiet windows climb out of the lowest before them, or the first step, up to the return."""
    found, low, first = np.zeros(len(climb), bool), climb[0, 0], 0
    for index, high in enumerate(climb.max(axis=1)):
        if not quiet[index]:
            low, first = np.inf, index + 1
        elif high > low + rise:
            found[first : index + 1] = True
        elif high < low or found[index - 1]:  # the climb begins behind this one
            low, first = min(low, high), index + 1
    return found


def _exponents(log_growth, num, window):
    if log_growth is None:
        return np.full((2, num), np.nan)
    finite = np.maximum(log_growth, np.log(np.finfo(np.asarray(log_growth).dtype).tiny))  # of zero: -inf
    blocks = finite[: num * window].reshape(num, window // _BLOCK, _BLOCK).mean(axis=2)
    return blocks.mean(axis=1), blocks.std(axis=1, ddof=1) / np.sqrt(blocks.shape[1])


def alternating_part(x: Float[np.ndarray, "*windows steps"]) -> Float[np.ndarray, "*windows less"]:
    """Return what is fast in a series: an alternation +-a as it is, a smooth drift as next to nothing.

        h_n = (x_{n-2} - 4 x_{n-1} + 6 x_n - 4 x_{n+1} + x_{n+2}) / 16        two steps fewer at each end

    >>> alternating_part(np.asarray([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])).tolist()
    [1.0, -1.0]
    """
    kernel = np.array([1, -4, 6, -4, 1], x.dtype) / 16
    return sum(k * x[..., i : x.shape[-1] - 4 + i] for i, k in enumerate(kernel))


def _loud(h, limit):
    """Return the windows where h exceeds a limit and changes sign 8 times in all, or 5 times in a row.

    At a kink of a smooth series it does so twice, at a jump three times, at a single spike four times.
    """
    beyond = np.abs(h) > limit[:, None]
    changes = (h[:, 1:] * h[:, :-1] < 0) & beyond[:, 1:] & beyond[:, :-1]
    in_a_row = np.lib.stride_tricks.sliding_window_view(changes, _IN_A_ROW, axis=1).all(axis=2)
    return (changes.sum(axis=1) >= _IN_ALL) | in_a_row.any(axis=1)


def _alternation(x):
    """Return whether a window alternates, by what factor it grows relative to its level, its fast part."""
    h, tiny = alternating_part(x), np.finfo(x.dtype).tiny
    signed = np.abs(np.sum(h * (-1) ** np.arange(h.shape[1]), axis=1))
    signed = signed / np.maximum(np.abs(h).sum(axis=1), tiny)
    # nearly all of it has one sign, and it is not a single jump
    alternating = (signed > 0.9) & (np.mean(h[:, 1:] * h[:, :-1] < 0, axis=1) > 0.5)
    level = np.abs(x[:, 2:-2] - h)  # without its fast part
    steps = np.arange(h.shape[1]) - (h.shape[1] - 1) / 2
    slope = (np.log(np.maximum(np.abs(h), tiny)) - np.log(np.maximum(level, tiny))) @ steps / (steps @ steps)
    return alternating, np.exp(np.clip(slope * x.shape[1], -700, 700)), h


def _rest(x, period):
    """Return what is left beside `period` interleaved straight lines and a common drift."""
    steps = np.linspace(-1, 1, x.shape[1], dtype=x.dtype)
    branches = np.equal.outer(np.arange(x.shape[1]) % period, np.arange(period)).astype(x.dtype)
    drift = steps[:, None] ** np.arange(2, _DRIFT + 1)
    basis = np.linalg.qr(np.hstack([branches, branches * steps[:, None], drift]))[0]
    centred = x - x.mean(axis=1, keepdims=True)  # large levels cost digits
    return centred - centred @ basis @ basis.T


def _fit(spreads, floor):
    """Return the smallest period that fits, IRREGULAR if none does, and whether it fits tightly."""
    best = spreads.min(axis=0)
    limit = np.maximum(_RESOLUTION * spreads[0], floor)
    is_best = spreads <= np.maximum(2 * best, limit)
    fits = is_best & (spreads <= np.maximum(_LOOSE * spreads[0], floor))
    first = np.argmax(fits, axis=0)
    found = np.where(fits.any(axis=0), np.array(PERIODS)[first], IRREGULAR)
    return found, np.take_along_axis(spreads, first[None], axis=0)[0] <= limit
