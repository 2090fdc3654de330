"""The instruments as probes for the training loop.

`__all__` is the catalogue that a config names a probe from: builder(problem, every=..., ...). To add one is
to write it in a module of this room and list it there.
"""

from analysis.probes import answers as answering
from analysis.probes import edge, eigenvalues, evaluations, measures
from analysis.probes.answers import *
from analysis.probes.edge import *
from analysis.probes.eigenvalues import *
from analysis.probes.evaluations import *
from analysis.probes.measures import *

_MODULES = answering, edge, eigenvalues, evaluations, measures
__all__ = sorted(name for module in _MODULES for name in module.__all__)
