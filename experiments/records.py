"""What is written beside a result: where it came from, and how a configuration changed."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import xarray as xr
from ml_collections import ConfigDict

from analysis.stability import threshold
from dlf import schedules, store
from dlf.store import cells, run
from dlf.store.files import LEDGER, StoreError, check_metadata, read_json, read_meta, refuse_links
from experiments import threads
from experiments.catalogues import own_sources
from experiments.command_line import ConfigError, note

# What a store says of all that its probes measured.
MODE = "evaluation: running statistics, nothing dropped; of a step's loss, accuracy and growth: training"


def provenance(config: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Return what a result depends on beside its configuration: code, versions, devices, command.

    And the source of the user's own functions that the configuration names.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "command": sys.argv,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": sys.version.split()[0],
        "devices": [str(device) for device in jax.devices()],
        "threads": threads.used(),
        "sources": own_sources(config),
    }


def resumed(meta: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Note who goes on with a run, and warn if the code or the machine is another."""
    now = provenance(config)
    kinds = ("commit", "versions", "devices", "threads")  # older runs lack the last
    changed = [key for key in kinds if meta.get(key, now[key]) != now[key]]
    was = meta.get("sources", {})
    changed += [f"version of {place}" for place in now["sources"] if was.get(place) != now["sources"][place]]
    if changed:
        note(f"resumed with another {' and '.join(changed)}: the bits may differ")
    kept = {key: value for key, value in meta.items() if key != "diverged_step"}
    return kept | {"resumed": [*meta.get("resumed", []), now]}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return each difference of two nested mappings, in words.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b was 1, now 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        of = {key: f"{path}.{key}" if path else key for key in old | new}
        return [d for key, at in of.items() for d in differences(old.get(key), new.get(key), at)]
    return [] if old == new else [f"{path} was {old}, now {new}"]


def opened(workdir: Path, kind: str, asked: dict[str, Any], begun: bool = False) -> dict[str, Any] | None:
    """Return the meta.json of the "run" or "sweep" in a folder, None before it has begun.

    Raises ConfigError for another one, or files of another kind, StoreError for what is missing or damaged.
    """
    content = {path.name for path in workdir.iterdir()}
    of_kind, more = (cells.STORE, {"block_bytes"}) if kind == "sweep" else (run.STORE, set())
    partial = (
        Path(name).with_suffix(".partial").name for name in ("config.json", "meta.json", LEDGER, of_kind)
    )
    # meta.json is written last: a start that was killed before has measured nothing yet
    started = {"config.json", LEDGER, of_kind, *partial, Path(of_kind).with_suffix(".old").name}
    ledger = read_json(workdir / LEDGER, signed=True) if LEDGER in content else {}
    begun = begun or ledger.get("committed_steps", 0) > 0
    is_ours = "config.json" not in content or read_json(workdir / "config.json").keys() == asked.keys()
    if is_ours and content <= started and not begun:
        return None
    if ledger:
        check_metadata(workdir, ledger)
    if of_kind not in content:
        raise ConfigError(f"{workdir} holds files, but no {kind}: name another folder")
    changes = differences(read_json(workdir / "config.json"), asked)
    if changes:
        raise ConfigError(f"{workdir} holds a {kind} with another config: {'; '.join(changes)}")
    meta = read_meta(workdir)
    known = {"status", "seconds", "commit", "versions", "devices", *more} <= set(meta)
    if not (known and all(isinstance(meta[key], int | float) for key in ("seconds", *more))):
        raise StoreError(f"{workdir / 'meta.json'} is damaged: move {workdir} away and run again")
    return meta


def load(workdir: Path) -> xr.Dataset:
    """Open a run or a sweep, with the numbers of its configuration that reductions and figures read.

    As attributes, beside `config`, `commit` and `seconds`: `num_classes`, `amplitude`, `stop_after`; of a
    schedule with a period `period`, `turn`, the period with the authors' hold step, and `cycle`, one turn of
    every class, in steps; of plain gradient descent `learning_rate`; where there is a formula `threshold`, in
    nat. A run whose rate moves has both as series only.
    """
    found = store.load(workdir)
    config = ConfigDict(json.loads(found.attrs["config"]))
    found.attrs = {
        **{key: found.attrs.get(key, "") for key in ("config", "commit", "seconds", "network_mode")},
        "num_classes": config.dataset.get("num_classes", found.sizes.get("class", 0)),
        "stop_after": config.stop_after,
        "amplitude": config.schedule.get("amplitude", 1.0),
    }
    if "period" in config.schedule:
        found.attrs["period"] = config.schedule.period
        timing = config.schedule.period, config.schedule.get("hold_step", False)
        found.attrs["turn"] = schedules.steps_per_turn(*timing)
        found.attrs["cycle"] = schedules.steps_per_cycle(found.attrs["num_classes"], *timing)
    if isinstance(rate := config.optimizer.learning_rate, Real):
        if {**config.optimizer} == {"name": "sgd", "learning_rate": rate}:
            found.attrs["learning_rate"] = rate
        with contextlib.suppress(TypeError, ValueError):
            found.attrs["threshold"] = float(threshold(**config.optimizer))
    return found


def stored(found: xr.Dataset, path: Path) -> xr.Dataset:
    """Write labelled data in one move, and return what was written."""
    partial = path.with_suffix(".partial")
    refuse_links(path.parent, partial)
    found.to_netcdf(partial, engine="scipy")
    os.replace(partial, path)
    return xr.load_dataset(path, engine="scipy")[list(found.data_vars)]


def _git(*args: str) -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""  # installed without its repository
    return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True).stdout.strip()
