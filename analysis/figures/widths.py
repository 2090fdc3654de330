"""Figures of infinite width and of the linearised network."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style

_STATIC, _DYNAMICAL = style.GREY, style.COLORS[0]


@style.styled
def kernel_width(found: xr.Dataset) -> Figure:
    """Draw the relative distance of the empirical NTK from that of infinite width, over the width.

    One panel for each way in which the learning rate goes with the width, one line for each number of
    cycles, 0 among them; means and standard deviations over seeds, beside the slope -1/2 through the widest
    network at its first parameters.

    Source: ours.
    """
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    panels = figure.subplots(1, found.sizes["rate"], sharex=True, sharey=True)
    for axes, rate in zip(panels, found["rate"].values, strict=True):
        initial, widths = found["initial_distance"].rename(draw="seed"), found["initial_width"].values
        slope = found["initial_slope"], found["initial_slope_error"]
        where = f"from {slope[0].attrs['widths'][0]:,} on"
        _draw_distance(axes, widths, initial, slope, "first parameters", where, 0)
        where = "from {:,} to {:,}".format(*found["slope"].attrs["widths"])
        for number, cycles in enumerate(found["cycles"].values, start=1):
            row, words = found.sel(rate=rate, cycles=cycles), f"after {cycles} cycle{'s' * int(cycles > 1)}"
            slope = row["slope"], row["slope_error"]
            _draw_distance(axes, row["width"].values, row["distance"], slope, words, where, number)
        guide = float(initial.mean("seed")[-1]) * np.sqrt(widths[-1] / widths)
        axes.plot(widths, guide, color=style.BLACK, linestyle=":", linewidth=1, label="$N^{-1/2}$", zorder=1)
        axes.set(xscale="log", yscale="log", xlabel="width $N$ (hidden units)")
        rates = found["learning_rate"].sel(rate=rate).values
        falling = rf"$\eta$ from {rates[0]:.2g} to {rates[-1]:.2g}, as $1\,/\,N$"
        alike = rf"$\eta = {rates[0]:g}$ at every width"
        axes.set_title("learning rate " + (falling if np.ptp(rates) else alike))
        axes.legend(loc="upper right", borderaxespad=0.1)
    panels[0].set_ylabel(
        "relative distance from the kernel\nof infinite width, "
        r"$|\Theta_N - \Theta_\infty|\,/\,|\Theta_\infty|$"
    )
    panels[0].set_ylim(top=30 * float(found["distance"].mean("seed").max()))  # room for the legends
    return figure


def _draw_distance(axes, widths, distance, slope, words: str, where: str, number: int) -> None:
    power = rf"{float(slope[0]):.3f} \pm {float(slope[1]):.3f}"
    axes.errorbar(
        widths, distance.mean("seed"), distance.std("seed", ddof=1), color=style.COLORS[number],
        marker="osD"[number], markersize=4, linewidth=1, capsize=2, label=f"{words}: $N^{{{power}}}$ {where}",
    )  # fmt: skip


@style.styled
def lazy_rich(found: xr.Dataset) -> Figure:
    """Draw the real network beside the linearised one, under the dynamical and the static loss.

    One column for each network and learning rate. Aligned rows against the step, of the first seed: F,
    training accuracy, the largest Hessian eigenvalue (mean of two steps) with 2 / learning rate, and the
    largest NTK eigenvalue relative to the first one. Below: the final training accuracy of every seed, with
    mean and standard error.

    Source: ours; rows as in Ruiz-Garcia et al. 2021 (arXiv 2102.03793), Fig. 4.
    """
    columns = [(bool(kind), float(rate)) for rate in found["learning_rate"] for kind in found["linearized"]]
    titles = [f"{'linearised' if kind else 'real'}, $\\eta$ = {rate:g}" for kind, rate in columns]
    figure = Figure(figsize=(7.2, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4.2, 1.5])
    grid = upper.subplots(4, len(columns), sharex=True, sharey="row")
    for axes, title, (kind, rate) in zip(grid.T, titles, columns, strict=True):
        axes[0].set_title(title)
        _draw_rows(axes, found.sel(linearized=kind, learning_rate=rate), rate)
    ntk = "NTK\n" r"$\lambda_{\max}(t)\,/\,\lambda_{\max}(0)$"
    style.label_rows(grid[:, 0], (style.LOSS, style.ACCURACY, style.SHARPNESS, ntk))
    for axes in grid[(0, 2, 3), 0]:
        axes.set_yscale("log")
        style.plain_numbers(axes.yaxis, numticks=9)
    kinds = {"static loss": _STATIC, "dynamical loss": _DYNAMICAL}
    lines = [Line2D([], [], color=color, label=words) for words, color in kinds.items()]
    upper.legend(handles=lines, loc="outside upper center", ncols=2)
    _draw_final(lower.subplots(), found, columns, titles)
    return figure


def _draw_rows(axes: np.ndarray, run: xr.Dataset, rate: float) -> None:
    for amplitude, color in zip(run["amplitude"].values, (_STATIC, _DYNAMICAL), strict=True):
        one = run.sel(amplitude=amplitude)
        dots = style.DOTS | dict(markersize=1.0, color=color, rasterized=True)
        axes[0].plot(one["step"], one["loss"], **dots)
        axes[1].plot(one["step"], one["accuracy"], **dots)
        axes[2].plot(one["stability_step"], one["sharpness"], color=color, linewidth=0.7)
        ntk = one["ntk_eigenvalues"].isel(rank=0)
        axes[3].plot(one["ntk_step"], ntk / ntk[0], color=color, linewidth=1.0)
    axes[2].axhline(2 / rate, **style.THRESHOLD)
    axes[2].annotate(r"$2/\eta$", (0.99, 2 / rate), xycoords=("axes fraction", "data"), xytext=(0, 2),
                     textcoords="offset points", ha="right", color=style.COLORS[1], fontsize=7,
                     bbox=dict(facecolor="white", edgecolor="none", pad=0.5, alpha=0.8))  # fmt: skip
    axes[1].set_ylim(0, 1.03)
    axes[3].set(xlabel="step", xlim=(0, int(run["step"][-1]) + 1))


def _draw_final(axes: Axes, found: xr.Dataset, columns: list, titles: list[str]) -> None:
    num_seeds = found.sizes["seed"]
    colors = dict(zip(found["amplitude"].values, (_STATIC, _DYNAMICAL), strict=True))
    for place, (kind, rate) in enumerate(columns):
        for shift, (amplitude, color) in zip((-0.12, 0.12), colors.items(), strict=True):
            accuracy = found["final_accuracy"].sel(linearized=kind, learning_rate=rate, amplitude=amplitude)
            axes.plot(np.full(num_seeds, place + shift), accuracy, ".", color=color, markersize=3, alpha=0.5)
            mean, error = float(accuracy.mean()), float(accuracy.std(ddof=1)) / np.sqrt(num_seeds)
            bar = dict(color=color, marker="_", markersize=9, capsize=3)
            axes.errorbar(place + shift + 0.05, mean, error, **bar)
        chosen = found.sel(linearized=kind, learning_rate=rate)
        text = f"gain {float(chosen['accuracy_gain']):+.2f} ± {float(chosen['accuracy_gain_error']):.2f}"
        axes.annotate(text, (place, 1.1), ha="center", va="top", fontsize=7)
    axes.set(ylim=(0.2, 1.12), xlim=(-0.5, len(columns) - 0.5))
    axes.set(xticks=range(len(columns)), xticklabels=titles)
    axes.set_ylabel(f"final training accuracy\n({num_seeds} seeds)")
