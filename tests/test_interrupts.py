"""Ctrl-C at any moment, from the first import to the end, ends a program at once, in at most one line.

make soak          hundreds of moments; make test takes a few
"""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_CONFIGS = Path(__file__).parent.parent / "experiments" / "configs"
PROGRAMS = {
    "train": ["-m", "experiments.train", f"--config={_CONFIGS / 'fig4.py'}"],
    "sweep": ["-m", "experiments.sweep", f"--config={_CONFIGS / 'phase_losses.py'}", "--scale=small"],
    "figure": ["-m", "experiments.figure", "phase_losses", "--scale=small"],
}


def interrupt(name, folder, seconds):
    """Send SIGINT after so many seconds and return how the program ended: silent, one line, or over."""
    command = [sys.executable, *PROGRAMS[name], f"--workdir={folder}"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.send_signal(signal.SIGINT)  # a block under way is left by the second one
        _, err = process.communicate(timeout=60)
    if "init_import_site" in err:
        return "before any code of ours"  # where Python itself prints a traceback
    assert "Traceback" not in err and "Exception ignored" not in err and "Fatal" not in err, err
    assert process.returncode in (130, -signal.SIGINT), f"after {seconds:.2f} s: {process.returncode}, {err}"
    if process.returncode == 130 or err:  # the second one may come when all is said
        assert err.splitlines()[-1].startswith("error: interrupted"), err
        return "one line"
    assert not (folder.exists() and any(folder.iterdir())), f"after {seconds:.2f} s: {err}"
    return "silent"


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interrupt_at_some_moment_ends_a_program(name, tmp_path):
    for number, seconds in enumerate((0.1, 0.8, 1.5, 4.0)):
        interrupt(name, tmp_path / str(number), seconds)


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_an_interrupt_that_an_import_turns_into_another_error_is_one(name, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("""
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    raised = True
if raised:  # as modules of pybind11 do, without a word of the interrupt
    raise ImportError("initialization failed")
""")
    command = [
        sys.executable,
        "-m",
        f"experiments.{name}",
        f"--config={config}",
        f"--workdir={tmp_path / 'x'}",
    ]
    done = subprocess.run(command, text=True, capture_output=True)
    assert (done.returncode, done.stderr.strip()) == (130, "error: interrupted")
    assert not (tmp_path / "x").exists()


@pytest.mark.soak
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interrupt_at_any_moment_ends_a_program(name, tmp_path, record_property):
    counts = {}
    for number in range(100):
        outcome = interrupt(name, tmp_path / str(number), 0.05 * number)
        counts[outcome] = counts.get(outcome, 0) + 1
    record_property("counts", counts)
