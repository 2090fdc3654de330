"""Train one configuration into a work folder, and go on where it was interrupted.

    python -m experiments.train --config=experiments/configs/fig4.py --workdir=DIR \\
        [--config.key=value ...] [--resume]
"""

import contextlib
import importlib.metadata
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analysis import probes
from dlf import data, losses, models, results, schedules
from dlf import train as training
from dlf.types import Probe, Problem, TrainState
from experiments import command_line
from experiments.command_line import ConfigError

# What a config holds, see experiments/configs/fig4.py.
KEYS = (
    "seed", "float64", "num_steps", "steps_per_chunk", "dataset", "model", "loss", "schedule",
    "stop_after", "optimizer", "probes",
)  # fmt: skip


class Experiment(NamedTuple):
    """A configuration turned into functions and a first state."""

    state: TrainState
    step_fn: training.StepFn
    probes: dict[str, Probe]
    problem: Problem
    groups: dict[str, tuple]  # the layout of the store, as `results.create` takes it


def _find(catalogue: Any, kind: str, name: str) -> Callable[..., Any]:
    if name not in catalogue.__all__:
        raise ConfigError(f"unknown {kind} {name!r}: one of {', '.join(catalogue.__all__)}")
    return getattr(catalogue, name)


@contextlib.contextmanager
def _blaming(setting: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{setting}: {error}") from error


def _call(catalogue: Any, kind: str, name: str, **settings: Any) -> Any:
    builder = _find(catalogue, kind, name)
    with _blaming(f"{kind} {name}"):
        return builder(**settings)


def build(config: ConfigDict) -> Experiment:
    """Turn a configuration into functions and a first state.

    Raises ConfigError for a value that cannot be run.
    """
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise ConfigError(f"the config lacks {', '.join(missing)}: see experiments/configs/fig4.py")
    for key in ("num_steps", "steps_per_chunk"):
        if config[key] < 1:
            raise ConfigError(f"{key} must be at least 1, got {config[key]}")
    if config.float64 != jax.config.jax_enable_x64:
        raise ConfigError(
            f"float64={config.float64}, but JAX runs with jax_enable_x64={jax.config.jax_enable_x64}: "
            f'call jax.config.update("jax_enable_x64", {config.float64}) first'
        )
    dataset = _call(data, "dataset", **config.dataset)
    model = _call(models, "model", num_classes=dataset.num_classes, **config.model)
    schedule = _call(schedules, "schedule", num_classes=dataset.num_classes, **config.schedule)
    schedule = schedules.stop_after(schedule, config.stop_after)
    weighted_loss = _find(losses, "loss", **config.loss)
    with _blaming("optimizer"):
        optimizer = training.make_optimizer(**config.optimizer)

    key = jax.random.key(config.seed)  # draws the parameters, as the authors' PRNGKey(0) did
    batch_fn = data.full_batch(dataset.train)
    loss_fn = losses.make_loss(model.apply, weighted_loss, schedule)
    metrics_fn = training.make_metrics(model.apply, weighted_loss, schedule, batch_fn)
    problem = Problem(model.apply, loss_fn, batch_fn, key=jax.random.fold_in(key, 1))
    state = training.init_state(model.init(key, dataset.train.inputs), optimizer)
    step_fn = training.make_step(loss_fn, batch_fn, optimizer, metrics_fn)
    chosen, groups = {}, {"step": (1, training.VARIABLES, jax.eval_shape(step_fn, state)[1])}
    for name, settings in config.probes.items():
        builder = _find(probes, "probe", name)
        with _blaming(f"probes.{name}"):
            probe = builder(problem, **settings)
            _, shapes = jax.eval_shape(probe.measure, probe.init(state), state)
        chosen[name] = probe
        groups[f"{name}_step"] = (probe.every, probe.variables, shapes)
    return Experiment(state, step_fn, chosen, problem, groups)


def train(config: ConfigDict, workdir: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train a configuration into a work folder and return the content of its meta.json.

    With `resume` an interrupted run goes on where it was last committed, and a finished one is
    left as it is. An interrupt (SIGINT, SIGTERM) ends the run after the chunk under way, committed.

    Raises ConfigError or StoreError with one line that says what to do; nothing is overwritten.
    """
    workdir = Path(workdir)
    experiment = build(config)
    with results.exclusive(workdir):
        meta = _open_run(config, workdir, experiment, resume)
        if meta["status"] in ("done", "diverged") and not results.damaged_file(workdir):
            return meta
        return _run(config, workdir, experiment, meta)


def _open_run(config: ConfigDict, workdir: Path, experiment: Experiment, resume: bool) -> dict[str, Any]:
    """Check that the work folder takes this run, create the store if need be, return its meta."""
    asked = json.loads(config.to_json())
    content = {path.name for path in workdir.iterdir()}
    if content and not resume:
        raise ConfigError(
            f"{workdir} is not empty: add --resume to go on with the run in it, or name another folder"
        )
    if "config.json" in content:
        changes = _differences(results.read_json(workdir / "config.json"), asked)
        if changes:
            raise ConfigError(f"{workdir} holds a run with another config: {'; '.join(changes)}")
    elif content - {"config.partial"}:
        raise ConfigError(f"{workdir} holds files, but no run: name another folder")
    if "meta.json" in content:
        return results.read_json(workdir / "meta.json")

    # meta.json comes last: without it, nothing has been measured yet
    results.write_json(workdir / "config.json", asked)
    commit = _git("rev-parse", "HEAD")
    attributes = {"config": json.dumps(asked), "commit": commit}
    results.create(workdir, config.num_steps, config.steps_per_chunk, experiment.groups, attributes)
    meta = {
        "status": "running",
        "seconds": 0.0,
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain")),
        "command": sys.argv,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
        },
        "python": sys.version.split()[0],
        "devices": [str(device) for device in jax.devices()],
        "x64": config.float64,
    }
    results.write_json(workdir / "meta.json", meta)
    return meta


def _run(config: ConfigDict, workdir: Path, experiment: Experiment, meta: dict[str, Any]) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, an interrupt or a loss that is not finite."""
    state, carries = experiment.state, training.init_carries(experiment.probes, experiment.state)
    step, restored, warnings = results.restore(workdir, (state, carries))
    if restored is not None:
        state, carries = restored
    for warning in warnings:
        print(f"{warning}: going on from step {step} instead", file=sys.stderr)

    loop = training.make_loop(experiment.step_fn, experiment.probes)
    status, started, seconds_before = "running", time.monotonic(), meta["seconds"]
    with _interrupts() as interrupted, _progress(step, config.num_steps) as report:
        while status == "running":
            num_rows = min(config.steps_per_chunk, config.num_steps - step)
            state, carries, series = jax.block_until_ready(loop(state, carries, num_rows))
            series = {name: np.asarray(rows) for name, rows in series.items()}
            broken = np.flatnonzero(~np.isfinite(series["loss"]))
            if len(broken):
                status, num_rows = "diverged", int(broken[0]) + 1
                meta["diverged_step"] = step + num_rows - 1
                series = {name: rows[:num_rows] for name, rows in series.items()}
            results.commit(workdir, step, series, None if len(broken) else (state, carries))
            step += num_rows
            report(step, float(series["loss"][-1]), float(series["accuracy"][-1]))
            if status == "running" and step == config.num_steps:
                status = "done"
            elif status == "running" and interrupted():
                status = "interrupted"
            meta = meta | {
                "status": status,
                "seconds": seconds_before + time.monotonic() - started,
            }
            results.write_json(workdir / "meta.json", meta)
    return meta


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old | new
        return [
            change
            for key in keys
            for change in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path} was {old}, now {new}"]


def _git(*args: str) -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""  # installed without its repository
    command = ["git", "-C", str(root), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may listen
        return
    received = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number, frame):
        received.append(number)
        restore()

    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()


@contextlib.contextmanager
def _progress(step: int, num_steps: int) -> Iterator[Callable[[int, float, float], None]]:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True, force_jupyter=False)) as progress:
        task = progress.add_task("", total=num_steps, completed=step)

        def report(step: int, loss: float, accuracy: float) -> None:
            progress.update(task, completed=step, description=f"F {loss:.4g}, accuracy {accuracy:.3f}")

        yield report


def main() -> None:
    """Run `python -m experiments.train`, also installed as `dlf-train`."""
    command_line.run(_main)


def _main() -> int:
    arguments = command_line.parse(sys.argv, __doc__)
    command_line.use_precision(arguments.config)
    return report(train(arguments.config, arguments.workdir, arguments.resume), arguments.workdir)


def report(meta: dict[str, Any], workdir: Path) -> int:
    """Say in one line how a run ended and return its exit status."""
    if meta["status"] == "done":
        print(f"done in {meta['seconds']:.0f} s: {workdir}", file=sys.stderr)
        return 0
    if meta["status"] == "diverged":
        command_line.fail(
            f"the loss is not finite at step {meta['diverged_step']}: the rows up to it are in {workdir}; "
            "lower optimizer.learning_rate or schedule.amplitude",
            status=1,
        )
    command_line.fail(f"interrupted: the same command with --resume goes on in {workdir}", status=130)


if __name__ == "__main__":
    main()
