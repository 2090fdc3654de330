"""Figures of runs: one, real and linearised ones, and what measures their curvature and kernels."""

from itertools import cycle

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, SymmetricalLogLocator

from analysis.figures import style
from analysis.stability import threshold

_LABELS = (
    r"class weight $\Gamma_i$", style.LOSS, "$F(t-1) - F(t)$\n(nat)", style.ACCURACY, style.SHARPNESS,
    "NTK\n" r"$\lambda_{\max}$",
)  # fmt: skip
_STATIC, _DYNAMICAL = style.GREY, style.COLORS[0]


@style.styled
def fig4(run: xr.Dataset) -> Figure:
    """Draw a run as Fig. 4 of the first paper: six aligned rows against the step, and a zoom.

    With the threshold of the optimizer where it has a formula. A row that was not measured stays empty.
    The second column zooms on 1.6 to 2.1 periods, if there are any, as the paper does.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), Fig. 4; the threshold line is ours.
    """
    period = run.attrs.get("period")
    last = int(run["step"][-1]) + 1
    spans = [(0, last)]
    if period and 2.1 * period < last:
        spans.append((round(1.6 * period), round(2.1 * period)))
    figure = Figure(figsize=(7.0, 7.6), layout="constrained")
    grid = figure.subplots(6, len(spans), sharex="col", squeeze=False, width_ratios=[3.4, 1.0][: len(spans)])
    axes_of_time = [dim for dim in run.dims if dim.endswith("step")]
    for column, span, title in zip(grid.T, spans, ("whole run", "zoom"), strict=False):
        _draw_column(column, run.sel({dim: slice(*span) for dim in axes_of_time}))
        column[0].set_title(title)
        column[-1].set(xlabel="step", xlim=span)
    for axes in grid[[1, 4], 1:].flat:  # about one decade: 1, 2, 5 as plain numbers
        style.plain_numbers(axes.yaxis)
    for axes in grid[[1, 4], 0]:
        axes.yaxis.set_minor_formatter(NullFormatter())
    style.label_rows(grid[:, 0], _LABELS)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), ncols=3, loc="outside upper right")
    if "threshold" in run.attrs:
        bound = run.attrs["threshold"]
        grid[4, 0].annotate(
            f"threshold {bound:g}", (1, bound), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=style.COLORS[1], fontsize=7,
            zorder=4,
        )  # fmt: skip
    return figure


@style.styled
def curvature(found: xr.Dataset) -> Figure:
    """Draw what makes up the curvature: five panels, of a run and of an image network.

    a, b: at the start of a period, densities of eigenvalues, stochastic with one standard error, and
    histograms of the dense spectra; c: the sharpness along the period as the sum of its classes; d: spectrum
    of the NTK; e: the Hessian of the image network before and after training. Densities integrate to one.

    Source: ours; a and e after Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159).
    """
    figure = Figure(figsize=(7.0, 6.4), layout="constrained")
    grid = figure.subplot_mosaic([["a", "b"], ["c", "c"], ["d", "e"]])
    for name, parts in (("a", ("Hessian",)), ("b", ("GGN", "residual"))):
        for part, color in zip(parts, style.COLORS, strict=False):
            row = found.sel(part=part)
            counts, edges = np.histogram(row["spectrum"], bins=100, density=True)
            grid[name].stairs(counts, edges, color=color, alpha=0.5, linewidth=0.6, label=f"{part}, dense")
            _draw_density(grid[name], row, "", color, f"{part}, stochastic")
        grid[name].set_title(f"spiral, step {found.attrs['first']:,}")
    for stage, color in zip(found["stage"].values, style.COLORS, strict=False):
        _draw_density(grid["e"], found.sel(stage=stage), "image_", color, stage)
    grid["e"].set_title(f"digits, {found.attrs['num_parameters']:,} parameters")
    for name in "abe":
        grid[name].set(xlabel=r"eigenvalue $\lambda$ (nat)", ylabel="density (1/nat)", yscale="log")
        grid[name].legend()
    for label, color in zip(found["class"].values, cycle(style.COLORS), strict=False):
        series = found["class_curvature"].sel({"class": label})
        grid["c"].plot(found["step"], series, color=color, linewidth=1.0, label=f"class {label}")
    total = dict(color=style.BLACK, linewidth=1.2, label="sum: sharpness")
    grid["c"].plot(found["step"], found["sharpness"], **total)
    style.draw_threshold(grid["c"], found)
    grid["c"].set(xlabel="step", ylabel=r"$\Gamma_c\, u\cdot H_c u$ (nat)")
    grid["c"].legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
    ntk = found["ntk_spectrum"]
    rank = np.arange(1, ntk.size + 1)
    grid["d"].loglog(rank, np.maximum(ntk, 1e-16 * ntk.max()), **style.DOTS | {"markersize": 3})
    grid["d"].set(xlabel="rank", ylabel="NTK eigenvalue")
    grid["d"].set_title(f"spiral, {ntk.size} examples")
    for name, axes in grid.items():
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
    return figure


