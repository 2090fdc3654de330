"""Settings and fixtures of all tests.

Shapes in the signatures are checked at run time here, and only here. Dtype promotion is strict
and rank promotion an error: a silent cast is how a step counter loses its precision.
"""

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["dlf", "analysis"], "beartype.beartype"):
    import dlf.results
    import dlf.train  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def x64(request):
    """Run a test in both precisions; the value says whether this is float64."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def float64():
    """Run a test in float64."""
    with jax.enable_x64(True):
        yield
