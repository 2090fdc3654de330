"""Train one configuration into a work folder, and go on where it was interrupted.

    python -m experiments.train --config=experiments/configs/fig4.py --workdir=DIR \\
        [--config.key=value ...] [--resume]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf import store
from dlf import train as training
from dlf.store import files
from experiments import command_line
from experiments.build import Experiment, build, make_loop
from experiments.command_line import ConfigError, interrupts, progress
from experiments.records import differences, provenance, resumed

ENDED = ("done", "diverged")


def train(config: ConfigDict, workdir: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train a configuration into a work folder and return the content of its meta.json.

    With `resume` an interrupted run goes on where it was last committed, and a finished one is
    left as it is. An interrupt (SIGINT, SIGTERM) ends the run after the chunk under way, committed.

    Raises ConfigError or StoreError with one line that says what to do; nothing is overwritten.
    """
    workdir = Path(workdir)
    if workdir.exists():  # a finished or foreign folder is known as such before anything is built
        with store.exclusive(workdir):
            meta = _found(config, workdir, resume)
            if meta and _is_ended(meta, workdir):
                return meta
    experiment = build(config)
    with store.exclusive(workdir):
        meta = _found(config, workdir, resume) or _create(config, workdir, experiment)
        if _is_ended(meta, workdir):
            return meta
        if meta["seconds"] > 0:
            meta = resumed(meta)
        return _run(config, workdir, experiment, meta)


def _found(config: ConfigDict, workdir: Path, resume: bool) -> dict[str, Any] | None:
    """Check that the work folder takes this run, and return the meta of the run in it, None without one."""
    content = {path.name for path in workdir.iterdir()}
    if content and not resume:
        raise ConfigError(
            f"{workdir} is not empty: add --resume to go on with the run in it, or name another folder"
        )
    if "config.json" in content:
        changes = differences(files.read_json(workdir / "config.json"), json.loads(config.to_json()))
        if changes:
            raise ConfigError(f"{workdir} holds a run with another config: {'; '.join(changes)}")
    elif {"meta.json", "metrics.zarr"} & content:
        raise files.StoreError(f"{workdir / 'config.json'} is missing: move {workdir} away and run again")
    elif content - {"config.partial"}:
        raise ConfigError(f"{workdir} holds files, but no run: name another folder")
    # meta.json is written last: without it and without a checkpoint, nothing has been measured yet
    if not {"meta.json", "checkpoints"} & content:
        return None
    meta = files.read_json(workdir / "meta.json")
    if not {"status", "seconds", "commit", "versions", "devices"} <= set(meta):
        raise files.StoreError(f"{workdir / 'meta.json'} is damaged: move {workdir} away and run again")
    return meta


def _is_ended(meta: dict[str, Any], workdir: Path) -> bool:
    return meta["status"] in ENDED and not store.damaged_file(workdir)


def _create(config: ConfigDict, workdir: Path, experiment: Experiment) -> dict[str, Any]:
    """Write config.json, the empty store and meta.json of a run, and return the last one's content."""
    asked = json.loads(config.to_json())
    meta = {"status": "running", "seconds": 0.0, **provenance(), "x64": config.float64}
    attributes = {"config": json.dumps(asked), "commit": meta["commit"]}
    files.write_json(workdir / "config.json", asked)
    store.create(workdir, config.num_steps, config.steps_per_chunk, experiment.series, attributes)
    files.write_json(workdir / "meta.json", meta)
    return meta


def _run(config: ConfigDict, workdir: Path, experiment: Experiment, meta: dict[str, Any]) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, an interrupt or a loss that is not finite."""
    state, carries = experiment.state, training.init_carries(experiment.run.probes, experiment.state)
    step, restored, warnings = store.restore(workdir, (state, carries))
    if restored is not None:
        state, carries = restored
    for warning in warnings:
        print(f"{warning}: going on from step {step}", file=sys.stderr)

    def record(status: str) -> None:
        seconds = seconds_before + time.monotonic() - started
        meta.update(status=status, seconds=seconds)
        files.write_json(workdir / "meta.json", meta)

    loop = make_loop(experiment)
    started, seconds_before = time.monotonic(), meta["seconds"]
    with interrupts() as interrupted, progress("training", "steps", step, config.num_steps) as show:
        while step < config.num_steps:
            record("running")
            num_rows = min(config.steps_per_chunk, config.num_steps - step)
            state, carries, series = jax.block_until_ready(loop(experiment.replica, state, carries, num_rows))
            series = {name: np.asarray(rows) for name, rows in series.items()}
            broken = np.flatnonzero(~np.isfinite(series["loss"]))
            if len(broken):
                num_rows = int(broken[0]) + 1
                series = {name: rows[:num_rows] for name, rows in series.items()}
                store.commit(workdir, step, series, None)
                meta["diverged_step"] = step + num_rows - 1
                record("diverged")
                return meta
            store.commit(workdir, step, series, (state, carries), config.checkpoints_kept)
            step += num_rows
            show(step, f"F {series['loss'][-1]:.4g}, accuracy {series['accuracy'][-1]:.3f}")
            if interrupted() and step < config.num_steps:
                record("interrupted")
                return meta
    record("done")
    return meta


def main() -> None:
    """Run `python -m experiments.train`, also installed as `dlf-train`."""
    command_line.run(_main)


def _main() -> int:
    arguments = command_line.parse(sys.argv, __doc__)
    command_line.use_precision(arguments.config)
    meta = train(arguments.config, arguments.workdir, arguments.resume)
    return report(meta, arguments.workdir, go_on="the same command with --resume")


def report(meta: dict[str, Any], workdir: Path, go_on: str) -> int:
    """Say in one line how a run ended, and how to `go_on`, and return its exit status."""
    if meta["status"] == "done":
        print(f"done in {meta['seconds']:.0f} s: {workdir}", file=sys.stderr)
        return 0
    if meta["status"] == "diverged":
        command_line.fail(
            f"the loss is not finite at step {meta['diverged_step']}: the rows up to it are in {workdir}; "
            "a smaller optimizer.learning_rate or schedule.amplitude may help",
            status=1,
        )
    command_line.fail(f"interrupted: {go_on} goes on in {workdir}", status=130)


if __name__ == "__main__":
    main()
