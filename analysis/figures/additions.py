"""Figures of networks that learn to add (see `analysis.findings.forgetting.reduce`)."""

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.findings.addition_tables import ERRORS, PUBLISHED

_CRITERIA = {"within_tenth": "within .1", "right_side": "side of .5", "best_match": "best match"}


@style.styled
def addition_lists(found: xr.Dataset) -> Figure:
    """Draw ones and twos over the trials in both networks, and ones by all criteria and by their error."""
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    (classical, clauses), (criteria, error) = figure.subplots(2, 2)
    shares = found.sel(order="ones first")["classical_share"]
    free = found["clauses_share"].sel(tied=False)
    for color, name in zip(style.COLORS, ("ones", "twos"), strict=False):
        _draw_band(classical, shares.sel(list=name, criterion="best_match"), name, color)
        _draw_band(clauses, free.sel(set=name), name, color)
        if name == "ones":
            clauses.lines[-1].set(linewidth=4, alpha=0.4)  # beneath the twos, which share its value
    _draw_band(clauses, free.sel(set="pairs"), "all pairs of 5 bits", style.COLORS[2])
    of_1989 = dict(color=style.BLACK, linestyle="none", marker="*", markersize=7, zorder=3)
    classical.plot(*zip(*PUBLISHED.items(), strict=True), label="ones, 1989", **of_1989)
    for color, (name, label) in zip(style.COLORS, _CRITERIA.items(), strict=False):
        _draw_band(criteria, shares.sel(list="ones", criterion=name), label, color)
    ones = found["unit_error"].sel(order="ones first", list="ones")
    _draw_band(error, ones, "ones", style.COLORS[0], factor=1)
    error.plot(range(len(ERRORS)), ERRORS, label="ones, 1989", **of_1989)
    titles = (
        "classical network: best match",
        "free clauses: side of .5",
        "classical network: ones, by criterion",
    )
    for axes, title in zip((classical, clauses, criteria), titles, strict=True):
        axes.set(title=title, ylim=(-3, 103), ylabel="right (%)")
    shown = ones.sel(trial=slice(None, 12), band="high")
    error.set(ylim=(0, 1.3 * float(shown.where(shown["trial"] >= -3).max())), ylabel="squared error a unit")
    error.set_title("classical network: ones")
    _of_twos((classical, clauses, criteria, error), int(found["trial"][-1]))
    figure.supxlabel("trials of twos (before 0: of ones)")
    return figure


