"""Blocks of cells: how a sweep is cut into them, and the work on them, each in one compiled program.

Any number of processes work beside one another: each claims a block by a lock, runs it, and writes it.
"""

import fcntl
import random
import time
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dlf.ensembles import Outcome, is_vectorized, make_ensemble, spread
from dlf.recording import with_gaps
from dlf.store import files
from dlf.store.cells import DIVERGED, DONE, INVALID, NOT_RUN, Block, Store
from dlf.types import Series
from experiments import build
from experiments.command_line import ConfigError
from experiments.settings import check_size
from experiments.sweep.axes import Sweep

LOCKS = "blocks.lock"
# Mapped replicas gain nothing from more in one program, and a killed process loses its block.
_MOST_CELLS_MAPPED, _MOST_CELLS_VECTORIZED = 16, 4096
_MOST_PROGRAMS = 10_000
_MOST_TRIED = 1_000  # cells of a program, to find one that can be run
_DATA = ("train", "tests")  # of a replica, which those of one block may share
_PATIENCE = 0.5  # seconds between two looks at blocks that others run


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
    series, coordinates, programs = {}, {}, {}
    static = [axis.is_static for axis in sweep.axes]
    # with 400 bytes for status, step, reason and digests of each, while they are read and written
    check_size(f"a sweep of {prod(sweep.shape):,} cells", 400 * prod(sweep.shape))
    num_programs = prod(n for n, is_static in zip(sweep.shape, static, strict=True) if is_static)
    if num_programs > _MOST_PROGRAMS:
        varied = ", ".join(axis.name for axis in sweep.axes if axis.is_static)
        raise ConfigError(f"axes {varied}: {num_programs:,} programs to compile, at most {_MOST_PROGRAMS:,}")
    for index in _candidates(sweep.shape, static):
        fixed = tuple(number for number, is_static in zip(index, static, strict=True) if is_static)
        if len(programs) == num_programs:
            break
        if fixed in programs:
            continue
        try:  # the first cell of each program that can be run
            config = sweep.cell(index)
            needed = build.replica_bytes(config)  # of which nothing is drawn yet
            experiment = build.build(config) if needed <= memory else None
        except ConfigError:
            continue
        if experiment is None:
            raise too_small("a block of one cell", needed, memory)
        if unknown := set(sweep.record.variables) - set(experiment.series):
            known = ", ".join(experiment.series)
            raise ConfigError(f"record: unknown variable {', '.join(unknown)}: one of {known}")
        programs[fixed], coordinates = config, {}
        for name in sweep.record.variables or experiment.series:
            of = experiment.series[name]
            labels = {dim: np.arange(n) for dim, n in zip(of.dims, of.shape, strict=True)}
            if sweep.record.kind == "series":
                labels[of.step] = np.arange(0, config.num_steps, of.every)
                of = of._replace(dims=(of.step, *of.dims), shape=(len(labels[of.step]), *of.shape))
            coordinates = labels | coordinates
            if name in series and series[name].shape != of.shape:
                raise ConfigError(
                    f"the cells' {name} differ in shape, {series[name].shape} and {of.shape}: "
                    "name other variables in record(...), or declare two sweeps"
                )
            series[name] = of
    if not programs:
        build.build(sweep.cell((0,) * len(sweep.axes)))  # says what is wrong
    for name in {axis.name for axis in sweep.axes} & {*series, *coordinates}:
        raise ConfigError(f"axis {name!r}: a variable or a dimension of the results has this name")
    largest = max(reversed(programs.values()), key=build.replica_bytes)
    shared, each = program_bytes(sweep, largest)
    left = (memory - shared) // each
    if left < 1:
        raise too_small("a block of one cell", shared + each, memory)
    left = min(left, _MOST_CELLS_VECTORIZED if is_vectorized() else _MOST_CELLS_MAPPED)
    cells = []
    for size, is_static in zip(reversed(sweep.shape), reversed(static), strict=True):
        cells.insert(0, 1 if is_static else -(-size // -(-size // left)))  # in parts of one size
        left //= cells[0]
    return Plan(tuple(cells), series, coordinates, [*programs.values()], shared + each * prod(cells))


def _candidates(shape: tuple[int, ...], static: list[bool]) -> Iterator[tuple[int, ...]]:
    """Yield cells of every program: all of them, or so many at random that one which can be run is met."""
    fixed, free = np.where(static, shape, 1), np.where(static, 1, shape)
    num, most = prod(map(int, free)), _MOST_TRIED
    for cell in range(num) if num <= most else sorted(random.Random(0).sample(range(num), most)):
        first = np.unravel_index(cell, free)
        yield from (tuple(map(sum, zip(first, of, strict=True))) for of in product(*map(range, fixed)))


def too_small(what: str, needed: int, memory: int) -> ConfigError:
    """Return the error for a memory that does not hold what is needed, both in bytes."""
    return ConfigError(f"{what} takes {needed / 2**20:.3g} MiB: --memory={memory / 2**20:.3g} is too small")


def ensemble(sweep: Sweep, experiment: build.Experiment, num_steps: int):
    """Return the compiled program of a block, see `dlf.ensembles.make_ensemble`."""
    series = {name: experiment.series[name] for name in sweep.record.variables or experiment.series}

    def assemble(replica: build.Replica, shared: tuple = ()):
        return experiment.assemble(replica._replace(**dict(zip(_DATA, shared, strict=False))))

    return make_ensemble(assemble, num_steps, sweep.record.kind, series)


def arguments(sweep: Sweep, replicas: list[build.Replica], active: np.ndarray) -> tuple:
    """Return the arguments of the program of a block: its cells' data are shared where they are the same."""
    shared = ()
    if not any(key.startswith("dataset.") for axis in sweep.axes for key in axis.keys):
        shared = (tuple(getattr(replicas[0], name) for name in _DATA),)
        replicas = [replica._replace(**dict.fromkeys(_DATA, ())) for replica in replicas]
    stacked, active = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas), jnp.asarray(active)
    if is_vectorized():
        stacked, active = spread((stacked, active))
    return stacked, active, *shared


def copies(sweep: Sweep, experiment: build.Experiment, num: int) -> tuple:
    """Return the arguments of the program of a block that holds one run so many times."""
    return arguments(sweep, [experiment.replica] * num, np.ones(num, bool))


def program_bytes(sweep: Sweep, config: ConfigDict) -> tuple[int, int]:
    """Return the bytes that a block takes whatever its size, and those of each of its cells.

    As the compiler counts them for one replica; arguments and results exist twice, alone and stacked.
    """
    experiment = build.build(config)
    given = copies(sweep, experiment, 1)
    found = ensemble(sweep, experiment, config.num_steps).lower(*given).compile().memory_analysis()
    shared = sum(leaf.nbytes for leaf in jax.tree.leaves(given[2:]))
    # the compiler leaves out arguments that the program does not read
    each = 2 * (max(found.argument_size_in_bytes - shared, 0) + found.output_size_in_bytes)
    if is_vectorized():
        return shared, each + found.temp_size_in_bytes
    return shared + found.temp_size_in_bytes, each


def work(
    sweep: Sweep, workdir: Path, stop: Callable[[], bool] = bool, patient: bool = True, first: float = 0.0
) -> Iterator[int]:
    """Run blocks until none is left; yield the number of cells of each one.

    It begins with the block behind this share of all blocks, `first`. A block under way is locked: the
    operating system drops the lock if its worker dies, and another one takes the block. A `patient` worker
    waits for that where others run the last blocks. Asked to `stop`, it ends after the block under way.
    Raises StoreError where results cannot be written or are another sweep's, ConfigError if JAX runs in
    another precision.
    """
    build.check_precision(sweep.config)
    store, programs = Store(workdir), {}
    files.check_own(workdir, files.read_json(workdir / "config.json") == sweep.as_json())
    # cells of one program together, of which a worker keeps one
    static = [number for number, axis in enumerate(sweep.axes) if axis.is_static]
    blocks = sorted(enumerate(store.blocks()), key=lambda of: [of[1][number].start for number in static])
    start = int(first * len(blocks))
    left = blocks[start:] + blocks[:start]
    with (workdir / LOCKS).open("a") as locks:
        while left:
            others = []
            for number, block in left:
                if stop():
                    return
                try:
                    fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                except BlockingIOError:
                    others.append((number, block))
                    continue
                try:
                    status = store.status(block)
                    if (status == NOT_RUN).any():
                        run_block(sweep, store, block, programs)
                        yield status.size
                finally:
                    fcntl.lockf(locks, fcntl.LOCK_UN, 1, number)
            if others == left:
                if not patient:
                    return
                time.sleep(_PATIENCE)
            left = others


def run_block(sweep: Sweep, store: Store, block: Block, programs: dict[str, Callable]) -> None:
    """Run all cells of a block in one program, and write what they found.

    `programs` keeps the program of the last block. A cell that cannot be run is recorded with its reason.
    """
    keys, replicas, reasons = {}, [], []
    for index in product(*(range(cells.start, cells.stop) for cells in block)):
        try:
            cell = sweep.cell(index)
            replicas.append(build.draw(cell))
        except ConfigError as error:
            replicas.append(None)
            reasons.append(str(error))
        else:
            keys[f"{cell.num_steps} {build.program(cell)}"] = cell
            reasons.append("")
    outcome = Outcome({}, np.full(len(replicas), -1, np.int32))
    active = np.array([replica is not None for replica in replicas])
    if keys:
        ((key, config),) = keys.items()  # a block has one program
        try:
            if key not in programs:
                programs.clear()
                programs[key] = ensemble(sweep, build.build(config), config.num_steps)
            outcome = _run(sweep, programs[key], store.cells_per_block, replicas)
        except ConfigError as error:  # a probe's setting, say
            reasons = [reason or str(error) for reason in reasons]
            active[:] = False
    status = np.where(active, np.where(outcome.diverged_step < 0, DONE, DIVERGED), INVALID).astype(np.int8)
    for place in np.flatnonzero(status == DIVERGED):
        reasons[place] = f"the loss is not finite at step {outcome.diverged_step[place]}"
    reason = np.array([" ".join(reason.split()) for reason in reasons], object)
    values = outcome.values | {"diverged_step": outcome.diverged_step, "reason": reason}
    shape = store.status(block).shape
    values = {name: rows.reshape(*shape, *rows.shape[1:]) for name, rows in values.items()}
    store.write(block, values, status.reshape(shape))


def _run(sweep: Sweep, program: Callable, num: int, replicas: list[build.Replica | None]) -> Outcome:
    """Run the cells of a block, filled up to a number that every block of the sweep has."""
    if is_vectorized():
        num = -(-num // jax.device_count()) * jax.device_count()
    filled = replicas + [None] * (num - len(replicas))
    any_one = next(replica for replica in replicas if replica)
    active = np.array([replica is not None for replica in filled])
    given = arguments(sweep, [replica or any_one for replica in filled], active)
    found = jax.tree.map(lambda rows: rows[: len(replicas)], jax.device_get(program(*given)))
    return found._replace(values=with_gaps(found.values))
