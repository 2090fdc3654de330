"""Settings and fixtures of all tests.

Shapes in the signatures are checked at run time here, and only here. Dtype promotion is strict
and rank promotion an error: a silent cast is how a step counter loses its precision.
"""

import gc
import sys

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["dlf", "analysis"], "beartype.beartype"):
    # with all of dlf and analysis behind it: what is imported outside the hook is not checked
    from experiments import train
    from experiments.configs import tiny

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for what is sharded


@pytest.fixture(autouse=True, scope="module")
def released():
    """Let compiled programs go after each module: each holds memory maps, of which a process has 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


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


@pytest.fixture
def command(monkeypatch, capfd):
    """Run a main in this process: (main, *arguments) -> (exit status, stdout, stderr)."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    before = jax.config.jax_enable_x64
    yield run
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """An uninterrupted tiny run."""
    workdir = tmp_path_factory.mktemp("reference")
    with jax.enable_x64(True):
        train.train(tiny.get_config(), workdir)
    return workdir
