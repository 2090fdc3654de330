"""Does a dynamical loss learn at learning rates that are too large for the static one? The spiral, 20 seeds.

`python -m experiments.figure large_rates --launcher=local`; nobody has run it yet. The first paper says that
it does [text]; the diagram of phase_width_rate.py did not find it. Network and data are those of Fig. 4
[code]; grid, amplitudes, periods and all else are [ours]. This plan was committed before the first run.

Rates from 0.5 to 8 by factors of the square root of 2, widths 40, 100 and 300, three dynamical losses (the
best of phase_amplitude_period.py, a fast one of small and a slow one of large amplitude, as printed), whose
class weights are one for the last tenth of the steps or for the last half, and the static loss; the same
seeds for all. A rate is too large for the static loss at a width if its mean accuracy is below 0.6 (a third
is guessing). The claim holds at such a rate if a dynamical loss gains there, by sign-flip tests at a false
discovery rate of 5 % over all cells, and its mean accuracy is above 0.8; it fails at a width if no rate that
is too large has such a loss. A diverged run counts as guessing.
"""

import numpy as np
import xarray as xr

from analysis.findings import diagrams
from experiments.configs import phase_amplitude_period
from experiments.sweep.axes import axis

FIGURE = "large_rates"
EXPECTED = ()
_LOSSES = {  # amplitude and period
    "A = 15.85, T = 1,259": (15.85, 1_259),
    "A = 4, T = 315": (4.0, 315),
    "A = 70, T = 5,000": (70.0, 5_000),
}
_QUIET = {"tenth": 0.1, "half": 0.5}  # of the steps, at the end
_TOO_LARGE, _LEARNS = 0.6, 0.8
# scale: widths, number of rates, seeds
_SIZES = {
    "smoke": ((4, 8), 2, 3),
    "small": ((40, 100, 300), 9, 20),
    "paper": ((40, 100, 300, 1_000), 17, 50),
}


def get_config(scale="small"):
    """Return that of phase_amplitude_period.py."""
    return phase_amplitude_period.get_config(scale)


def _grid(scale):
    widths, num_rates, num_seeds = _SIZES[scale]
    yield axis("width", widths, lambda width: {"model.hidden_widths": (width,)})
    yield axis("learning_rate", (0.5 * 2 ** np.linspace(0, 4, num_rates)).round(3), "optimizer.learning_rate")
    yield axis("seed", range(num_seeds), "seed", "dataset.seed")
    yield phase_amplitude_period.FINAL


def sweep(scale):
    """Vary loss, quiet end, width, learning rate and seed."""
    num_steps = get_config(scale).num_steps - 1

    def moving(name):
        amplitude, period = _LOSSES[name]
        return {"schedule.amplitude": amplitude, "schedule.period": period}

    yield axis("loss_name", tuple(_LOSSES), moving)
    yield axis("quiet", tuple(_QUIET), lambda name: {"stop_after": round(num_steps * (1 - _QUIET[name]))})
    yield from _grid(scale)


def sweep_static(scale):
    """Take the static loss, for the same widths, rates and seeds."""
    yield axis("amplitude", (1.0,), "schedule.amplitude")
    yield from _grid(scale)


def reduce(results):
    """Reduce the sweeps (see `analysis.findings.diagrams.reduce`), with `too_large` and `rescued`."""
    found = diagrams.reduce(results)
    too_large = found["reference_accuracy_mean"] < _TOO_LARGE
    rescued = too_large & (found["accuracy_significant"] == 1) & (found["accuracy_mean"] > _LEARNS)
    return found.assign(too_large=too_large.astype(np.int8), rescued=rescued.astype(np.int8))


def in_words(found: xr.Dataset):
    """Return the rates that are too large for the static loss, and those of them at which others learn."""
    rates, widths = found["learning_rate"].values, found["width"].values
    rows = [("loss, quiet end", *(f"width {width}" for width in widths))]

    def at(cells):
        return ", ".join(f"{rate:g}" for rate in rates[cells.values.astype(bool)]) or "none"

    rows.append(("too large for the static loss", *(at(found["too_large"].sel(width=of)) for of in widths)))
    for name in found["loss_name"].values:
        for quiet in found["quiet"].values:
            cells = found["rescued"].sel(loss_name=name, quiet=quiet)
            rows.append(
                (f"{name}, {quiet}", *(at(cells.sel(width=width)) for width in found["width"].values))
            )
    return {"rates at which each loss learns where the static one does not": rows}
