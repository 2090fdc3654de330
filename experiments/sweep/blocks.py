"""How a sweep is cut into blocks of cells, from the memory that one block may take."""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dlf.ensembles import is_vectorized, make_ensemble
from dlf.types import Series
from experiments import build
from experiments.command_line import ConfigError
from experiments.sweep.axes import Sweep, is_static

# Mapped replicas gain nothing from more in one program, and a killed process loses its block.
_MOST_CELLS_MAPPED, _MOST_CELLS_VECTORIZED = 16, 4096


class Plan(NamedTuple):
    """The blocks of a sweep and what its store holds."""

    cells_per_block: tuple[int, ...]
    series: dict[str, Series]  # as the store has those of one cell
    coordinates: dict[str, np.ndarray]
    programs: list[ConfigDict]  # one configuration of each program
    block_bytes: int


def plan(sweep: Sweep, memory: int) -> Plan:
    """Cut a sweep into blocks whose arrays take at most `memory` bytes.

    Axes that need another program have one cell a block; the others are filled from the last one on.

    Raises ConfigError if the memory does not hold one cell, no cell can be run, an axis has a name that the
    results use, or the cells' results differ in shape.
    """
    series, coordinates, programs, largest = {}, {}, [], (-1, 0)
    for config, experiment in _one_of_each_program(sweep, memory):
        found, coordinates = _stored(sweep, experiment, config.num_steps)
        for name, of in found.items():
            if series and series[name].shape != of.shape:
                raise ConfigError(
                    f"the cells' {name} differ in shape, {series[name].shape} and {of.shape}: "
                    "name other variables in record(...), or declare two sweeps"
                )
        series = found
        programs.append(config)
        largest = max(largest, (_bytes(experiment.replica), len(programs) - 1))
    if not programs:
        build.build(sweep.cell((0,) * len(sweep.axes)))  # says what is wrong
    taken = {axis.name for axis in sweep.axes} & {*series, *coordinates}
    if taken:
        raise ConfigError(f"axis {taken.pop()!r}: a variable or a dimension of the results has this name")
    fixed, each = program_bytes(sweep, programs[largest[1]])
    affordable = (memory - fixed) // each
    if affordable < 1:
        raise ConfigError(_too_small(memory, fixed + each))
    left = min(affordable, _MOST_CELLS_VECTORIZED if is_vectorized() else _MOST_CELLS_MAPPED)
    cells = []
    for axis in reversed(sweep.axes):
        num_blocks = 1 if is_static(axis) else -(-len(axis.labels) // left)
        size = 1 if is_static(axis) else -(-len(axis.labels) // num_blocks)
        left //= size
        cells.insert(0, size)
    return Plan(tuple(cells), series, coordinates, programs, fixed + each * prod(cells))


def _one_of_each_program(sweep: Sweep, memory: int) -> Iterator[tuple[ConfigDict, build.Experiment]]:
    """Yield the first cell that can be run for each combination of the static axes.

    Raises ConfigError for parameters that the memory does not hold, before they are drawn.
    """
    static = [range(len(axis.labels)) if is_static(axis) else (None,) for axis in sweep.axes]
    for fixed in product(*static):
        free = [
            range(len(axis.labels)) if number is None else (number,)
            for axis, number in zip(sweep.axes, fixed, strict=True)
        ]
        for index in product(*free):
            try:
                config = sweep.cell(index)
                build.check(config)
                num_bytes = build.parameter_bytes(config)
                experiment = build.build(config) if num_bytes <= memory else None
            except ConfigError:
                continue
            if experiment is None:
                raise ConfigError(_too_small(memory, num_bytes))
            yield config, experiment
            break


def _too_small(memory: int, needed: int) -> str:
    return f"a block of one cell takes {needed / 2**20:.3g} MiB: --memory={memory / 2**20:.3g} is too small"


def _recorded(sweep: Sweep, experiment: build.Experiment) -> dict[str, Series]:
    unknown = set(sweep.record.variables) - set(experiment.series)
    if unknown:
        raise ConfigError(
            f"record: unknown variable {', '.join(unknown)}: one of {', '.join(experiment.series)}"
        )
    return {name: experiment.series[name] for name in sweep.record.variables or experiment.series}


def ensemble(sweep: Sweep, experiment: build.Experiment, num_steps: int):
    """Return the compiled program of a block, see `dlf.ensembles.make_ensemble`."""
    return make_ensemble(experiment.assemble, num_steps, sweep.record.kind, _recorded(sweep, experiment))


def _stored(sweep: Sweep, experiment: build.Experiment, num_steps: int):
    """Return the series of one cell as they are stored, and the coordinates of their own dimensions."""
    series, coordinates = _recorded(sweep, experiment), {}
    if sweep.record.kind == "series":
        for name, of in series.items():
            coordinates[of.step] = np.arange(0, num_steps, of.every)
            shape = (len(coordinates[of.step]), *of.shape)
            series[name] = of._replace(dims=(of.step, *of.dims), shape=shape)
    for of in series.values():
        labels = {dim: np.arange(n) for dim, n in zip(of.dims, of.shape, strict=True)}
        coordinates = labels | coordinates
    return series, coordinates


def copies(experiment: build.Experiment, num: int):
    """Return the arguments of the program of a block that holds one run so many times."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * num), experiment.replica), jnp.ones(num, bool)


def program_bytes(sweep: Sweep, config: ConfigDict) -> tuple[int, int]:
    """Return the bytes that a block takes whatever its size, and those of each of its cells.

    As the compiler counts them for one replica; arguments and results exist twice, alone and stacked.
    """
    experiment = build.build(config)
    lowered = ensemble(sweep, experiment, config.num_steps).lower(*copies(experiment, 1))
    found = lowered.compile().memory_analysis()
    each = 2 * (found.argument_size_in_bytes + found.output_size_in_bytes)
    if is_vectorized():
        return 0, each + found.temp_size_in_bytes
    return found.temp_size_in_bytes, each


def _bytes(replica: build.Replica) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(replica))
