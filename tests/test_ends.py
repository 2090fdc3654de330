"""How a program ends that failed: at once, with its status, whoever listens."""

import subprocess
import sys

import pytest


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


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full"])
def test_the_status_of_a_failure_is_told_where_nobody_listens(closed):
    code = """
from experiments import command_line

def main():
    raise command_line.ConfigError("moon")

command_line.run(main)
"""
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 2
