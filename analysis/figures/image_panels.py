"""Figures of networks of images (see `analysis.findings.tuned_losses.reduce`)."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from analysis.figures import style

_NAMES = {"mnist1d": "MNIST-1D", "fashion_mnist": "Fashion-MNIST", "digits": "digits", "cifar10": "CIFAR-10"}


@style.styled
def image_rates(found: xr.Dataset) -> Figure:
    """Draw test accuracy and dead runs over the learning rate for each data set, and the sharpness.

    Points are means over live runs, bars one standard error; rings: the learning rate that validation chose.
    """
    names = [str(name) for name in found["data"].values]
    has_runs = "sharpness" in found
    figure = Figure(figsize=(2.4 * max(len(names), 2), 3.4 + 2.0 * has_runs), layout="constrained")
    heights = [2, 0.7, *[2] * has_runs]
    grid = figure.subplots(len(heights), len(names), squeeze=False, height_ratios=heights)
    for column, name in zip(grid.T, names, strict=True):
        column[0].sharex(column[1])  # whose labels are those of both, also where all runs of a rate are dead
        cells = found.sel(data=name)
        _draw_rates(column[0], cells)
        _draw_dead(column[1], cells)
        column[0].set_title(_NAMES.get(name, name))
        if has_runs:
            _draw_sharpness(column[2], cells)
    grid[0, 0].set_ylabel("test accuracy (%)")
    grid[1, 0].set_ylabel("dead\nruns (%)")
    grid[0, 0].legend(loc="lower right")
    if has_runs:
        grid[2, 0].set_ylabel("sharpness over\nthreshold")
        entries, num_columns = grid[2, 0].get_legend_handles_labels(), 4 if len(names) > 2 else 2
        figure.legend(*entries, loc="outside lower center", ncols=num_columns)
    return figure


@style.styled
def image_plane(found: xr.Dataset) -> Figure:
    """Draw what the dynamical loss gains over amplitude and period at one learning rate, and tuned.

    In the plane a star marks cells that differ from the static loss (paired, false discovery rate 5 %), of
    cells without a dead run.
    """
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    plane, tuned = figure.subplots(1, 2, width_ratios=(1.3, 1))
    gain = 100 * found["plane_gain"].transpose("plane_amplitude", "plane_period")
    most = max(1.0, float(np.abs(gain).max()))
    image = plane.imshow(
        gain.values, cmap="RdBu_r", norm=TwoSlopeNorm(0, -most, most), aspect="auto", origin="lower"
    )
    error = 100 * found["plane_gain_error"].transpose(*gain.dims)
    dead, significant = (found[f"plane_{of}"].transpose(*gain.dims).values for of in ("dead", "significant"))
    for row, column in np.ndindex(gain.shape):
        value, words = gain.values[row, column], "all dead"
        if np.isfinite(value):
            spread = error.values[row, column]
            words = f"{value:+.1f}{'*' if significant[row, column] else ''}"
            words += f"\n± {spread:.1f}" if np.isfinite(spread) else ""
            words += f"\n{100 * dead[row, column]:.0f} % dead" if dead[row, column] else ""
        color = "white" if abs(value) > most / 2 else style.BLACK
        plane.text(column, row, words, ha="center", va="center", fontsize=6.5, color=color)
    plane.set_xticks(range(gain.shape[1]), [f"{of:g}" for of in gain["plane_period"].values])
    plane.set_yticks(range(gain.shape[0]), [f"{of:g}" for of in gain["plane_amplitude"].values])
    plane.set(
        xlabel="period $T$ (steps per class)",
        ylabel="amplitude $A$",
        title=rf"MNIST-1D, $\eta$ = {float(found['plane_rate']):g}",
    )
    figure.colorbar(image, ax=plane, label="gain (points)")
    names = [str(name) for name in found["data"].values]
    values, errors = 100 * found["tuned_gain"], 100 * found["tuned_gain_error"]
    tuned.errorbar(values, range(len(names)), xerr=errors, fmt="o", color=style.COLORS[1], capsize=2)
    tuned.axvspan(-0.5, 0.5, color=style.GREY, alpha=0.25, linewidth=0, label="as good")
    tuned.axvline(0, color=style.BLACK, linewidth=0.6)
    tuned.set_yticks(range(len(names)), [_NAMES.get(name, name) for name in names])
    tuned.set(
        xlabel="gain (points), fresh seeds",
        title="each loss at its own learning rate",
        ylim=(-0.6, len(names) - 0.4),
    )
    tuned.legend(loc="upper right")
    return figure


@style.styled
def image_run(found: xr.Dataset) -> Figure:
    """Draw one run with minibatches: loss, accuracies and sharpness over the threshold, along training."""
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    rows = figure.subplots(4, 1, sharex=True)
    rows[0].plot(found["step"], found["loss"], color=style.GREY, linewidth=0.5)
    rows[0].set(yscale="log")
    for name, color in zip(("validation", "test"), style.COLORS, strict=False):
        accuracy = 100 * found[f"{name}_accuracy"]
        rows[1].plot(found["evaluation_step"], accuracy, color=color, linewidth=1, label=name)
    rows[1].legend(loc="best")
    rows[2].plot(found["step"], found["learning_rate"], color=style.BLACK, linewidth=1)
    for values, words, color in (
        (found["hessian_eigenvalues"].isel(rank=0), "all examples", style.COLORS[0]),
        (found["batch_sharpness"], "batches", style.COLORS[2]),
    ):
        at = found[values.dims[0]]  # each probe's own steps
        ratio = values.values / found["threshold"].sel(step=at.values).values
        ratio = np.where(ratio > 0, ratio, np.nan)  # no line to a rate of zero, or a negative curvature
        rows[3].plot(at, ratio, "o-", color=color, markersize=3, label=words)
    rows[3].axhline(1, **style.THRESHOLD)
    rows[3].set(yscale="log", xlabel="step")
    rows[3].legend(loc="best")
    labels = style.LOSS, "accuracy (%)", r"rate $\eta$", "sharpness\nover threshold"
    style.label_rows(rows, labels)
    return figure


@style.styled
def image_curvature(found: xr.Dataset) -> Figure:
    """Draw density of the Hessian, its largest eigenvalue split by class, and the NTK of image networks.

    Bands are one standard error over probes; the classes of a network add up to its sharpness.
    """
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    density, split, ntk = figure.subplots(1, 3)
    for shift, (name, color) in enumerate(zip(found["network"].values, style.COLORS, strict=False)):
        cell = found.sel(network=name)
        x, y, error = (cell[of] for of in ("eigenvalue", "density", "density_error"))
        density.plot(x, y, color=color, linewidth=1, label=str(name))
        density.fill_between(x, np.maximum(y - error, 1e-12), y + error, color=color, alpha=0.3, linewidth=0)
        share = cell["class_curvature"] / cell["class_curvature"].sum()
        split.bar(np.arange(share.size) + 0.4 * shift - 0.2, share, 0.4, color=color)
        rank = np.arange(1, cell.sizes["ntk_rank"] + 1)
        ntk.loglog(rank, cell["ntk_spectrum"], ".-", color=color, linewidth=0.8, markersize=3)
    bottom = 1e-7 * float(found["density"].max())
    density.set(
        xlabel=r"eigenvalue $\lambda$ (nat)", ylabel="density (1/nat)", yscale="log", ylim=(bottom, None)
    )
    density.set_xscale("symlog", linthresh=1)  # the bulk at zero, and outliers far from it
    density.legend(loc="upper left")
    split.set(xlabel="class", ylabel="share of the sharpness")
    ntk.set(xlabel="rank", ylabel="NTK eigenvalue")
    return figure


def _losses(cells: xr.Dataset):
    amplitude = float(cells["amplitude"].max())
    labels = {1.0: "static", amplitude: f"dynamical, $A$ = {amplitude:g}"}
    for (value, label), color in zip(labels.items(), style.COLORS, strict=False):
        yield cells.sel(amplitude=value), label, color


def _draw_rates(axes: Axes, cells: xr.Dataset) -> None:
    for cell, label, color in _losses(cells):
        mean, error = 100 * cell["accuracy"], 100 * cell["accuracy_error"]
        axes.errorbar(
            cell["learning_rate"],
            mean,
            yerr=error,
            color=color,
            marker="o",
            markersize=3,
            linewidth=1,
            label=label,
        )
        chosen = cell["tuned_rate"]
        axes.plot(chosen, mean.sel(learning_rate=chosen), "o", color=color, markersize=8, fillstyle="none")
    axes.set(xscale="log")
    axes.tick_params(which="both", labelbottom=False)


def _draw_dead(axes: Axes, cells: xr.Dataset) -> None:
    for cell, _, color in _losses(cells):
        share, limits = 100 * cell["dead"], (cell["dead_low"], cell["dead_high"])
        errors = np.stack([np.abs(share - 100 * limit) for limit in limits])
        marks = dict(color=color, marker="o", markersize=3, linewidth=1, capsize=1.5)
        axes.errorbar(cell["learning_rate"], share, yerr=errors, **marks)
    axes.set(xscale="log", xlabel=r"learning rate $\eta$", ylim=(-5, 105))


def _draw_sharpness(axes: Axes, cells: xr.Dataset) -> None:
    lines = {"sharpness": ("-", "all examples"), "batch_sharpness": (":", "batches")}
    for loss, color in zip(("static", "dynamical"), style.COLORS, strict=False):
        run = cells.sel(loss=loss)
        for name, (line, words) in lines.items():
            ratio = (run[name] / run["run_threshold"]).where(lambda of: of > 0)
            axes.plot(run["run_step"], ratio, line, color=color, linewidth=1, label=f"{loss}, {words}")
    axes.axhline(1, **style.THRESHOLD)
    axes.set(yscale="log", xlabel="step")