@style.styled
def addition_curvature(found: xr.Dataset) -> Figure:
    """Draw sharpness, size of the kernel, and alignment of the lists' kernels in both networks."""
    figure = Figure(figsize=(7.0, 2.5), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = {
        "sharpness": "sharpness",
        "kernel": "NTK, largest eigenvalue",
        "alignment": "alignment of the\nkernels of both lists",
    }
    for axes, (quantity, label) in zip(panels, labels.items(), strict=True):
        for color, name in zip((style.BLACK, style.COLORS[2]), ("classical", "clauses"), strict=True):
            _draw_band(axes, found[f"{name}_{quantity}"], name, color, factor=1)
        axes.set_ylabel(label)
        if quantity != "alignment":
            axes.set_yscale("log")
    panels[-1].set_ylim(0, 1)
    _of_twos(panels, int(found["trial"][-1]))
    for axes in panels[:-1]:
        axes.get_legend().remove()
    figure.supxlabel("trials of twos (before 0: of ones)")
    return figure


def _of_twos(panels: Iterable[Axes], last: int) -> None:
    """Show the trials around the change of lists, where it happens."""
    for axes in panels:
        axes.axvline(0, color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
        axes.set_xlim(-3, min(12, last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center right")


@style.styled
def addition_pairs(found: xr.Dataset) -> Figure:
    """Draw how the network of clauses learns from random additions, and what it has learned."""
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    over, longer = upper.subplots(1, 2)
    shares = found["pairs_unseen"].sel(initial_scale=found["initial_scale"][0])
    colors = iter(style.COLORS)
    for tied, words in ((False, "free"), (True, "tied")):
        for rate in shares["learning_rate"].values:
            of = shares.sel(tied=tied, learning_rate=rate)
            _draw_band(over, of, f"{words}, η = {rate:g}", next(colors), "additions")
    words = "pairs without the clause\nthat ones and twos lack"
    over.axhline(100 * float(found["bound"]), color=style.BLACK, linestyle="--", linewidth=0.8, label=words)
    over.set(
        xlabel="random additions, one at a time", ylabel="unseen pairs right, at least (%)", xlim=(0, 200)
    )
    over.legend(loc="lower right", title="clauses")
    of = found["longer_share"]
    networks = longer.plot(of["bits"], 100 * of, ".-", color=style.COLORS[0], alpha=0.5)
    networks[0].set_label(f"{of.sizes['network']} networks, free, η = 1")
    longer.axvline(5, **style.THRESHOLD, label="bits in training")
    longer.set(xlabel="bits of the numbers", ylabel="right (%)", ylim=(-3, 103))
    longer.legend(loc="lower right")
    lower.suptitle("free clauses, η = 1: which pairs are right, and the table that was learned", fontsize=8)
    panels = lower.subplots(1, found.sizes["shown"] + 2)
    for axes, shown in zip(panels, found["shown"].values, strict=False):
        image = axes.imshow(
            100 * found["pairs_right"].sel(shown=shown).T, origin="lower", vmin=0, vmax=100, cmap="viridis"
        )
        axes.set(title=f"after {shown}", xlabel="a", ylabel="b", xticks=(0, 15, 31), yticks=(0, 15, 31))
    lower.colorbar(image, ax=panels[: found.sizes["shown"]], label="seeds right (%)", shrink=0.7)
    for axes, of in zip(panels[-2:], ("digit", "carry"), strict=True):
        _draw_table(axes, found["clause"].sel(of=of).mean("network"))
        axes.set_title(f"learned: {of}")
    return figure


@style.styled
def addition_turns(found: xr.Dataset) -> Figure:
    """Draw what is forgotten, and the error, under a loss that emphasises one list at a time."""
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for color, amplitude in zip((style.BLACK, *style.COLORS[1:3]), found["amplitude"].values, strict=True):
        label = "static" if amplitude == 1 else f"dynamical, A = {amplitude:g}"
        for axes, of, factor in zip(panels, ("turns_lowest", "turns_error"), (100, 1), strict=True):
            _draw_band(axes, found[of].sel(amplitude=amplitude), label, color, "period", factor)
            axes.lines[-1].set(marker="o", markersize=3)
            if amplitude == 1:  # beneath the others, which share its value
                axes.lines[-1].set(linewidth=4, alpha=0.4)
    for axes, title in zip(panels, ("list that is right least", "both lists"), strict=True):
        axes.set(title=title, xscale="log", xlabel="steps for which a list is emphasised")
        style.plain_numbers(axes.xaxis)
    panels[0].set_ylabel("right by best match,\nlast cycle (%)")
    panels[0].legend(loc="lower left")
    panels[1].set(ylabel="squared error a unit,\nlast cycle", yscale="log")
    return figure


def _draw_band(
    axes: Axes, values: xr.DataArray, label: str, color: str, dim: str = "trial", factor: float = 100
) -> None:
    """Draw the mean over seeds, of a share in %, and the band of eight seeds in ten."""
    mean, low, high = (factor * values.sel(band=of) for of in ("mean", "low", "high"))
    axes.fill_between(values[dim], low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(values[dim], mean, color=color, label=label)


def _draw_table(axes: Axes, clause: xr.DataArray) -> None:
    """Draw a table of clauses: rows are the carry, columns the bits a and b."""
    values = clause.transpose("carry", "bit_a", "bit_b").values.reshape(2, 4)
    axes.imshow(values, vmin=0, vmax=1, cmap="Greys")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.5 else style.BLACK
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=5, color=color)
    axes.set_xticks(range(4), ["00", "01", "10", "11"])
    axes.set_yticks(range(2), ["0", "1"])
    axes.set(xlabel="bits a, b", ylabel="carry")
