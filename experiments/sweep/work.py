"""Run the cells of a sweep that are not there yet, block by block, beside any number of others."""

import fcntl
import time
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dlf.ensembles import Outcome, is_vectorized, spread
from dlf.store.cells import DIVERGED, DONE, INVALID, NOT_RUN, Block, Store
from dlf.store.files import StoreError
from experiments import build
from experiments.command_line import ConfigError
from experiments.sweep.axes import Sweep, is_static
from experiments.sweep.blocks import ensemble

LOCKS = "blocks.lock"
_PATIENCE = 0.5  # seconds between two looks at blocks that others run


def work(
    sweep: Sweep,
    workdir: Path,
    worker: int = 0,
    num_workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
    patient: bool = True,
) -> Iterator[int]:
    """Run blocks until none is left; yield the number of cells of each one.

    Each worker begins at a place of its own. A block under way is locked by its worker: the operating
    system drops the lock if that dies, and another worker takes the block. A `patient` one waits for that
    where others run the last blocks. Asked to `stop`, it ends after the block under way.

    Raises StoreError where results cannot be written, ConfigError if JAX runs in another precision.
    """
    build.check_precision(sweep.config)
    store, programs = Store(workdir), {}
    blocks = list(enumerate(store.blocks()))
    # cells of one program together, of which a worker keeps one
    static = [number for number, axis in enumerate(sweep.axes) if is_static(axis)]
    blocks.sort(key=lambda block: [block[1][number].start for number in static])
    start = worker * len(blocks) // num_workers
    left = blocks[start:] + blocks[:start]
    with (workdir / LOCKS).open("a") as locks:
        while left:
            others = []
            for number, block in left:
                if stop():
                    return
                if (store.status(block) != NOT_RUN).all():
                    continue
                if not _lock(locks, number):
                    others.append((number, block))
                    continue
                try:
                    if (store.status(block) == NOT_RUN).any():
                        run_block(sweep, store, block, programs)
                        yield prod(cells.stop - cells.start for cells in block)
                finally:
                    fcntl.lockf(locks, fcntl.LOCK_UN, 1, number)
            if others == left:
                if not patient:
                    return
                time.sleep(_PATIENCE)
            left = others


def _lock(locks, number: int) -> bool:
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(f"cannot lock {locks.name}: {error.strerror or error}") from error
    return True


def run_block(sweep: Sweep, store: Store, block: Block, programs: dict[str, Callable]) -> None:
    """Run all cells of a block in one program, and write what they found.

    `programs` keeps the program of the last block. A cell that cannot be run is recorded with its reason.
    """
    shape = tuple(cells.stop - cells.start for cells in block)
    cells = list(product(*(range(cells.start, cells.stop) for cells in block)))
    status = np.full(len(cells), INVALID, np.int8)
    diverged_step = np.full(len(cells), -1, np.int32)
    reason = np.full(len(cells), "", object)
    replicas, places, config = [], [], None
    for place, index in enumerate(cells):
        try:
            found = sweep.cell(index)
            replicas.append(build.draw(found))
        except ConfigError as error:
            reason[place] = " ".join(str(error).split())
        else:
            config = found
            places.append(place)
    values = {}
    if config is not None:
        try:
            program = _program(sweep, config, programs)
        except ConfigError as error:  # a probe's setting, say
            reason[places], replicas = " ".join(str(error).split()), []
    if replicas:
        outcome = jax.device_get(_run(program, store.cells_per_block, replicas))
        found_step = outcome.diverged_step[: len(places)]
        diverged_step[places] = found_step
        status[places] = np.where(found_step < 0, DONE, DIVERGED)
        for place in np.flatnonzero(status == DIVERGED):
            reason[place] = f"the loss is not finite at step {diverged_step[place]}"
        for name, rows in outcome.values.items():
            whole = np.full((len(cells), *rows.shape[1:]), np.nan, rows.dtype)
            whole[places] = rows[: len(places)]
            values[name] = whole
    values |= {"diverged_step": diverged_step, "reason": reason}
    store.write(
        block,
        {name: rows.reshape(*shape, *rows.shape[1:]) for name, rows in values.items()},
        status.reshape(shape),
    )


def _program(sweep: Sweep, config: ConfigDict, programs: dict[str, Callable]) -> Callable:
    key = f"{config.num_steps} {build.program(config)}"
    if key not in programs:
        programs.clear()
        programs[key] = ensemble(sweep, build.build(config), config.num_steps)
    return programs[key]


def _run(program: Callable, num: int, replicas: list[build.Replica]) -> Outcome:
    """Run replicas of one program, filled up to a number that every block of the sweep has."""
    if is_vectorized():
        num = -(-num // jax.device_count()) * jax.device_count()
    active = jnp.arange(num) < len(replicas)
    filled = replicas + [replicas[0]] * (num - len(replicas))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
    if is_vectorized():
        stacked, active = spread((stacked, active))
    return program(stacked, active)
