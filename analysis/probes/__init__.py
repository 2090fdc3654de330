"""The instruments as probes for the training loop.

`__all__` is the catalogue that a config names a probe from: builder(problem, every=..., ...).
"""

from analysis.probes.spectra import hessian, kernel, ntk, validation
from analysis.probes.stability import lyapunov, stability
from analysis.probes.tracker import forecast, tracker

__all__ = ["forecast", "hessian", "kernel", "lyapunov", "ntk", "stability", "tracker", "validation"]