def _draw_density(axes: Axes, row: xr.Dataset, prefix: str, color: str, label: str) -> None:
    """Draw a density with a band of one standard error, down to a thousandth of an eigenvalue's share."""
    x, y, error = (row[f"{prefix}{name}"].values for name in ("eigenvalue", "density", "density_error"))
    axes.plot(x, y, color=color, linewidth=1.0, label=label)
    axes.fill_between(x, np.maximum(y - error, 1e-12), y + error, color=color, alpha=0.3, linewidth=0)
    axes.set_ylim(bottom=1e-6 * y.max())


def _draw_column(column: np.ndarray, run: xr.Dataset) -> None:
    weights, loss, change, accuracy, hessian, ntk = column
    for axes in column:
        axes.set_rasterization_zorder(3)  # 70,000 points a row: pixels, with text as text
    for label, color in zip(run["class"].values, cycle(style.COLORS), strict=False):
        series = run["class_weights"].sel({"class": label})
        weights.plot(run["step"], series, color=color, linewidth=0.9, label=f"class {label}", zorder=2)
    loss.plot(run["step"], run["loss"], **style.DOTS)
    loss.set_yscale("log")
    change.plot(run["step"][1:], -np.diff(run["loss"]), **style.DOTS)
    change.set_yscale("symlog", linthresh=0.01)  # branches of 0.01 and of 10 in one row
    change.yaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=0.01))
    accuracy.plot(run["step"], run["accuracy"], **style.DOTS)
    accuracy.set_ylim(-0.03, 1.03)
    if "hessian_eigenvalues" in run:
        # dots: the eigenvalue alternates with the parity of the step inside a period-2 window
        sharpness = run["hessian_eigenvalues"][:, 0]
        hessian.plot(run["hessian_step"], sharpness, **style.DOTS | {"markersize": 1.6})
        hessian.set_yscale("log")
    style.draw_threshold(hessian, run)
    if "ntk_eigenvalues" in run:
        ntk.plot(run["ntk_step"], run["ntk_eigenvalues"][:, 0], color=style.BLACK, linewidth=0.6, zorder=2)


@style.styled
def kernel_width(found: xr.Dataset) -> Figure:
    """Draw the relative distance of the empirical NTK from that of infinite width, over the width.

    One panel for each way in which the learning rate goes with the width; means and standard deviations over
    seeds, beside the slope -1/2 through the widest network at its first parameters.
    """
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    panels = figure.subplots(1, found.sizes["rate"], sharex=True, sharey=True)
    initial, widths = found["initial_distance"].rename(draw="seed"), found["initial_width"].values
    first = widths, initial, found["initial_slope"], found["initial_slope_error"]
    beyond = f"from {found['initial_slope'].attrs['widths'][0]:,} on"
    between = "from {:,} to {:,}".format(*found["slope"].attrs["widths"])
    for axes, rate in zip(panels, found["rate"].values, strict=True):
        lines = [("first parameters", beyond, *first)]
        for cycles in found["cycles"].values:
            row, words = found.sel(rate=rate, cycles=cycles), f"after {cycles} cycle{'s' * int(cycles > 1)}"
            trained = (row[name] for name in ("distance", "slope", "slope_error"))
            lines.append((words, between, row["width"].values, *trained))
        for number, (words, where, n, distance, slope, error) in enumerate(lines):
            axes.errorbar(
                n, distance.mean("seed"), distance.std("seed", ddof=1), color=style.COLORS[number],
                marker="osD"[number], markersize=4, linewidth=1, capsize=2,
                label=rf"{words}: $N^{{{float(slope):.3f} \pm {float(error):.3f}}}$ {where}",
            )  # fmt: skip
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


@style.styled
def lazy_rich(found: xr.Dataset) -> Figure:
    """Draw the real network beside the linearised one, under the dynamical and the static loss.

    One column for each network and learning rate; aligned rows against the step, of the first seed, the
    sharpness as the mean of two steps. Below: the final accuracy of every seed, with mean and standard error.

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
    bound = threshold("sgd", float(rate))
    axes[2].axhline(bound, **style.THRESHOLD)
    axes[2].annotate(r"$2/\eta$", (0.99, bound), xycoords=("axes fraction", "data"), xytext=(0, 2),
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
            axes.errorbar(place + shift + 0.05, mean, error, color=color, marker="_", markersize=9, capsize=3)
        chosen = found.sel(linearized=kind, learning_rate=rate)
        text = f"gain {float(chosen['accuracy_gain']):+.2f} ± {float(chosen['accuracy_gain_error']):.2f}"
        axes.annotate(text, (place, 1.1), ha="center", va="top", fontsize=7)
    axes.set(ylim=(0.2, 1.12), xlim=(-0.5, len(columns) - 0.5))
    axes.set(xticks=range(len(columns)), xticklabels=titles)
    axes.set_ylabel(f"final training accuracy\n({num_seeds} seeds)")
