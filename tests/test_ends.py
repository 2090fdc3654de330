"""How a program goes on and ends, whoever listens: with its status, at once where it failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlf.store.files import read_meta

ROOT = Path(__file__).parent.parent


def test_a_failing_program_waits_for_no_thread_and_other_writes_of_a_checkpoint_are_silent():
    code = """
import sys, threading, time
from experiments import command_line

def main():
    threading.Thread(target=time.sleep, args=(600,)).start()
    try:
        raise RuntimeError("Event loop is closed")
    except RuntimeError as error:
        sys.unraisablehook(type("", (), dict(exc_type=RuntimeError, exc_value=error, exc_traceback=None)))
    raise command_line.ConfigError("moon")

command_line.run(main)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: moon\n")


ENDS = """
import sys
from experiments import command_line

def main():
    with command_line.progress("going on", "steps", 0, 10_000) as show:
        for step in range(10_000):
            show(step)
    print("sun " * 100_000)
    if sys.argv[1] == "fails":
        raise command_line.ConfigError("moon")
    return 0

command_line.run(main)
"""


def _end(how, streams):
    words = ["bash", "-c", f'exec {streams}; "$0" -c "$1" {how}', sys.executable, ENDS]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "streams", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full", "> >(true) 2>&1", ">/dev/full"]
)
def test_the_status_of_a_failure_is_told_where_nobody_listens(streams):
    assert _end("fails", streams).returncode == 2


@pytest.mark.parametrize(
    "streams", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full", "2> >(true)", "> >(true) 2>&1"]
)
def test_a_program_goes_on_where_nobody_listens(streams):
    ended = _end("ends", streams)
    assert ended.returncode == 0 and "error" not in ended.stderr + ended.stdout


def test_a_full_disk_behind_standard_output_is_told_at_the_end():
    ended = _end("ends", ">/dev/full")
    told = ended.stderr.splitlines()[-1]
    assert (ended.returncode, told) == (2, "error: cannot write standard output: No space left on device")


def test_letters_that_a_stream_does_not_have_are_escaped(tmp_path):
    folder, code = tmp_path / "\N{SUN}", "from experiments import listing; listing.main()"
    folder.mkdir()
    command = [sys.executable, "-c", code, folder]
    ended = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, b"") and b"\\u2609" in ended.stdout


WORKERS = """
from experiments.configs import tiny
from experiments.sweep.axes import axis, record

def get_config():
    config = tiny.get_config()
    config.update(float64=False, num_steps=20, stop_after=20, steps_per_chunk=20)
    with config.unlocked():
        config.probes = {}
    return config

def sweep():
    yield axis("seed", range(2), "seed")
    yield record("final", "loss")
"""


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", "2>&-", "2>/dev/full"])
def test_workers_end_where_nobody_listens(tmp_path, streams):
    (tmp_path / "mine.py").write_text(WORKERS)
    options = f"--config={tmp_path / 'mine.py'} --workdir={tmp_path / 'sweep'} --launcher=local --jobs=1"
    program = f"exec {sys.executable} -m experiments.sweep {options} {streams}"
    assert subprocess.run(["bash", "-c", program], cwd=ROOT, timeout=300).returncode == 0
    assert read_meta(tmp_path / "sweep")["status"] == "done" and not (tmp_path / "sweep" / "jobs").exists()
