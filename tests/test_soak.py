"""A sweep killed at random moments, again and again: nothing committed is lost, the end is the same.

The sweep of smoke size runs in two worker processes. A kill (SIGKILL) hits one random process of it, the
coordinator, a worker or a job's guard, or all at once; then the same command goes on. For Linux.

    make soak
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dlf import store
from dlf.store.cells import NOT_RUN, STORE, Store

_ROOT = Path(__file__).parent.parent
_CONFIG = _ROOT / "experiments" / "configs" / "phase_amplitude_period.py"

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.usefixtures("compiled_anew"),
]


def test_killed_at_random_moments_a_sweep_loses_nothing_that_it_committed(tmp_path):
    seed = int(os.environ.get("SOAK_SEED", "1"))
    counts = soak(tmp_path, num_kills=3, num_steps=2_000, seed=seed)
    assert counts["kills"] > 0 and counts["completed"] > 0


@pytest.mark.soak
def test_killed_fifty_times_a_sweep_loses_nothing_that_it_committed(tmp_path, record_property):
    seed = int(os.environ.get("SOAK_SEED", "0"))
    counts = soak(tmp_path, num_kills=50, num_steps=20_000, seed=seed)
    record_property("counts", counts)
    assert counts["kills"] >= 25 and counts["completed"] > 0 and counts["cells kept over a kill"] > 0


def soak(folder: Path, num_kills: int, num_steps: int, seed: int) -> dict[str, int]:
    """Kill a sweep `num_kills` times and compare with an undisturbed one, as often as it is completed.

    Raises AssertionError if a committed value was lost or changed, or an end result differs by a bit.
    """
    chance, killed = random.Random(seed), folder / "killed"
    started = time.monotonic()
    subprocess.run(_command(folder / "undisturbed", num_steps), cwd=_ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - started
    expected = store.load(folder / "undisturbed")
    counts = {"kills": 0, "completed": 0, "cells kept over a kill": 0}
    sessions: list[int] = []
    for _ in range(num_kills):
        before, num_files = _committed(killed), _num_files(killed)
        process = subprocess.Popen(
            _command(killed, num_steps),
            cwd=_ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        sessions.append(process.pid)
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, seconds))
        else:  # amid the cells, which a busy machine may pass in a small part of that time
            while process.poll() is None and _num_files(killed) <= num_files:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
        victims = _processes(process.pid)
        if chance.random() < 0.5 and victims:
            victims = [chance.choice(victims)]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
            counts["kills"] += 1
        process.wait()
        after = _committed(killed)
        counts["cells kept over a kill"] += _check_kept(before, after)
        if after is not None and (after["status"] != NOT_RUN).all():
            _finish(killed, expected, num_steps, sessions)
            counts["completed"] += 1
    _finish(killed, expected, num_steps, sessions)
    counts["completed"] += 1
    return counts


def _command(workdir: Path, num_steps: int) -> list[str]:
    options = (
        f"--config={_CONFIG}",
        "--scale=smoke",
        f"--workdir={workdir}",
        "--memory=0.0215",
    )  # two cells a block
    longer = (f"--config.num_steps={num_steps}", "--launcher=local", "--jobs=2")
    return [sys.executable, "-m", "experiments.sweep", *options, *longer]


def _processes(session: int) -> list[int]:
    """Return the processes of a session, those of which the parent has died included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _num_files(workdir: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(workdir / STORE))


def _committed(workdir: Path) -> xr.Dataset | None:
    """Return what a sweep has committed, read as it lies there; None before it is created."""
    if not (workdir / STORE).exists():
        return None
    damaged = [file for _, file in Store(workdir).damaged()]
    assert not damaged, f"damaged: {damaged}"
    return xr.open_zarr(workdir / STORE, consolidated=False).load()


def _check_kept(before: xr.Dataset | None, after: xr.Dataset | None) -> int:
    """Check that all cells that were committed still are, to the bit, and return their number."""
    if before is None:
        return 0
    kept = (before["status"] != NOT_RUN).values
    for name in before.data_vars:
        old, new = before[name].values[kept], after[name].values[kept]
        assert np.array_equal(old, new, equal_nan=old.dtype.kind == "f"), f"{name} was lost"
    return int(kept.sum())


def _finish(workdir: Path, expected: xr.Dataset, num_steps: int, sessions: list[int]) -> None:
    """Let a sweep end undisturbed, compare it to the bit, and remove it and its last processes."""
    subprocess.run(_command(workdir, num_steps), cwd=_ROOT, check=True, capture_output=True)
    found = store.load(workdir)
    found.attrs = expected.attrs
    assert found.identical(expected), f"{workdir} differs from the undisturbed sweep"
    for session in sessions:
        for left in _processes(session):  # whose coordinator was killed
            os.kill(left, signal.SIGKILL)
    shutil.rmtree(workdir)
