"""When does training become unstable? Thresholds, multipliers, exponents, and what happens beyond."""

from analysis.stability.flips import flip_coefficient
from analysis.stability.multipliers import floquet_multipliers, step_multipliers
from analysis.stability.tangents import first_tangents, log_growth, lyapunov_exponents
from analysis.stability.thresholds import effective_hessian, preconditioner, threshold

__all__ = [
    "effective_hessian", "first_tangents", "flip_coefficient", "floquet_multipliers", "log_growth",
    "lyapunov_exponents", "preconditioner", "step_multipliers", "threshold",
]  # fmt: skip
