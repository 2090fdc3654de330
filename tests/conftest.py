"""Settings and fixtures of all tests.

Shapes in the signatures are checked at run time here, and only here. Dtype promotion is strict
and rank promotion an error: a silent cast is how a step counter loses its precision.
"""

import contextlib
import fcntl
import gc
import io
import os
import shutil
import signal
import sys
import tempfile

import pytest

# One program is compiled once for all tests, their worker processes, subprocesses and notebook kernels: what
# JAX reads in the environment when it is imported. Its loader of stored programs speaks of each of them on
# standard error, where tests count lines, and so does a process that reads one half written (see setup.cfg).
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # which has the environment of the process that started it
if not _IS_WORKER:
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="dlf-programs-"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry:UserWarning",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

import jax
import numpy as np
from jax import lax
from jaxtyping import install_import_hook

with install_import_hook(["dlf", "analysis"], "beartype.beartype"):
    # with all of dlf and analysis behind it: what is imported outside the hook is not checked
    from dlf import store
    from dlf.data import cifar
    from experiments import command_line, train
    from experiments.configs import tiny

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for what is sharded


def pytest_unconfigure(config):
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


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
def standard(float64):
    """Float64 and the promotion of dtypes that optax itself counts on."""
    with jax.numpy_dtype_promotion("standard"):
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


@pytest.fixture(autouse=True)
def mains_do_not_end_the_tests(monkeypatch):
    """Stay after an interrupt, and give back the handlers that a main sets for the rest of its process."""
    monkeypatch.setattr(command_line, "leave", lambda end: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def compiled_anew(monkeypatch):
    """Let processes that a test starts compile for themselves, where their bits are compared over a kill."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Make a folder once a test run, whichever worker asks for it first: (name, make) -> folder."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if _IS_WORKER else root

    def made(name, make):
        folder, whole = root / name, root / f"{name}.made"
        with (root / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def smoke(made_once):
    """A figure at its smallest scale, which no test may change: name -> folder, with what was printed."""

    from experiments import figure

    def made(name):
        def make(folder):
            argv, x64 = sys.argv, jax.config.jax_enable_x64
            sys.argv = [
                "program",
                name,
                f"--workdir={folder}",
                *(["--scale=smoke"] if name != "tiny" else []),
            ]
            out, err = io.StringIO(), io.StringIO()
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    figure.main()
            except SystemExit as stop:
                assert stop.code == 0, err.getvalue()
            finally:
                sys.argv = argv
                jax.config.update("jax_enable_x64", x64)
            (folder / "out.txt").write_text(out.getvalue())
            (folder / "err.txt").write_text(err.getvalue())

        return made_once(f"smoke-{name}", make)

    return made


@pytest.fixture(scope="session")
def reference(made_once):
    """An uninterrupted tiny run, which no test may change."""

    def make(workdir):
        with jax.enable_x64(True):
            train.train(tiny.get_config(), workdir)

    return made_once("reference", make)


@pytest.fixture(scope="session")
def made_clothes(made_once):
    """Fashion-MNIST in small: the four files, of a pattern for each class."""

    def make(folder):
        folder.mkdir()
        rng = np.random.RandomState(0)
        patterns = rng.randint(0, 256, (10, 28, 28))
        for word, num in (("train", 2_000), ("t10k", 2_500)):
            labels = (np.arange(num) % 10).astype(np.uint8)
            pixels = ((patterns[labels] + rng.randint(0, 256, (num, 28, 28))) // 2).astype(np.uint8)
            for name, of in (("images-idx3", pixels), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, of.ndim]) + np.array(of.shape, ">i4").tobytes()
                (folder / f"{word}-{name}-ubyte").write_bytes(header + of.tobytes())

    return made_once("clothes", make)


def pytest_terminal_summary(terminalreporter):
    """Print what the tests of `make soak` counted."""
    for report in terminalreporter.getreports("passed"):
        for _, counts in report.user_properties:
            terminalreporter.line(f"{report.nodeid.rpartition('::')[2]}: {counts}")


@pytest.fixture
def refused():
    """Expect ValueError in one line, as the front end shows it, that has some words."""

    def check(call, *words):
        with pytest.raises(ValueError) as raised:
            call()
        message = str(raised.value)
        assert "\n" not in message and all(word in message for word in words), message

    return check


@pytest.fixture
def lax_convolution():
    """A convolution of signals or images by `lax`, zeros around."""

    def convolve(x, kernel, stride=1):
        order = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
        strides = (stride,) * (x.ndim - 2)
        return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=order)

    return convolve


class Killed(BaseException):
    """The process ends behind a commit."""


@pytest.fixture
def same_bits_after_kills(tmp_path, monkeypatch):
    """Train a configuration in one go, and killed behind each of its first two chunks: all is the same."""

    def check(config):
        train.train(config, tmp_path / "whole")
        commit = store.commit

        def killed(*arguments):
            commit(*arguments)
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(store, "commit", killed)
            for _ in range(2):
                with pytest.raises(Killed):
                    train.train(config, tmp_path / "killed", resume=True)
        train.train(config, tmp_path / "killed", resume=True)
        found, expected = (store.load(tmp_path / name) for name in ("killed", "whole"))
        found.attrs = expected.attrs = {}
        assert found.identical(expected) and found["loss"].notnull().all()

    return check


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    """CIFAR-10 in small, as binary files: a pattern for each class."""
    monkeypatch.setattr(cifar, "_PER_FILE", 200)
    monkeypatch.setattr(cifar, "_PER_SPLIT", {"train": 1_000, "test": 200})
    rng, folder = np.random.RandomState(0), tmp_path / "photographs"
    patterns = rng.randint(0, 256, (10, 3_072))
    folder.mkdir()
    for name in cifar._FILES:
        labels = np.arange(200) % 10
        pixels = (patterns[labels] + rng.randint(0, 256, (200, 3_072))) // 2
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).astype(np.uint8).tobytes())
    return folder
