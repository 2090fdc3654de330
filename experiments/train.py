"""Train one configuration into a work folder, and go on where it was interrupted.

    python -m experiments.train --config=experiments/configs/fig4.py --workdir=DIR \\
        [--config.key=value ...] [--resume]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf import store
from dlf import train as training
from dlf.recording import with_gaps
from dlf.store import files
from dlf.types import TrainState
from experiments import command_line, records, threads
from experiments.build import Experiment, build, make_loop
from experiments.command_line import ConfigError, interrupts, note, progress, report
from experiments.settings import checked


class Start(NamedTuple):
    """What a branch begins with, see `experiments.branch`: the rows before a step, and the state there."""

    step: int
    rows: dict[str, np.ndarray]
    state: tuple[TrainState, dict[str, Any]]  # with the memories of the probes
    record: dict[str, Any]


def train(
    config: ConfigDict, workdir: str | Path, resume: bool = False, start: Start | None = None
) -> dict[str, Any]:
    """Train a configuration into a work folder and return the content of its meta.json.

    With `resume` an interrupted run goes on where it was last committed, and a finished one is left as it
    is; a `start` is where a new one begins. An interrupt (SIGINT, SIGTERM) ends the run after the chunk
    under way, committed.
    Raises ConfigError or StoreError with one line that says what to do; nothing is overwritten.
    """
    config, workdir = checked(config), Path(workdir)
    store.check_path(workdir)
    asked = json.loads(config.to_json())
    # what cannot be built gets no folder; a finished or foreign folder is known before anything is built
    experiment = None if workdir.exists() else build(config)
    with store.exclusive(workdir) as check_same:
        if not resume and any(workdir.iterdir()):
            raise ConfigError(
                f"{workdir} is not empty: add --resume to go on with it, or name another folder"
            )
        meta = records.opened(workdir, "run", asked)
        if meta and meta["status"] in ("done", "diverged") and not store.damage(workdir):
            return meta
        experiment = experiment or build(config)
        is_new = not meta
        if is_new:
            meta = {"status": "running", "seconds": 0.0, **records.provenance(asked), "x64": config.float64}
            meta |= {"branch": start.record} if start else {}
        elif meta["seconds"] > 0:
            meta = records.resumed(meta, asked)
        check_same()
        if is_new:
            attributes = {"config": json.dumps(asked), "commit": meta["commit"]}
            attributes["network_mode"] = records.MODE
            files.write_json(workdir / "config.json", asked)
            store.create(workdir, config.num_steps, config.steps_per_chunk, experiment.series, attributes)
            store.write_meta(workdir, meta)
        if "branch" in meta and store.committed(workdir)[0] == 0:
            if start is None:
                raise ConfigError(f"{workdir} is a branch that has not begun: make it as it was made")
            store.commit(workdir, 0, start.rows, start.state)
        return _run(config, workdir, experiment, meta)


def _run(config: ConfigDict, workdir: Path, experiment: Experiment, meta: dict[str, Any]) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, an interrupt or a loss that is not finite."""
    state, carries = experiment.state, training.init_carries(experiment.run.probes, experiment.state)
    step, restored, warnings = store.restore(workdir, (state, carries))
    if restored is not None:
        state, carries = restored
    for warning in warnings:
        note(f"{warning}: going on from step {step}")
    loop, started = make_loop(experiment), time.monotonic() - meta["seconds"]

    def record(status: str) -> dict[str, Any]:
        meta.update(status=status, seconds=time.monotonic() - started)
        store.write_meta(workdir, meta)
        return meta

    with interrupts() as interrupted, progress("training", "steps", step, config.num_steps) as show:
        while step < config.num_steps:
            record("running")
            num_rows = min(config.steps_per_chunk, config.num_steps - step)
            state, carries, series = jax.block_until_ready(loop(experiment.replica, state, carries, num_rows))
            series = with_gaps(series)
            broken = np.flatnonzero(~np.isfinite(series["loss"]))
            if len(broken):
                series = {name: rows[: broken[0] + 1] for name, rows in series.items()}
                store.commit(workdir, step, series, None)
                meta["diverged_step"] = step + int(broken[0])
                return record("diverged")
            store.commit(workdir, step, series, (state, carries), config.checkpoints_kept)
            step += num_rows
            right = f", accuracy {series['accuracy'][-1]:.3f}" if "accuracy" in series else ""
            show(step, f"F {series['loss'][-1]:.4g}{right}")
            if interrupted() and step < config.num_steps:
                return record("interrupted")
    if damaged := store.damage(workdir):
        raise files.StoreError(damaged)
    return record("done")


def main() -> None:
    """Run `python -m experiments.train`, also installed as `dlf-train`."""
    command_line.run(_main)


def _main() -> int:
    asked = command_line.parse(sys.argv, __doc__)
    config = checked(asked.config)
    command_line.use_precision(config)
    threads.choose([config])
    meta = train(config, asked.workdir, asked.resume)
    return report(meta, asked.workdir, go_on="the same command with --resume")


if __name__ == "__main__":
    main()
