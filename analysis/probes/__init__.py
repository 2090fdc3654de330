"""The instruments as probes for the training loop.

`__all__` is the catalogue that a config names a probe from: builder(problem, every=..., ...).
"""

from analysis.probes.measures import hessian, kernel, lyapunov, ntk, stability, validation
from analysis.probes.tracker import forecast, tracker

__all__ = ["forecast", "hessian", "kernel", "lyapunov", "ntk", "stability", "tracker", "validation"]
