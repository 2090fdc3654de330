"""Phase diagrams: figures of reduced sweeps (see `analysis.findings.diagrams.reduce`)."""

import numpy as np
import xarray as xr
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.stability import threshold

_TITLES = {"accuracy": "training accuracy", "validation_accuracy": "validation accuracy"}


@style.styled
def amplitude_period(reduced: xr.Dataset) -> Figure:
    """Draw accuracy over amplitude and period, the static loss as the lowest row, and its spread.

    The contour encloses cells significantly better than the static loss (paired, false discovery rate 5 %).

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), section 3; statistics ours.
    """
    statistics = {"mean": ("mean", "viridis", (1 / 3, 1)), "std": ("standard deviation", "magma", (0,))}
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, (name, title) in zip(grid, _TITLES.items(), strict=True):
        for axes, (statistic, (words, colors, limits)) in zip(row, statistics.items(), strict=True):
            cells = _above_static(reduced, f"{name}_{statistic}")
            figure.colorbar(_draw_cells(axes, cells, Normalize(*limits), colors), ax=axes, label=title)
            axes.set_title(f"{words} over {reduced.attrs['num_seeds']} seeds")
        _draw_contour(row[0], _above_static(reduced, f"{name}_significant", static=0.0))
    setp(grid[1], xlabel="period $T$ (steps per class)")
    setp(grid[:, 0], ylabel="amplitude $A$")
    _explain_contour(figure, "significantly better than the static loss ($A = 1$, the lowest row)")
    return figure


@style.styled
def width_rate(reduced: xr.Dataset) -> Figure:
    """Draw accuracy over width and learning rate, of the dynamical and the static loss, and the sharpness.

    The sharpness is that at the end, in units of the threshold 2 / learning rate. The contour encloses cells
    with a significant gain. A cell without a finite run is blank.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), section 3; sharpness and statistics ours.
    """
    reduced = reduced.transpose("width", "learning_rate", ...)
    amplitude = float(reduced["amplitude"].max())
    static, dynamical = (reduced.sel(amplitude=value) for value in (1.0, amplitude))
    columns = {"static loss": static, f"dynamical loss, $A$ = {amplitude:g}": dynamical}
    figure = Figure(figsize=(7.0, 6.2), layout="constrained")
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for row, (name, title) in zip(grid, _TITLES.items(), strict=False):
        for axes, (label, cells) in zip(row, columns.items(), strict=False):
            image = _draw_cells(axes, cells[f"{name}_mean"], Normalize(1 / 3, 1))
            axes.set_title(label)
        figure.colorbar(image, ax=row[1], label=title)
        gain = dynamical[f"{name}_gain"]
        most = max(0.01, float(np.abs(gain).max()))
        image = _draw_cells(row[2], gain, TwoSlopeNorm(0, -most, most), "RdBu_r")
        figure.colorbar(image, ax=row[2], label=f"gain in\n{title}")
        _draw_contour(row[2], dynamical[f"{name}_significant"], "#111111")
        row[2].set_title("dynamical minus static")
    for axes, cells in zip(grid[2], columns.values(), strict=False):
        ratio = cells["sharpness_mean"] * cells["learning_rate"] / threshold("sgd", 1.0)
        image = _draw_cells(axes, np.log10(ratio.where(ratio > 0)), TwoSlopeNorm(0, -2, 1), "PuOr")
    figure.colorbar(image, ax=grid[2, 1], label=r"$\log_{10}\,\lambda_{\max}\eta/2$" "\nat the end")
    grid[2, 2].axis("off")
    for axes in (*grid[2, :2], grid[1, 2]):
        axes.set_xlabel(r"learning rate $\eta$")
        axes.tick_params(labelbottom=True)
    setp(grid[:, 0], ylabel="width (hidden units)")
    _explain_contour(figure, "significant gain over the static loss", "#111111")
    return figure


@style.styled
def static_width_rate(reduced: xr.Dataset) -> Figure:
    """Draw loss and sharpness along training for each width (column) and learning rate (color).

    Lines are means over seeds, bands one standard error of the mean; dashed: the threshold 2 / learning rate.

    Source: Ruiz-Garcia et al. 2024 (arXiv 2410.10690), Fig. 1.
    """
    widths = reduced["width"].values
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    grid = figure.subplots(2, len(widths), sharex=True, sharey="row", squeeze=False)
    for column, width in zip(grid.T, widths, strict=True):
        for rate, color in zip(reduced["learning_rate"].values, style.COLORS, strict=False):
            cell = reduced.sel(width=width, learning_rate=rate)
            for axes, name in zip(column, ("loss", "sharpness"), strict=True):
                _draw_band(axes, cell, name, "step", color, rf"$\eta$ = {rate:g}", reduced.attrs["num_seeds"])
            column[1].axhline(threshold("sgd", float(rate)), color=color, linewidth=0.9, linestyle="--")
        column[0].set_title(f"{width} hidden units")
        column[1].set(xlabel="step", yscale="log")
        column[0].set(yscale="log")
    grid[0, 0].set_ylabel("static cross-entropy (nat)")
    grid[1, 0].set_ylabel(r"sharpness $\lambda_{\max}$ (nat)")
    dashed = Line2D([], [], color=style.BLACK, linewidth=0.9, linestyle="--", label=r"threshold $2/\eta$")
    lines = [*grid[0, 0].get_legend_handles_labels()[0], dashed]
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines))
    return figure


