"""One function a figure: (labelled data) -> matplotlib Figure. None trains, none reads a file.

`__all__` is the catalogue of figures; one without a source is ours.
"""

from analysis.figures.additions import addition_curvature, addition_lists, addition_pairs, addition_turns
from analysis.figures.image_panels import image_curvature, image_plane, image_rates, image_run
from analysis.figures.phases import amplitude_period, large_rates, losses_width, static_width_rate, width_rate
from analysis.figures.rate_panels import (
    capped_spiral,
    open_questions,
    rate_curves,
    rate_shifts,
    ruled_signals,
)
from analysis.figures.runs import curvature, fig4, kernel_width, lazy_rich
from analysis.figures.unstable import bifurcation, branches, cascades, static_dynamic, threshold_rate

__all__ = [
    "addition_curvature", "addition_lists", "addition_pairs", "addition_turns", "amplitude_period",
    "bifurcation", "branches", "capped_spiral", "cascades", "curvature", "fig4", "image_curvature",
    "image_plane", "image_rates", "image_run", "kernel_width", "large_rates", "lazy_rich", "losses_width",
    "open_questions", "rate_curves", "rate_shifts", "ruled_signals", "static_dynamic", "static_width_rate",
    "threshold_rate", "width_rate",
]  # fmt: skip
