"""Curves of accuracy over the learning rate: where they peak, and how far one lies beside another."""

import numpy as np
from jaxtyping import Float

LARGEST = 4.0  # of the shifts of flanks that are looked for, and its inverse


def peak(
    log_rates: Float[np.ndarray, " rates"],
    validation: Float[np.ndarray, "rates seeds"],
    test: Float[np.ndarray, "rates seeds"],
) -> tuple[float, float]:
    """Return log eta at which the validation accuracy is largest, and the test accuracy there.

    Both are means over the seeds that live (not NaN), at rates where at least half of them do, with parabolas
    through the best rate and its neighbours, so that a grid of rates need not hit a maximum. The place is NaN
    where the best rate is the first or the last of these, and the maximum may lie beyond.

    >>> x = np.log([0.1, 0.2, 0.4])
    >>> curve = 0.9 - (x - np.log(0.25))[:, None] ** 2
    >>> [round(of, 4) for of in peak(x, curve, curve)] == [round(np.log(0.25), 4), 0.9]
    True
    """
    (v, x), (t, _) = (_living(log_rates, values) for values in (validation, test))
    if not len(x):
        return np.nan, np.nan
    best = int(np.argmax(v))
    if not 0 < best < len(x) - 1:
        return np.nan, float(t[best])
    around = slice(best - 1, best + 2)
    (a, b, _), (p, q, height) = (_parabola(x[around], of[around]) for of in (v, t))
    at = np.clip(-b / (2 * a), x[best - 1] - x[best], x[best + 1] - x[best]) if a < 0 else 0.0
    return float(x[best] + at), float(height + q * at + p * at**2)


def _parabola(x, y):
    """Return a, b, c of a u^2 + b u + c through three points, u from the second on."""
    (left, right), (first, second) = np.diff(x), np.diff(y) / np.diff(x)
    return (second - first) / (left + right), (first * right + second * left) / (left + right), y[1]


def flank(
    log_rates: Float[np.ndarray, " rates"],
    static: Float[np.ndarray, "rates seeds"],
    dynamical: Float[np.ndarray, "rates seeds"],
) -> float:
    """Return by which factor the static loss needs a larger rate to be as accurate as a dynamical one.

    On the rising side, where a gain at every rate looks like a shift: it says how the curves lie, not why.

        s = argmin sum_x (d(x) - c(x + log s))^2,   x = log eta up to the maximum of d

    c and d are mean accuracies over the seeds that live (not NaN), at rates where at least half of them do;
    c is linear in between, and at least three rates must lie within it. NaN where there are no three.

    >>> x, curve = np.log([0.1, 0.2, 0.4, 0.8, 1.6]), lambda x: 1 - np.exp(-2 * np.exp(x))[:, None]
    >>> round(flank(x, curve(x), curve(x + np.log(1.5))), 1)
    1.5
    """
    (c, at), (d, x) = (_living(log_rates, values) for values in (static, dynamical))
    if not (len(at) and len(x)):
        return np.nan
    rising = np.arange(len(x)) <= np.argmax(d)
    d, moved = d[rising], np.linspace(-np.log(LARGEST), np.log(LARGEST), 201)
    wanted = x[rising] + moved[:, None]
    inside = (wanted >= at[0] - 1e-9) & (wanted <= at[-1] + 1e-9)
    apart = np.where(inside, (d - np.interp(wanted, at, c)) ** 2, 0).sum(axis=1)
    number = inside.sum(axis=1)
    mean = np.where(number >= 3, apart / np.maximum(number, 1), np.inf)
    return float(np.exp(moved[mean.argmin()])) if np.isfinite(mean).any() else np.nan


def _living(log_rates, values):
    """Return the means over those that live, and the rates, where at least half of them do."""
    alive = np.isfinite(values)
    known = alive.mean(axis=1) >= 0.5
    return np.nanmean(values[known], axis=1), log_rates[known]
