"""Figures of instabilities: cascades along a run, bifurcation diagrams, thresholds."""

from itertools import cycle

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from analysis.cascades import CATAPULT, CHAOS, GROWING, IRREGULAR, UNDEFINED, name
from analysis.figures import style
from analysis.stability import threshold

_BLUE, _RED, _GREEN, _PINK, _YELLOW, _SKY = style.COLORS
PERIOD_COLORS = {
    1: style.GREY, GROWING: _YELLOW, 2: _BLUE, 4: _SKY, 8: _GREEN, 16: "#7fd1ae", CHAOS: _RED,
    IRREGULAR: _PINK, CATAPULT: style.BLACK, UNDEFINED: "#ffffff",
}  # fmt: skip
_PIXELS = {"rasterization_zorder": 2.2}  # of axes: dots as pixels, with text as text


@style.styled
def cascades(found: xr.Dataset) -> Figure:
    """Draw when a run is unstable and why: five aligned rows against the step, and a zoom.

    Colours are the periods of the windows, vertical lines onsets. Forecasts at frozen parameters lead from
    the middle of each turn to its end; the exponent is that of each window, with its standard error. The
    change of the eigenvalue, by the loss and by the network, is that over each stretch of at least five
    measurements in a turn where the split is valid and the loss has period 1. Right: 1.6 to 2.1 turns.

    Source: ours; rows 1 and 5 as in Ruiz-Garcia et al. 2021 (arXiv 2102.03793), Fig. 4.
    """
    turn, last = found.attrs["turn"], int(found["step"][-1]) + 1
    spans = [(0, last), (round(1.6 * turn), min(round(2.1 * turn), last))]
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    grid = figure.subplots(5, 2, sharex="col", width_ratios=[2.6, 1.0], subplot_kw=_PIXELS)
    for column, (start, stop), title in zip(grid.T, spans, ("whole run", "zoom"), strict=True):
        column[0].set_title(title)
        for axes in column:
            for onset in found["instability_onset"].values:
                axes.axvline(onset, color=style.BLACK, linewidth=0.4, linestyle=":", zorder=1)
        _draw_periods(column[0], found, start, stop)
        _draw_sharpness(column[1], found)
        _draw_exponent(column[2], found)
        _draw_split(column[3], found)
        column[4].plot(found["step"], found["accuracy"], **style.DOTS)
        column[4].set(xlabel="step", xlim=(start, stop), ylim=(-0.03, 1.03))
    exponent, change = "Lyapunov\nexponent\n(nat / step)", r"change of $\lambda_{\max}$" "\nwhere valid (nat)"
    style.label_rows(grid[:, 0], (style.LOSS, style.SHARPNESS, exponent, change, style.ACCURACY))
    for axes in grid[:2].flat:
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in (grid[1, 0], grid[3, 0]):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(ncols=4, columnspacing=1.0, loc="upper right", borderaxespad=0.1, markerscale=3)
    _legend_of_periods(figure, found["label"])
    return figure


