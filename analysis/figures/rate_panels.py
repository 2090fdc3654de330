"""Figures of accuracy over learning rates (see `analysis.findings.shifts.reduce`)."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style

_CONTROLS = {
    "shuffled": "shuffled $\\Gamma$",
    "cycling": "cycling $\\eta$",
    "static at s eta": "static, $s\\eta$",
}
_NAMES = {"weighted_batch": "weighted batch", "frozen_batch": "batch, frozen"}


@style.styled
def rate_curves(found: xr.Dataset) -> Figure:
    """Draw test accuracy and dead runs over the learning rate for each normalization and amplitude.

    Points are means over live runs, bars one standard error, of dead runs Wilson's interval.
    """
    names = [str(name) for name in found["normalization"].values]
    figure = Figure(figsize=(1.5 * max(len(names), 3) + 0.6, 3.4), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row", height_ratios=[2.2, 1])
    for (upper, lower), name in zip(grid.T, names, strict=True):
        for amplitude, color in zip(found["amplitude"].values, style.COLORS, strict=False):
            cell = found.sel(normalization=name, amplitude=amplitude)
            label = "static" if amplitude == 1 else f"$A$ = {amplitude:g}"
            marks = dict(color=color, marker="o", markersize=2.5, linewidth=1, capsize=1)
            x = cell["learning_rate"] * cell["rate_unit"]
            upper.errorbar(x, 100 * cell["accuracy"], yerr=100 * cell["accuracy_error"], label=label, **marks)
            limits = [100 * np.abs(cell["dead"] - cell[f"dead_{end}"]) for end in ("low", "high")]
            lower.errorbar(x, 100 * cell["dead"], yerr=limits, **marks)
        upper.set_title(_NAMES.get(name, name))
        lower.set(xscale="log", xlabel=r"rate $\eta$", ylim=(-5, 105))
        style.plain_numbers(lower.xaxis)
    grid[0, 0].set_ylabel("test accuracy (%)")
    grid[1, 0].set_ylabel("dead runs (%)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@style.styled
def rate_shifts(found: xr.Dataset) -> Figure:
    """Draw the shift of each dynamical loss beside the ratio of sharpnesses, its tuned gain, the controls.

    Bars are 95 % bootstrap intervals of the shift, one standard error else; grey: within half a point.
    """
    has_controls = "control_gain" in found
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    shift, gain, *more = figure.subplots(1, 2 + has_controls)
    names = [str(name) for name in found["normalization"].values]
    rows = np.arange(len(names))[::-1]
    for place, (amplitude, color) in enumerate(
        zip(found["amplitude"].values[1:], style.COLORS[1:], strict=False)
    ):
        cell, y = found.sel(amplitude=amplitude), rows + 0.2 - 0.3 * place
        ends = [np.abs(cell["shift"] - cell[f"shift_{end}"]) for end in ("low", "high")]
        marks = dict(fmt="o", color=color, markersize=3.5, capsize=1.5, linewidth=1)
        shift.errorbar(cell["shift"], y, xerr=ends, label=f"shift, $A$ = {amplitude:g}", **marks)
        if "sharpness_ratio" in cell:
            ratio = f"ratio of sharpnesses, $A$ = {amplitude:g}"
            shift.plot(cell["sharpness_ratio"], y, "|", color=color, markersize=9, label=ratio)
        gain.errorbar(100 * cell["gain"], y, xerr=100 * cell["gain_error"], **marks)
    shift.axvline(1, color=style.BLACK, linewidth=0.6)
    shift.set(xscale="log", xlabel="shift $s$ of the rate")
    style.plain_numbers(shift.xaxis)
    _within(gain)
    gain.set(xlabel="gain at the peak (points)")
    for axes in (shift, gain):
        axes.set_yticks(rows, [_NAMES.get(name, name) for name in names] if axes is shift else [])
        axes.set_ylim(-0.6, len(names) - 0.4)
    if has_controls:
        _draw_controls(*more, found)
    figure.legend(*shift.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def _within(axes: Axes) -> None:
    axes.axvspan(-0.5, 0.5, color=style.GREY, alpha=0.25, linewidth=0)
    axes.axvline(0, color=style.BLACK, linewidth=0.6)


def _draw_controls(axes: Axes, found: xr.Dataset) -> None:
    cells = found["control_gain"].dropna("normalization", how="all")
    labels = []
    for name in cells["normalization"].values:
        for control in cells["control"].values:
            at = dict(normalization=name, control=control)
            value, error = 100 * cells.sel(at), 100 * found["control_gain_error"].sel(at)
            y = -len(labels) + 0.2 * (1 - np.arange(value.size))
            axes.errorbar(value, y, xerr=error, fmt="o", color=style.BLACK, markersize=2.5, linewidth=0.8)
            labels.append(f"{_CONTROLS[str(control)]}, {_NAMES.get(str(name), str(name))}")
    _within(axes)
    axes.set_yticks(-np.arange(len(labels)), labels)
    axes.set(xlabel="control minus dynamical (points)")


@style.styled
def capped_spiral(found: xr.Dataset) -> Figure:
    """Draw accuracy and instabilities of the spiral at each rate, under the static and the dynamical loss.

    A point a seed, a bar the mean.
    """
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    panels = figure.subplots(1, 3)
    rows = (
        ("final_accuracy", "training accuracy"),
        ("final_validation_accuracy", "validation accuracy"),
        ("instabilities", "instabilities a run"),
    )
    names = [str(name) for name in found["rate"].values]
    for axes, (variable, label) in zip(panels, rows, strict=True):
        for place, (words, color) in enumerate(zip(("static", "dynamical"), style.COLORS, strict=False)):
            cells = found[variable].isel(amplitude=place).transpose("rate", "seed")
            x = np.arange(len(names)) + 0.3 * (place - 0.5)
            spread = np.linspace(-0.09, 0.09, cells.sizes["seed"])
            axes.plot((x[:, None] + spread).T, cells.values.T, ".", color=color, markersize=3)
            axes.hlines(cells.mean("seed"), x - 0.13, x + 0.13, color=color, linewidth=1.5, label=words)
        axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
        axes.set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@style.styled
def ruled_signals(found: xr.Dataset) -> Figure:
    """Draw what the dynamical loss gains on signals under each rule, without and with batch norm.

    Bars are one standard error; grey: within half a point.
    """
    names = [str(name) for name in found["normalization"].values]
    figure = Figure(figsize=(3.4 * len(names), 2.6), layout="constrained")
    y = -np.arange(found.sizes["rule"])
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        cell = found.sel(normalization=name)
        gain, error = 100 * cell["signal_gain"], 100 * cell["signal_gain_error"]
        axes.errorbar(gain, y, xerr=error, fmt="o", color=style.BLACK, markersize=3.5, capsize=1.5)
        _within(axes)
        axes.set_yticks(y, [str(rule).replace("_", " ") for rule in found["rule"].values])
        axes.set(xlabel="gain in test accuracy (points)", title=_NAMES.get(name, f"norm: {name}"))
    return figure


@style.styled
def open_questions(found: xr.Dataset) -> Figure:
    """Draw all effects with their 95 % intervals, the gain over the conditioning, and equal budgets.

    Grey: within half a point. Bars of the conditions are one standard error.
    """
    figure = Figure(figsize=(7.4, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.35, 1])
    (gains, moved), colors = left.subplots(2, 1, height_ratios=[6, 1]), {"E2": 0, "E3": 1, "E4": 2, "E6": 3}
    for axes, is_shift, unit in ((gains, 0, 100), (moved, 1, 1)):
        cells = found.isel(effect=(found["is_shift"] == is_shift).values)
        names = [str(name).removesuffix(": shift") for name in cells["effect"].values]
        for y, name in zip(-np.arange(len(names)), cells["effect"].values, strict=True):
            cell, color = unit * cells.sel(effect=name), style.COLORS[colors[str(name)[:2]]]
            ends = [[abs(float(cell["value"] - cell[end]))] for end in ("low", "high")]
            axes.errorbar(cell["value"], y, xerr=ends, fmt="o", color=color, markersize=3, capsize=1.5)
        axes.set_yticks(-np.arange(len(names)), names)
        axes.set_ylim(0.6 - len(names), 0.6)
    _within(gains)
    gains.set(xlabel="gain, its change, or slope (points)")
    moved.axvline(1, color=style.BLACK, linewidth=0.6)
    moved.set(xlabel="shift $s$ of the rate")
    upper, lower = right.subplots(2, 1)
    for is_normalized, color in zip((0, 1), style.COLORS, strict=False):
        cells = found.isel(condition=(found["condition_is_normalized"] == is_normalized).values)
        x = 10 ** cells["condition_sharpness"].sel(time="early")
        y, error = (100 * cells[name] for name in ("condition_gain", "condition_gain_error"))
        label = ("no norm", "group norm")[is_normalized]
        upper.errorbar(x, y, yerr=error, fmt="o", color=color, markersize=3, capsize=1.5, label=label)
    upper.axhline(0, color=style.BLACK, linewidth=0.6)
    upper.set(xscale="log", xlabel="sharpness at 10 % of the steps (nat)", ylabel="gain (points)")
    upper.legend()
    for name, line in zip(found["normalization"].values, ("-", "--"), strict=False):
        for moves, words, color in zip((False, True), ("static", "dynamical"), style.COLORS, strict=False):
            values = 100 * found["expected_best"].sel(normalization=name, moving=moves)
            lower.plot(found["budget"], values, line, color=color, label=f"{words}, norm: {name}")
    lower.set(xscale="log", xlabel="trials", ylabel="test accuracy\nof the best (%)")
    style.plain_numbers(lower.xaxis)
    lower.legend()
    return figure
