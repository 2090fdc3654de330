"""How far empirical kernels are from those of infinite width."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from scipy import stats

from analysis.ntk import relative_distance

_WIDEST, _WIDE = slice(-2, None), slice(2, None)  # widths between which trained and first slopes are taken
_RATES = ("main", "scaled")


def labelled(kernels: Mapping[int, Float[Array, "examples examples"]]) -> xr.Dataset:
    """Label the kernels of infinite width by the width that they keep as a factor."""
    dims, values = ("width", "example", "other_example"), np.stack([*kernels.values()])
    return xr.Dataset({"infinite_ntk": (dims, values)}, {"width": list(kernels)})


def reduce(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the relative distance of each empirical kernel from that of infinite width, and its slopes.

    `results` holds sweeps of `empirical_ntk` over cycles of the loss: "main" with one `learning_rate`,
    "scaled" with one that goes as 1 / width, 100 its own width; "initial" at the first parameters;
    "measured" the limits. `distance` [rate, cycles, width, seed] after the first and the last cycle, and
    `initial_distance` [initial_width, draw]. `slope` and `initial_slope` are those of log distance over log
    width, with the standard error of the regression over all seeds: of trained networks between the two
    widest; at the first parameters over all but the two narrowest, where the part of the kernel that does
    not grow with the width still counts.
    """
    limits = results["measured"]["infinite_ntk"]

    def distances(sweep: str, at: list[int]) -> np.ndarray:
        """[cycles, width, seed]"""
        kernels = results[sweep]["empirical_ntk"].isel(kernel_step=at)
        of_widths = kernels.transpose("width", "kernel_step", "seed", ...)
        pairs = zip(of_widths.values, limits.sel(width=kernels["width"]).values, strict=True)
        return np.stack([relative_distance(*map(jnp.asarray, pair)) for pair in pairs], axis=1)

    widths, initial_widths = (results[name]["width"].values for name in ("main", "initial"))
    cycles = [1, results["main"].sizes["kernel_step"] - 1]
    trained = np.stack([distances(sweep, cycles) for sweep in _RATES])
    (initial,) = distances("initial", [0])
    fits = np.array([[slope(widths[_WIDEST], d[_WIDEST]) for d in of_rate] for of_rate in trained])
    first = slope(initial_widths[_WIDE], initial[_WIDE])
    rate = results["main"].attrs["learning_rate"]
    return xr.Dataset(
        {
            "learning_rate": (("rate", "width"), [np.full(len(widths), rate), rate * 100 / widths]),
            "distance": (("rate", "cycles", "width", "seed"), trained, {"units": "1"}),
            "slope": (("rate", "cycles"), fits[..., 0], {"widths": widths[_WIDEST]}),
            "slope_error": (("rate", "cycles"), fits[..., 1]),
            "initial_distance": (("initial_width", "draw"), initial, {"units": "1"}),
            "initial_slope": ((), first[0], {"widths": initial_widths[_WIDE]}),
            "initial_slope_error": first[1],
        },
        {"rate": list(_RATES), "cycles": cycles, "width": widths, "initial_width": initial_widths},
    )


def slope(widths: np.ndarray, distance: np.ndarray) -> tuple[float, float]:
    """Return the slope of log distance [widths, seeds] over log width, and its standard error.

    >>> round(float(slope(np.asarray([10, 1000]), np.asarray([[3.0, 3.0], [0.3, 0.3]]))[0]), 4)
    -0.5
    """
    logs = np.repeat(np.log(widths.astype(float)), distance.shape[1])
    fit = stats.linregress(logs, np.log(distance).ravel())
    return fit.slope, fit.stderr


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return a table of all slopes."""
    cycles = (f"{n} cycle{'s' * int(n > 1)}" for n in found["cycles"].values)
    rows = [("slope of the distance over the width", "first parameters", *cycles)]
    initial = f"{float(found['initial_slope']):.3f} ± {float(found['initial_slope_error']):.3f}"
    for rate in found["rate"].values:
        row = found.sel(rate=rate)
        slopes = zip(row["slope"].values, row["slope_error"].values, strict=True)
        rates = row["learning_rate"].values
        words = f"η {rates[0]:.2g} to {rates[-1]:.2g}"
        rows.append((words, initial, *(f"{value:.3f} ± {error:.3f}" for value, error in slopes)))
    return {"kernels": rows}
