"""Tests and errors over seeds."""

import numpy as np
import xarray as xr
from scipy import stats

_MOST_SIGN_FLIPS = 10_000  # all of them up to 13 seeds, a random draw of as many beyond


def mean_error(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the mean over `seed` and its standard error, of the seeds that are not NaN.

        error = std_s / sqrt(number of seeds)

    >>> [found.item() for found in mean_error(xr.DataArray([1.0, 2.0, np.nan], dims="seed"))]
    [1.5, 0.5]
    """
    return values.mean("seed"), values.std("seed", ddof=1) / np.sqrt(values.count("seed"))


def paired_gain(values: xr.DataArray, reference: xr.DataArray, level: float = 0.05) -> xr.Dataset:
    """Test in every cell whether values exceed a reference, paired over `seed`.

        gain = mean_s (values_s - reference_s)        with its standard error

    `p_value` is that of the one-sided sign-flip permutation test of the mean, which assumes no more than
    that without an effect a difference is as likely as its negative: exact up to 13 seeds, from a fixed
    random draw beyond. `significant` holds at a false discovery rate of `level` over all cells. A cell in
    which a value is missing is not tested.

    Raises ValueError for fewer than two seeds.

    Source: Fisher 1935, The Design of Experiments, section 21; Benjamini and Hochberg 1995.

    >>> seeds = {"dims": ("cell", "seed")}
    >>> better = xr.DataArray([[0.6, 0.7, 0.9, 0.8], [0.5, 0.5, 0.5, 0.5]], **seeds)
    >>> gain = paired_gain(better, xr.DataArray([0.5, 0.5, 0.5, 0.5], dims="seed"))
    >>> gain["gain"].values.round(3).tolist(), gain["p_value"].values.tolist()
    ([0.25, 0.0], [0.0625, 1.0])
    """
    difference = (values - reference).transpose(..., "seed").astype(float)
    if difference.sizes["seed"] < 2:
        raise ValueError("a paired test needs two seeds")
    tested = difference.notnull().all("seed")
    p_value = stats.permutation_test(
        (difference.fillna(0.0).values,), lambda rows, axis: np.mean(rows, axis=axis), vectorized=True,
        permutation_type="samples", alternative="greater", n_resamples=_MOST_SIGN_FLIPS, batch=100, axis=-1,
        rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    p_value = tested.copy(data=p_value).where(tested)
    significant = tested.copy(data=np.zeros(tested.shape, np.int8))
    if tested.any():
        adjusted = stats.false_discovery_control(p_value.values[tested.values])
        significant.values[tested.values] = adjusted <= level
    gain, error = mean_error(difference)
    return xr.Dataset(dict(gain=gain, gain_error=error, p_value=p_value, significant=significant))
