"""Go on from a moment of a run with other settings, as a run of its own that knows its parent.

    python -m experiments.branch PARENT --step=STEP --workdir=DIR [--perturbation=SIZE] [--seed=N] \\
        [--config.key=value ...]

The state at STEP is the parent's, to the bit, from its newest checkpoint at or before it; before STEP the
series are the parent's, from there on the settings given hold. A value is a number, a word or a literal of
Python, a section too: --config.optimizer.rule="{'name': 'cap'}". With a perturbation every parameter moves by
a normal number of that size, relative to the root mean square of its array. What was interrupted goes on with
the same command.
"""

import argparse
import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from ml_collections import ConfigDict

from dlf import store
from dlf.rules import Ruled
from dlf.store import files
from dlf.train import init_carries
from dlf.types import Series, TrainState
from experiments import command_line, threads
from experiments.build import build, make_loop
from experiments.command_line import ConfigError, report
from experiments.settings import Config, checked
from experiments.train import Start, train


def branch(
    parent: str | Path,
    step: int,
    overrides: Mapping[str, Any],
    workdir: str | Path,
    perturbation: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Train on from the state of a run at a step, with settings by their dotted keys; return its meta.json.

    `branch` in meta.json is the parent's folder and id, the step, the checkpoint and the perturbation. Raises
    ConfigError or StoreError for a run without a checkpoint at or before the step, a step that it does not
    have, or settings that change the shapes of what goes on.
    """
    parent, workdir = Path(parent), Path(workdir)
    before = checked(Config(files.read_json(parent / "config.json")))
    config = overridden(before, overrides)
    if not (np.isfinite(perturbation) and perturbation >= 0):
        raise ConfigError(f"perturbation must be at least 0 and finite, got {perturbation}")
    if type(seed) is not int or not 0 <= seed < 2**32:  # of more the generator takes the last 32 bits
        raise ConfigError(f"seed must be a whole number from 0 to below 2**32, got {seed!r}")
    if type(step) is not int:
        raise ConfigError(f"step must be a whole number, got {step!r}")
    if workdir.resolve().is_relative_to(parent.resolve()):
        raise ConfigError(f"{workdir} is the parent's own folder: name one outside of it")
    if (workdir / "meta.json").exists():
        known = files.read_json(workdir / "meta.json").get("branch", {})
        asked = {"parent": str(parent.resolve()), "step": step, "perturbation": perturbation, "seed": seed}
        if {key: known.get(key) for key in asked} != asked:
            raise ConfigError(f"{workdir} holds another run: name another folder for this branch")
        if store.committed(workdir)[0] >= step:
            return train(config, workdir, resume=True)
    return train(config, workdir, resume=True, start=_start(before, config, parent, step, perturbation, seed))


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> Config:
    """Return a configuration with other settings, new ones too, by their dotted keys."""
    changed = Config(json.loads(config.to_json()))
    with changed.unlocked():
        for name, value in overrides.items():
            *path, key = name.split(".")
            section = changed
            for part in path:
                if not isinstance(section.get(part), ConfigDict):
                    raise ConfigError(f"unknown config key {name!r}: {part!r} is no section of it")
                section = section[part]
            if section is changed and key not in changed:
                raise ConfigError(f"unknown config key {name!r}: one of {', '.join(changed)}")
            try:
                section[key] = value
            except TypeError as error:
                raise ConfigError(f"config.{error}") from error
    return checked(changed)


def _start(before, config, parent: Path, step: int, perturbation: float, seed: int) -> Start:
    """Return the parent at a step as the beginning of a run with another configuration."""
    found = store.load(parent)
    last = int(found.attrs["committed_steps"])
    if not 1 <= step < last:
        raise ConfigError(f"{parent} has the steps 1 to {last - 1} to branch at, not {step}")
    if step >= config.num_steps:
        raise ConfigError(f"num_steps={config.num_steps} leaves no step after {step}")
    old = build(before)
    like = old.state, init_carries(old.run.probes, old.state)
    kept = store.checkpoint_before(parent, step, like)
    if kept is None:
        raise ConfigError(
            f"{parent} has no checkpoint at or before step {step}: take a later step, or train it anew with "
            "more of checkpoints_kept or fewer of steps_per_chunk"
        )
    first, (state, carries) = kept
    loop, at = make_loop(old), first
    while at < step:
        num_rows = min(before.steps_per_chunk, step - at)
        state, carries, _ = loop(old.replica, state, carries, num_rows)
        at += num_rows
    new = build(config)
    state = _adapted(state, new.state, before.optimizer, config.optimizer)
    state = state._replace(params=_perturbed(state.params, perturbation, seed))
    fresh = init_carries(new.run.probes, state)
    for name in fresh:
        if name in before.probes and before.probes[name] == config.probes[name] and perturbation == 0:
            fresh[name] = carries[name]
    record = {
        "parent": str(parent.resolve()),
        "id": (files.read_ledger(parent) or {}).get("id"),
        "step": step,
    }
    record |= {"checkpoint": first, "perturbation": perturbation, "seed": seed}
    return Start(step, _rows(found, new.series, step), (state, fresh), record)


def _adapted(state: TrainState, like: TrainState, before: ConfigDict, now: ConfigDict) -> TrainState:
    """Return a state as a run of another configuration takes it."""
    for words, of, wanted in (
        ("parameters", state.params, like.params),
        ("model state", state.model_state, like.model_state),
    ):
        if _shapes(of) != _shapes(wanted):
            raise ConfigError(
                f"a branch goes on with the {words} of its parent: leave their shapes as they are"
            )
    inner = state.opt_state.inner if isinstance(state.opt_state, Ruled) else state.opt_state
    wanted = like.opt_state.inner if isinstance(like.opt_state, Ruled) else like.opt_state
    of_optimizer = [{key: of[key] for key in of if key != "rule"} for of in (before, now)]
    if of_optimizer[0] != of_optimizer[1] or _shapes(inner) != _shapes(wanted):
        inner = _counting(inner, wanted, state.step, ":" in now.name)
    if not isinstance(like.opt_state, Ruled):
        return state._replace(opt_state=inner)
    is_same = isinstance(state.opt_state, Ruled) and before.rule == now.rule
    return state._replace(opt_state=(state.opt_state if is_same else like.opt_state)._replace(inner=inner))


def _counting(state: Any, like: Any, step: Array, is_own: bool) -> Any:
    """Return an optimizer's state, with a count where it gets a schedule, without one where it gets a number.

    Raises ConfigError for other states, and where the rate may lie in the state itself, or be counted
    otherwise: injected hyper-parameters, functions of one's own.
    """

    def is_rate(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState | optax.EmptyState)

    (of, structure), (wanted, other) = (jax.tree.flatten(tree, is_leaf=is_rate) for tree in (state, like))
    both = [*zip(of, wanted, strict=False)]
    same = (is_rate(a) == is_rate(b) and (is_rate(a) or _shapes(a) == _shapes(b)) for a, b in both)
    if structure != other or not all(same):
        raise ConfigError("a branch goes on with the optimizer's state: only its rate and rule may differ")
    if is_own and (_injected(like) or [*map(type, of)] != [*map(type, wanted)]):
        raise ConfigError("a branch cannot change the rate that an optimizer of your own keeps in its state")
    counting = optax.ScaleByScheduleState(step)
    taken = (a if type(a) is type(b) else counting if isinstance(a, optax.EmptyState) else b for a, b in both)
    return other.unflatten(taken)


def _injected(state: Any) -> bool:
    kinds = optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _perturbed(params: Any, size: float, seed: int) -> Any:
    """Return parameters that are moved by normal numbers, relative to the size of each array."""
    if size == 0:
        return params
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = (jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True))
    moved = [p + size * jnp.sqrt(jnp.mean(p**2)) * of for p, of in zip(leaves, noise, strict=True)]
    return structure.unflatten(moved)


def _rows(found: xr.Dataset, series: Mapping[str, Series], step: int) -> dict[str, np.ndarray]:
    """Return the parent's rows before a step, NaN for what it did not measure at the same steps."""
    rows = {}
    for name, of in series.items():
        rows[name] = np.full((step, *of.shape), np.nan, of.dtype)
        if name not in found or found[name].ndim != 1 + len(of.shape):
            continue
        values, labels = found[name], found[found[name].dims[0]].values
        if (len(labels) > 1 and labels[1] != of.every) or any(map(int.__lt__, values.shape[1:], of.shape)):
            continue
        inside = labels[labels < step]
        rows[name][inside] = values.values[: len(inside), *map(slice, of.shape)]
    return rows


def main() -> None:
    """Run `python -m experiments.branch`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.branch", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parent", metavar="PARENT", type=Path, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="the first step with other settings")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the branch")
    parser.add_argument("--perturbation", type=float, default=0.0, help="relative size, by default 0")
    parser.add_argument("--seed", type=int, default=0, help="of the perturbation")
    asked, rest = parser.parse_known_args()
    overrides = {}
    for word in rest:
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            raise ConfigError(f"unexpected argument {word!r}: settings are given as --config.key=value")
        overrides[name] = _value(value)
    config = checked(Config(files.read_json(asked.parent / "config.json")))
    command_line.use_precision(config)
    threads.choose([config])
    meta = branch(asked.parent, asked.step, overrides, asked.workdir, asked.perturbation, asked.seed)
    return report(meta, asked.workdir)


def _value(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (SyntaxError, ValueError):
        return word


if __name__ == "__main__":
    main()
