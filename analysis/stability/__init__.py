"""When does training become unstable? Thresholds, multipliers, exponents, and what happens beyond."""

from analysis.stability.flips import effective_hessian, flip_coefficient, preconditioner
from analysis.stability.multipliers import floquet_multipliers, step_multipliers
from analysis.stability.tangents import first_tangents, log_growth, lyapunov_exponents, moves
from dlf.thresholds import threshold