@style.styled
def losses_width(reduced: xr.Dataset) -> Figure:
    """Draw accuracy against width for each dynamical loss (column) beside its static parent.

    Lines are means over seeds, bands one standard error of the mean; filled markers: significantly better
    than the static parent (paired over seeds, false discovery rate 5 %).

    Source: Ruiz-Garcia et al. 2024 (arXiv 2410.10690).
    """
    kinds = {"static": 1.0, "dynamical": float(reduced["amplitude"].max())}
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    grid = figure.subplots(2, reduced.sizes["loss_name"], sharex=True, sharey="row")
    for column, loss in zip(grid.T, reduced["loss_name"].values, strict=True):
        for axes, (name, title) in zip(column, reversed(_TITLES.items()), strict=True):
            for (label, amplitude), color in zip(kinds.items(), style.COLORS, strict=False):
                cell = reduced.sel(loss_name=loss, amplitude=amplitude)
                _draw_band(axes, cell, name, "width", color, label, reduced.attrs["num_seeds"])
            better = cell[f"{name}_mean"].where(cell[f"{name}_significant"] == 1, drop=True)
            axes.plot(better["width"], better, "o", color=color, markersize=4, label="significantly better")
            axes.set(xscale="log", ylabel=title if axes in grid[:, 0] else "")
        column[0].set_title(str(loss))
        column[1].set_xlabel("width (hidden units)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _above_static(reduced: xr.Dataset, name: str, static: float | None = None) -> xr.DataArray:
    """Return a variable over amplitude and period, with the static loss as amplitude 1."""
    reference = reduced[f"reference_{name}"] if static is None else static
    row = (xr.zeros_like(reduced["period"], float) + reference).expand_dims(amplitude=[1.0])
    return xr.concat([row, reduced[name].transpose("amplitude", "period")], "amplitude")


def _draw_cells(axes: Axes, values: xr.DataArray, scale: Normalize, colors: str = "viridis"):
    """Draw [y, x] as one rectangle a cell, on log axes: the edges lie half way between the cells."""
    axes.set(xscale="log", yscale="log")
    rows, columns = (_edges(values[dim]) for dim in values.dims)
    return axes.pcolormesh(columns, rows, values.values, norm=scale, cmap=colors)


def _draw_contour(axes: Axes, significant: xr.DataArray, color: str = "white") -> None:
    """Outline the cells [y, x] that are significant, along their edges."""
    marked = np.pad(np.nan_to_num(significant.values.astype(float)) > 0, 1)
    rows, columns = (_edges(significant[dim]) for dim in significant.dims)
    for row, column in np.argwhere(marked[:, 1:] != marked[:, :-1]):
        axes.plot([columns[column]] * 2, rows[row - 1 : row + 1], color=color, linewidth=1.4)
    for row, column in np.argwhere(marked[1:] != marked[:-1]):
        axes.plot(columns[column - 1 : column + 1], [rows[row]] * 2, color=color, linewidth=1.4)


def _edges(centers: xr.DataArray) -> np.ndarray:
    logs = np.log(centers.values.astype(float))
    half = np.diff(logs) / 2 if len(logs) > 1 else np.array([0.5])
    return np.exp(np.concatenate([[logs[0] - half[0]], (logs[1:] + logs[:-1]) / 2, [logs[-1] + half[-1]]]))


def _draw_band(
    axes: Axes, cell: xr.Dataset, name: str, x: str, color: str, label: str, num_seeds: int
) -> None:
    mean, error = cell[f"{name}_mean"], cell[f"{name}_std"] / num_seeds**0.5
    axes.plot(cell[x], mean, color=color, linewidth=1.0, label=label)
    lower = np.maximum(mean - error, 0.5 * float(mean.min()))  # on a log axis
    axes.fill_between(cell[x], lower, mean + error, color=color, alpha=0.25, linewidth=0)


def _explain_contour(figure: Figure, text: str, color: str = "white") -> None:
    line = Line2D([], [], color=color, linewidth=1.4, label=text)
    box = dict(frameon=True, facecolor="#31688e" if color == "white" else "white", framealpha=1)
    figure.legend(handles=[line], loc="outside upper right", labelcolor=color, **box)


@style.styled
def large_rates(reduced: xr.Dataset) -> Figure:
    """Draw accuracy over the learning rate at each width, under the static loss and dynamical ones.

    Means over seeds, bars one standard error; dashed: with a long quiet end.
    """
    widths, root = reduced["width"].values, reduced.attrs["num_seeds"] ** 0.5
    figure = Figure(figsize=(7.0, 2.9), layout="constrained")
    marks = dict(marker="o", markersize=2.5, linewidth=1, capsize=1)
    for axes, width in zip(figure.subplots(1, len(widths), sharey=True), widths, strict=True):
        cells = reduced.sel(width=width).rename(learning_rate="x")
        mean, std = (100 * cells[f"reference_accuracy_{of}"] for of in ("mean", "std"))
        axes.errorbar(cells["x"], mean, yerr=std / root, color=style.BLACK, label="static", zorder=3, **marks)
        for name, color in zip(cells["loss_name"].values, style.COLORS, strict=False):
            for quiet, line in zip(cells["quiet"].values, ("-", "--"), strict=True):
                cell = cells.sel(loss_name=name, quiet=quiet)
                mean, std = (100 * cell[f"accuracy_{of}"] for of in ("mean", "std"))
                label = str(name) if line == "-" else None
                axes.errorbar(
                    cell["x"], mean, yerr=std / root, color=color, linestyle=line, label=label, **marks
                )
        axes.set(title=f"width {width}", xscale="log", xlabel=r"learning rate $\eta$", ylim=(25, 103))
        style.plain_numbers(axes.xaxis)
    figure.axes[0].set_ylabel("training accuracy (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
