"""What is written beside a result: where it came from, and how a configuration changed."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import xarray as xr
from ml_collections import ConfigDict

from dlf import schedules, store


def provenance() -> dict[str, Any]:
    """Return what a result depends on beside its configuration: code, versions, devices, command."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "command": sys.argv,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": sys.version.split()[0],
        "devices": [str(device) for device in jax.devices()],
    }


def resumed(meta: dict[str, Any]) -> dict[str, Any]:
    """Note who goes on with a run, and warn if the code or the machine is another."""
    now = provenance()
    changed = [key for key in ("commit", "versions", "devices") if meta[key] != now[key]]
    if changed:
        print(f"resumed with another {' and '.join(changed)}: the bits may differ", file=sys.stderr)
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


def load(workdir: Path) -> xr.Dataset:
    """Open a run or a sweep, with the numbers of its configuration that reductions and figures read.

    As attributes, beside `config`, `commit` and `seconds`: `num_classes`, `amplitude`; `stop_after`, `period`
    and `turn`, the period with the authors' hold step, in steps; of plain gradient descent also
    `learning_rate` and `threshold`, in nat.
    """
    found = store.load(workdir)
    config = ConfigDict(json.loads(found.attrs["config"]))
    period = config.schedule.get("period", config.num_steps // 4)
    found.attrs = {
        "config": found.attrs["config"],
        "commit": found.attrs.get("commit", ""),
        "seconds": found.attrs["seconds"],  # that it took
        "num_classes": config.dataset.get("num_classes", found.sizes.get("class", 0)),
        "stop_after": config.stop_after,
        "period": period,
        "amplitude": config.schedule.get("amplitude", 1.0),
        "turn": schedules.steps_per_turn(period, config.schedule.get("hold_step", False)),
    }
    if config.optimizer.name == "sgd" and len(config.optimizer) == 2:
        found.attrs["learning_rate"] = config.optimizer.learning_rate
        found.attrs["threshold"] = 2 / config.optimizer.learning_rate
    return found


def _git(*args: str) -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""  # installed without its repository
    command = ["git", "-C", str(root), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
