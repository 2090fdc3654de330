"""A small run gets one thread before JAX starts; what a user has set stays; bits do not depend on it."""

import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from dlf.store import load
from experiments import threads
from experiments.configs import phase_width_rate, tiny
from experiments.sweep.axes import axis, make_sweep

STEPS = ("--config.num_steps=30", "--config.stop_after=20")


@pytest.fixture
def idle(monkeypatch):
    """A process of four CPUs in which JAX has not started and nothing is set."""
    for name in ("PJRT_NPROC", "NPROC", "OMP_NUM_THREADS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "num_cpus", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_num_devices", lambda: 1)
    monkeypatch.setattr(threads, "_has_started", lambda: False)
    monkeypatch.setattr(threads, "_has_accelerator", lambda: False)


def large():
    config = tiny.get_config()
    config.model.hidden_widths = (1_000, 1_000)
    return config


def test_small_work_gets_one_thread_and_large_work_what_there_is(idle):
    threads.choose([tiny.get_config(), large()])
    assert threads.used() == 4 and threads.used(1) == 1
    threads.choose([tiny.get_config()])
    assert os.environ["PJRT_NPROC"] == "1" and threads.used() == 1


@pytest.mark.parametrize(
    ("name", "value", "num"),
    [
        ("PJRT_NPROC", "3", 3),
        ("NPROC", "2", 2),
        ("NPROC", "x", 4),
        ("OMP_NUM_THREADS", "2", 4),
        ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false", 4),
    ],
)
def test_what_the_user_has_set_stays(idle, monkeypatch, name, value, num):
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    threads.choose([tiny.get_config()])
    assert dict(os.environ) == before and threads.used() == num


@pytest.mark.parametrize("reason", ["_has_started", "_has_accelerator", "num_cpus", "_num_devices"])
def test_nothing_is_chosen_where_it_is_too_late_or_not_ours(idle, monkeypatch, reason):
    monkeypatch.setattr(threads, reason, lambda: 2)
    threads.choose([tiny.get_config()])
    assert "PJRT_NPROC" not in os.environ


def test_the_size_counts_examples_and_every_product(monkeypatch):
    def count(dataset, **model):
        return threads.multiplications(ConfigDict({"dataset": dataset, "model": model}))

    mlp = dict(name="mlp", activation="relu", initialization="original", use_bias=True)
    points = dict(name="spiral", num_classes=5, examples_per_class=20)
    assert count(points, hidden_widths=(7, 11), **mlp) == 100 * (3 * 7 + 7 * 11 + 11 * 5)
    images = dict(name="digits", num_train=6, num_test=1)
    assert count(images, name="myrtle", widths=(4, 8), activation="tanh") > 6 * (64 * 9 * 4 + 64 * 36 * 8)
    for unknown in (dict(name="mine.py:points"), dict(name="spiral", num_classes="x")):
        assert count(unknown, hidden_widths=(7,), **mlp) == float("inf")


def test_a_network_of_ones_own_is_counted_and_data_of_ones_own_are_not_drawn(idle, tmp_path):
    (tmp_path / "own.py").write_text("""
from dlf import models
def net(num_classes, width):
    return models.mlp(num_classes, (width,), activation="tanh", initialization="updated", use_bias=True)
def points(**settings):
    raise AssertionError("drawn")
""")
    config = tiny.get_config()
    config.model = dict(name=f"{tmp_path}/own.py:net", width=16)
    assert threads.multiplications(config) == threads.multiplications(tiny.get_config())
    config.dataset.name = f"{tmp_path}/own.py:points"
    threads.choose([config])
    assert threads.used() == 4


def test_a_sweep_is_as_large_as_its_largest_cell(idle):
    config = phase_width_rate.get_config("smoke")

    def widths(*of):
        return axis("width", of, lambda width: {"model.hidden_widths": (width,)})

    threads.choose([make_sweep(config, "main", [axis("seed", range(3), "seed"), widths(10, 10_000)])])
    assert "PJRT_NPROC" not in os.environ
    threads.choose([make_sweep(config, "main", [axis("seed", range(3), "seed"), widths(10, 100)])])
    assert os.environ["PJRT_NPROC"] == "1"


@pytest.mark.parametrize(
    ("name", "value", "num"),
    [
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=8", 8),
        ("NPROC", "99999999999", 2),
        ("NPROC", "3", 3),
    ],
)
def test_the_threads_that_are_told_are_those_of_the_pool(name, value, num):
    code = (
        "import os, jax; from experiments import threads\n"
        "jax.devices(); print(threads.used(2)); jax.numpy.ones(3).block_until_ready()\n"
        "names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]\n"
        "print(sum('XLAEigen' in name for name in names))"
    )
    out = subprocess.run(
        ["taskset", "-c", "0,1", sys.executable, "-c", code], env={**os.environ, name: value},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [*map(int, out.split())] == [num, num]


def run(config, workdir, **environment):
    """Train in a process of its own, and return what its meta.json says and its series."""
    kept = {key: of for key, of in os.environ.items() if key not in (*threads._POOL, "OMP_NUM_THREADS")}
    words = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}", *STEPS]
    subprocess.run(words, env=kept | environment, check=True, capture_output=True)
    return json.loads((workdir / "meta.json").read_text())["threads"], load(workdir).load()


def test_a_run_has_one_thread_says_so_and_has_the_bits_of_two(tmp_path):
    ours, found = run("experiments/configs/tiny.py", tmp_path / "ours")
    theirs, expected = run("experiments/configs/tiny.py", tmp_path / "theirs", NPROC="2")
    assert (ours, theirs) == (1, 2)
    for name, of in expected.items():
        assert found[name].values.tobytes() == of.values.tobytes(), name


@pytest.mark.skipif(threads.num_cpus() == 1, reason="one thread is all there is")
def test_a_configuration_that_starts_jax_is_too_late_and_the_truth_is_said(tmp_path):
    early = "import jax\nfrom experiments.configs.tiny import get_config\njax.numpy.ones(3) + 1\n"
    (tmp_path / "early.py").write_text(early)
    assert run(tmp_path / "early.py", tmp_path / "run")[0] == threads.num_cpus()