@style.styled
def bifurcation(found: xr.Dataset) -> Figure:
    """Draw the loss against the phase in a turn, one panel for each turn, as a bifurcation diagram.

    F over its mean of 16 steps, so that a two-cycle shows two branches about one; from the middle of the
    turn until a tenth of a turn after the switch of class. Colours are the periods of the windows.
    """
    turn, loss = found.attrs["turn"], found["loss"].values
    ratio, period = loss / np.convolve(loss, np.full(16, 1 / 16), mode="same"), _per_step(found)
    num_turns = -(-len(loss) // turn)
    rows = -(-num_turns // 5)
    figure = Figure(figsize=(7.2, 1.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, 5, sharex=True, sharey="row", squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.set_rasterization_zorder(3)
        if number >= num_turns:
            axes.set_axis_off()
            continue
        part = slice(round((number + 0.5) * turn), min(round((number + 1.1) * turn), len(loss) - 8))
        phase = np.arange(part.start, max(part.stop, part.start)) / turn - number
        _draw_dots(axes, phase, ratio[part], period[part])
        axes.axvline(1, color=style.BLACK, linewidth=0.4, linestyle=":", zorder=1)
        axes.set_title(f"turn {number + 1}", fontsize=7, pad=2)
    for number, axes in enumerate(grid[:, 0]):
        here = np.abs(np.log(ratio[8:-8][5 * number * turn : 5 * (number + 1) * turn]))
        most = max(2.2, 1.1 * float(np.exp(here.max()))) if len(here) else 2
        axes.set(yscale="log", xlim=(0.5, 1.1), ylim=(1 / most, most))
        style.plain_numbers(axes.yaxis)
    figure.supxlabel("phase in the turn of a class (1: switch of class)")
    figure.supylabel(r"$F$ / mean of $F$ over 16 steps")
    _legend_of_periods(figure, found["label"])
    return figure


@style.styled
def threshold_rate(found: xr.Dataset) -> Figure:
    """Draw the sharpness at the first onset against the learning rate, one line for each width.

    Where the alternation of the loss is 1 % of it, and in units of 2 / eta there and where it is ten times
    what it was. Means over seeds, with standard deviations as bars, and at the bottom the number of seeds
    with an instability. Widths are moved apart by 2 % along the axis.

    Source: ours, after the claim of Ruiz-Garcia et al. 2021 (arXiv 2102.03793) that the threshold depends on
    the learning rate and not on the width.
    """
    rates, num_widths = found["learning_rate"].values, found.sizes["width"]
    figure = Figure(figsize=(4.6, 6.2), layout="constrained")
    above, *below = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, 1, 1])
    above.plot(rates, threshold("sgd", 1.0) / rates, **style.THRESHOLD | {"zorder": 1}, label=r"$2/\eta$")
    in_units = threshold("sgd", 1.0) / found["learning_rate"]
    ratios = [found[f"{kind}sharpness"] / in_units for kind in ("", "visible_")]
    for number, (width, color) in enumerate(zip(found["width"].values, cycle(style.COLORS), strict=False)):
        shift = 1.02 ** (number - (num_widths - 1) / 2)  # so that bars do not hide one another
        of_width = [values.sel(width=width) for values in (found["visible_sharpness"], *ratios)]
        for axes, values in zip((above, *below), of_width, strict=True):
            mean, error = values.mean("seed"), values.std("seed", ddof=1)
            axes.errorbar(
                rates * shift, mean, error, color=color, linestyle="none", marker="o", markersize=3,
                linewidth=1.0, capsize=1.5, label=f"width {width:g}",
            )  # fmt: skip
            for rate, count in zip(rates, values.notnull().sum("seed").values, strict=True):
                if axes is not above:
                    axes.annotate(
                        f"{count}", (rate, 0.01 + 0.07 * (num_widths - 1 - number)), fontsize=6, color=color,
                        xycoords=("data", "axes fraction"), ha="center",
                    )  # fmt: skip
    above.set(xscale="log", yscale="log", ylabel=r"$\lambda_{\max}$ at 1 % (nat)")
    style.plain_numbers(above.yaxis)
    for axes, words in zip(
        below, ("alternation ten times\nwhat it was", "alternation 1 %\nof the loss"), strict=True
    ):
        axes.axhline(1, **style.THRESHOLD | {"zorder": 1})
        axes.set(ylabel=rf"$\eta\,\lambda_{{\max}} / 2$, {words}", ylim=(0.6, 1.35))
    below[-1].set(xlabel=r"learning rate $\eta$")
    below[-1].set_xticks(rates, [f"{rate:g}" for rate in rates])
    below[-1].minorticks_off()
    above.legend()
    return figure


@style.styled
def static_dynamic(found: xr.Dataset) -> Figure:
    """Draw a run under the static loss beside the same under the dynamical one.

    Of the static one the variables begin with `reference_`. The sharpness is the mean of two consecutive
    steps; each run has an axis of F of its own.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    grid = figure.subplots(3, 2, sharex=True, subplot_kw=_PIXELS)
    both = found[["sharpness", "reference_sharpness"]].to_array()
    kinds = ("reference_", "static", 1.0), ("", "dynamical", found.attrs["amplitude"])
    for column, (prefix, kind, amplitude) in zip(grid.T, kinds, strict=True):
        loss = found[f"{prefix}loss"]
        _draw_periods(column[0], found, 0, found.sizes["step"], prefix)
        if loss.max() < 3 * loss.min():  # less than the decade that log axes label
            column[0].set_yscale("linear")
        sharpness = found[f"{prefix}sharpness"]
        column[1].plot(found["stability_step"], sharpness, **style.DOTS | {"markersize": 1.6})
        style.draw_threshold(column[1], found)
        column[1].set(ylim=(0.8 * float(both.min()), 1.25 * float(both.max())), yscale="log")
        column[1].yaxis.set_minor_formatter(NullFormatter())
        column[2].plot(found["step"], found[f"{prefix}accuracy"], **style.DOTS)
        column[2].set(xlabel="step", ylim=(-0.03, 1.03))
        column[0].set_title(f"A = {amplitude:g}: {kind} loss")
    style.label_rows(grid[:, 0], (style.LOSS, style.SHARPNESS, style.ACCURACY))
    grid[1, 0].legend(loc="lower right")
    _legend_of_periods(figure, found[["label", "reference_label"]].to_array())
    return figure


def _per_step(found: xr.Dataset, prefix: str = "") -> np.ndarray:
    """Return the label of the window of each step; steps behind the last window have its label."""
    width = found.attrs["window"]
    window = np.minimum(np.arange(found.sizes["step"]) // width, found.sizes["window_step"] - 1)
    return found[f"{prefix}label"].values[window]


def _draw_periods(axes: Axes, found: xr.Dataset, start: int, stop: int, prefix: str = "") -> None:
    period, loss = _per_step(found, prefix), found[f"{prefix}loss"].values
    _draw_dots(axes, np.arange(len(loss))[start:stop], loss[start:stop], period[start:stop])
    axes.set_yscale("log")


def _draw_dots(axes: Axes, x: np.ndarray, y: np.ndarray, period: np.ndarray) -> None:
    """Draw dots in the colours of their periods."""
    for code, color in PERIOD_COLORS.items():
        chosen = period == code
        axes.plot(x[chosen], y[chosen], **style.DOTS | {"color": color, "markersize": 1.2})


def _draw_sharpness(axes: Axes, found: xr.Dataset) -> None:
    steps, turn = found["tracker_step"].values, found.attrs["turn"]
    sharpness = found["tracked_eigenvalues"].sel(rank=0)
    dots = style.DOTS | {"markersize": 1.6}
    axes.plot(steps, sharpness, **dots | {"color": style.GREY}, label="single steps")
    means = found["sharpness"]
    axes.plot(means["stability_step"], means, **dots | {"zorder": 2.1}, label="mean of two steps")
    label = "forecast"
    for number in range(found.sizes["step"] // turn):
        at = int(np.argmin(np.abs(found["forecast_step"].values - (number + 0.5) * turn)))
        ahead = found["forecast"].values[at]
        inside = np.isfinite(ahead) & (steps < (number + 1) * turn)
        axes.plot(steps[inside], ahead[inside], color=_GREEN, linewidth=1.1, zorder=2.4, label=label)
        label = None
    style.draw_threshold(axes, found)
    axes.set_yscale("log")
    axes.set_ylim(top=8 * float(sharpness.max()))  # room for the legend


def _draw_exponent(axes: Axes, found: xr.Dataset) -> None:
    width = found.attrs["window"]
    middle, value, error = found["window_step"] + width / 2, found["exponent"], found["exponent_error"]
    axes.fill_between(middle, value - error, value + error, color=_BLUE, alpha=0.35, linewidth=0)
    axes.plot(middle, value, color=_BLUE, linewidth=0.6, zorder=2)
    axes.axhline(0, color=style.BLACK, linewidth=0.5, zorder=1)


def _draw_split(axes: Axes, found: xr.Dataset) -> None:
    """Accumulate both parts and their sum over each stretch."""
    steps, turn = found["tracker_step"].values, found.attrs["turn"]
    loss, network = (found[name].sel(rank=0).values for name in ("loss_moved", "network_moved"))
    # in a cycle both parts are those of one branch, whose sign says nothing of the mean
    calm = _per_step(found)[steps] == 1
    valid = (found["split_valid"].sel(rank=0).values == 1) & calm
    ends = np.flatnonzero(np.diff(valid) | np.diff(steps // turn).astype(bool)) + 1
    parts = {"change": loss + network, "moved by the loss": loss, "by the network": network}
    first = True  # stretch, which the legend has
    for stretch in np.split(np.arange(len(steps)), ends):
        if valid[stretch[0]] and len(stretch) > 4:
            at = np.append(2 * steps[stretch[0]] - steps[stretch[0] + 1], steps[stretch])
            for (words, change), color in zip(parts.items(), (style.GREY, _PINK, _BLUE), strict=True):
                values = np.append(0, np.cumsum(change[stretch]))
                axes.plot(at, values, color=color, linewidth=1.0, label=words if first else None, zorder=2)
            first = False
    axes.axhline(0, color=style.BLACK, linewidth=0.5, zorder=1)


def _legend_of_periods(figure: Figure, labels: xr.DataArray) -> None:
    marks = [
        Line2D([], [], color=color, label=name(code), marker="o", markersize=3, linestyle="none")
        for code, color in PERIOD_COLORS.items()
        if (labels == code).any()
    ]
    figure.legend(handles=marks, ncols=len(marks), loc="outside upper center", handletextpad=0.1)


_ACCURACIES = {"accuracy": "training", "validation_accuracy": "validation"}


@style.styled
def branches(found: xr.Dataset) -> Figure:
    """Draw the loss around a cascade, where branches leave it, and the accuracies at which each ends.

    A point a restart, a bar the mean; dotted: the parent.
    """
    figure = Figure(figsize=(7.0, 2.9), layout="constrained")
    loss, *panels = figure.subplots(1, 3, width_ratios=(1, 1.3, 1.3))
    steps = found["moment_step"].values
    first, last = steps[0] - (room := steps[-1] - steps[0]) // 2, steps[-1] + room // 2
    around = found["loss"].sel(step=slice(first, last))
    loss.plot(around["step"], around, **style.DOTS)
    colors = dict(zip(found["moment"].values, style.COLORS, strict=False))
    for moment, step in zip(colors, steps, strict=True):
        loss.axvline(step, color=colors[moment], linewidth=1.2, label=str(moment))
    loss.set(yscale="log", xlabel="step", ylabel=style.LOSS)
    for axes, (of, label) in zip(panels, _ACCURACIES.items(), strict=True):
        for place, moment in enumerate(colors):
            cells = 100 * found[f"final_{of}"].sel(moment=moment).transpose("way", "restart")
            x = np.arange(cells.sizes["way"]) + 0.25 * (place - 1)
            spread = np.linspace(-0.08, 0.08, cells.sizes["restart"])
            axes.plot((x[:, None] + spread).T, cells.values.T, ".", color=colors[moment], markersize=2.5)
            axes.hlines(cells.mean("restart"), x - 0.1, x + 0.1, color=colors[moment], linewidth=1.5)
        axes.axhline(100 * float(found[f"parent_{of}"]), color=style.BLACK, linestyle=":", linewidth=0.8)
        ways = [str(way).replace(" ", "\n") for way in found["way"].values]
        axes.set_xticks(range(len(ways)), ways)
        axes.set_ylabel(f"{label} accuracy\nat the end (%)")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
