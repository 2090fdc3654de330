"""What all figures share: fonts and colours, aligned rows, plain numbers on log axes, dots, thresholds."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

styled = matplotlib.rc_context(  # a decorator of figures
    dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "figure.labelsize"), 8)
    | dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 7)
    | dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False)
    | {"axes.linewidth": 0.6, "pdf.fonttype": 42}  # text stays text
)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK, GREY = "#222222", "#9a9a9a"
DOTS = dict(color=BLACK, linestyle="none", marker=".", markersize=0.8, markeredgewidth=0, zorder=2)
THRESHOLD = dict(color=COLORS[1], linewidth=1.0, linestyle="--", zorder=2.5)
LOSS, SHARPNESS, ACCURACY = r"loss $F$ (nat)", "Hessian\n" r"$\lambda_{\max}$ (nat)", "training\naccuracy"


def label_rows(column: Iterable[Axes], labels: Iterable[str]) -> None:
    """Label the axes of a column of rows that share the step, with aligned labels."""
    for axes, label in zip(column, labels, strict=True):
        axes.set_ylabel(label)
    axes.figure.align_ylabels(column)


def draw_threshold(axes: Axes, found: xr.Dataset) -> None:
    """Draw the optimizer's threshold: a line with its number, or where it moves the recorded series."""
    if "threshold" in found.attrs:
        number = found.attrs["threshold"]
        axes.axhline(number, **THRESHOLD, label=f"threshold {number:g}")
    elif "threshold" in found:
        axes.plot(found["step"], found["threshold"], **THRESHOLD, label="threshold")


def plain_numbers(axis: Axis, **locations: object) -> None:
    """Write the numbers of a log axis out: about one decade as 1, 2, 5."""
    axis.set_major_locator(LogLocator(**(locations or {"subs": (1, 2, 5)})))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG (300 dpi) and PDF."""
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=300)
