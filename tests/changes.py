"""Run small runs and sweeps: what is killed in processes forked from this one, the rest in this one.

    python changes.py fork | here

For each line [kind, folder, size, {variable of the environment: value}] of standard input it prints how that
ended: 0 done, 3 an error of one line, -9 killed. Forks have imported everything; what runs here is compiled
once. JAX runs in forks or here, not in both.
"""

import ctypes
import json
import os
import sys

import jax

from dlf.store.files import StoreError
from experiments import train
from experiments.command_line import ConfigError
from experiments.configs import phase_amplitude_period, tiny
from experiments.sweep import axes, blocks, fill


def run(kind: str, folder: str, size: int) -> int:
    """Go on with a run or a sweep of so many chunks or blocks, and return the exit status."""
    try:
        jax.config.update("jax_enable_x64", kind == "run")
        if kind == "run":
            config = tiny.get_config()
            config.num_steps, config.steps_per_chunk, config.probes = 10 * size, 10, dict()
            meta = train.train(config, folder, resume=True)
        else:
            config = phase_amplitude_period.get_config("smoke")
            declared = axes.axis("seed", range(size), "seed"), phase_amplitude_period.FINAL
            sweep = axes.make_sweep(config, "main", declared)
            of_a_cell = fill.Settings(memory=sum(blocks.program_bytes(sweep, config)))
            meta = fill.run(sweep, folder, of_a_cell)
    except (StoreError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 3 if str(error).count("\n") == 0 else 4
    return 0 if meta["status"] == "done" else 5


if __name__ == "__main__":
    for line in sys.stdin:
        kind, folder, size, settings = json.loads(line)
        child = os.fork() if sys.argv[1] == "fork" else 0
        if not child:
            os.environ |= settings
            ctypes.CDLL(None).count_anew()
            status = run(kind, folder, size)
            if sys.argv[1] == "fork":
                os._exit(status)
            for name in settings:
                del os.environ[name]
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)
