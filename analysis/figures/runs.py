"""Figures of one run: its series, or what measures its curvature."""

from itertools import cycle

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, SymmetricalLogLocator

from analysis.figures import style

_LABELS = (
    r"class weight $\Gamma_i$", style.LOSS, "$F(t-1) - F(t)$\n(nat)", style.ACCURACY, style.SHARPNESS,
    "NTK\n" r"$\lambda_{\max}$",
)  # fmt: skip


@style.styled
def fig4(run: xr.Dataset) -> Figure:
    """Draw a run as Fig. 4 of the first paper: six aligned rows against the step, and a zoom.

    Rows: class weights Gamma_i; F (log axis); F(t - 1) - F(t); training accuracy; largest Hessian
    eigenvalue of F (log axis), with the threshold 2 / learning rate if the optimizer is plain
    gradient descent; largest eigenvalue of the NTK. A row that was not measured stays empty. The
    second column zooms on 1.6 to 2.1 periods, if there are any, as the paper does.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), Fig. 4; the threshold line is ours.
    """
    period, threshold = run.attrs.get("period"), run.attrs.get("threshold")
    last = int(run["step"][-1]) + 1
    spans = [(0, last)]
    if period and 2.1 * period < last:
        spans.append((round(1.6 * period), round(2.1 * period)))
    figure = Figure(figsize=(7.0, 7.6), layout="constrained")
    grid = figure.subplots(6, len(spans), sharex="col", squeeze=False, width_ratios=[3.4, 1.0][: len(spans)])
    axes_of_time = [dim for dim in run.dims if dim.endswith("step")]
    for column, span, title in zip(grid.T, spans, ("whole run", "zoom"), strict=False):
        _draw_column(column, run.sel({dim: slice(*span) for dim in axes_of_time}), threshold)
        column[0].set_title(title)
        column[-1].set(xlabel="step", xlim=span)
    for axes in grid[[1, 4], 1:].flat:  # about one decade: 1, 2, 5 as plain numbers
        style.plain_numbers(axes.yaxis)
    for axes in grid[[1, 4], 0]:
        axes.yaxis.set_minor_formatter(NullFormatter())
    style.label_rows(grid[:, 0], _LABELS)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), ncols=3, loc="outside upper right")
    if threshold is not None:
        grid[4, 0].annotate(
            rf"threshold $2/\eta$ = {threshold:g}", (1, threshold), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=style.COLORS[1], fontsize=7,
            zorder=4,
        )  # fmt: skip
    return figure


@style.styled
def curvature(found: xr.Dataset) -> Figure:
    """Draw what makes up the curvature: five panels, of a run and of an image network.

    a: at the start of a period, density of the Hessian's eigenvalues: stochastic, with one standard
    error, and the histogram of the dense spectrum; b: the same of GGN and residual; c: the sharpness
    along the period as the sum of its classes Gamma_c u.H_c u; d: spectrum of the NTK; e: density of
    the Hessian of the image network before and after training. Densities are on log axes and
    integrate to one.

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
    threshold = found.attrs["threshold"]
    grid["c"].axhline(threshold, **style.THRESHOLD, label=rf"threshold $2/\eta$ = {threshold:g}")
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


def _draw_column(column: np.ndarray, run: xr.Dataset, threshold: float | None) -> None:
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
    if threshold is not None:
        hessian.axhline(threshold, **style.THRESHOLD)
    if "ntk_eigenvalues" in run:
        ntk.plot(run["ntk_step"], run["ntk_eigenvalues"][:, 0], color=style.BLACK, linewidth=0.6, zorder=2)
