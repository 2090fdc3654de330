"""Keep the stores of some runs and sweeps, and compare those of changed code with them, bit by bit.

    .venv/bin/python tests/guard.py keep DIR          # runs the commands of this checkout: ten minutes
    .venv/bin/python tests/guard.py compare OLD NEW

For rebuilding: keep before the first change, keep again after it, compare. Both on one machine with one
environment, since elsewhere a chaotic run takes another course. It knows commands and stored files only, so
that it can be carried to an older checkout. What is compared: names, dimensions, types, attributes and bits
of all arrays, and the configuration beside them; not the commit.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import zarr

RUNS = {
    "tiny": ("tiny.py",),
    "cascades": ("cascades.py:smoke",),  # tracker, stability, exponent and forecast
    "fig4": ("fig4.py", "--config.num_steps=12000"),  # the first two cascades, with all probes
}
SWEEPS = {
    "lazy_rich": ("main", "easier"),  # whole series of several probes
    "kernel_width": ("main", "scaled", "initial"),
    "cascade_rates": ("main",),
    "phase_amplitude_period": ("main", "static", "control"),
    "phase_losses": ("main", "control"),
    "phase_static": ("main", "control"),
    "phase_width_rate": ("main", "control"),
}
# attributes that tell of the code, or that xarray notes for itself, not what was found
PASSING = {"commit", "_FillValue"}


def keep(folder: Path) -> None:
    """Run everything into a folder, by the commands of the checkout that this is called from."""
    configs = Path("experiments", "configs")
    for name, (config, *options) in RUNS.items():
        _run("experiments.train", f"--config={configs / config}", f"--workdir={folder / name}", *options)
    for name, sweeps in SWEEPS.items():
        for sweep in sweeps:
            where = f"--config={configs / name}.py", f"--workdir={folder / f'{name}_{sweep}'}"
            _run("experiments.sweep", *where, f"--sweep={sweep}", "--scale=smoke")


def _run(module: str, *options: str) -> None:
    subprocess.run([sys.executable, "-m", module, *options], check=True)


def differences(old: Path, new: Path) -> list[str]:
    """Return in words what differs between two kept folders."""
    stores = [{store.relative_to(at) for store in at.rglob("*.zarr")} for at in (old, new)]
    found = [f"{new / store} is in one only" for store in sorted(stores[0] ^ stores[1])]
    if not stores[0]:
        found.append(f"{old} holds nothing that was kept")
    for config in sorted(old.rglob("config.json")):
        twin = new / config.relative_to(old)
        if not twin.exists():
            found.append(f"{twin} is missing")
        elif json.loads(config.read_text()) != json.loads(twin.read_text()):
            found.append(f"{twin} holds another configuration")
    for store in sorted(stores[0] & stores[1]):
        found += _of_stores(old / store, new / store)
    return found


def _of_stores(old: Path, new: Path) -> list[str]:
    groups = [zarr.open_group(path, mode="r") for path in (old, new)]
    before, after = map(_attributes, groups)
    found = [f"{new}: attribute {key}" for key in {*before, *after} if before.get(key) != after.get(key)]
    arrays = [dict(group.arrays()) for group in groups]
    found += [f"{new}: {name} is in one only" for name in arrays[0].keys() ^ arrays[1].keys()]
    for name in sorted(arrays[0].keys() & arrays[1].keys()):
        one, other = arrays[0][name], arrays[1][name]
        labels = [(a.metadata.dimension_names, a.dtype, a.shape, _attributes(a)) for a in (one, other)]
        if labels[0] != labels[1]:
            found.append(f"{new}: {name} is labelled otherwise")
        elif not np.array_equal(_bits(one[...]), _bits(other[...])):
            found.append(f"{new}: {name} differs{_by_how_much(one[...], other[...])}")
    return found


def _attributes(node: zarr.Group | zarr.Array) -> dict:
    found = {key: value for key, value in node.attrs.items() if key not in PASSING}
    return found | {"arrays": sorted(found.get("arrays", []))}  # a list without an order


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint8) if values.ndim and values.dtype.kind == "f" else values


def _by_how_much(one: np.ndarray, other: np.ndarray) -> str:
    if one.dtype.kind != "f":
        return ""
    apart = np.abs(one - other)
    rows = np.argwhere(apart > 0)
    return f", by at most {np.nanmax(apart):.1e}, first at {rows[0].tolist() if len(rows) else 'a NaN'}"


def main() -> int:
    """Run the command."""
    if sys.argv[1:2] == ["keep"] and len(sys.argv) == 3:
        keep(Path(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        found = differences(Path(sys.argv[2]), Path(sys.argv[3]))
        print("\n".join(found) or "the same, to the bit")
        return bool(found)
    print(__doc__.strip())
    return 2


if __name__ == "__main__":
    sys.exit(main())
