"""Networks of images: training against PyTorch and the machine's bound, products with the Hessian, a solve.

Made images; a step is forward, backward, update and augmentation on a batch of 128. Each rate is that of a
process of its own, pinned to its cores; PyTorch takes channels last and, of one or two threads, the better.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis import operators
from dlf import data, losses, models, schedules, train
from dlf.types import Batch, Problem
from experiments.benchmark import timing
from experiments.benchmark.timing import MATMUL, Record, row, timed

MYRTLE16, MYRTLE64, WIDE = "Myrtle5-16", "Myrtle5-64", "WRN-10-1"
SIDES = {MYRTLE16: (32, 8), MYRTLE64: (32, 8), WIDE: (14,)}
BATCH_SIZE, RATE = 128, 0.01
_TARGETS = {MYRTLE16: (">=", 1.0), MYRTLE64: (">=", 0.8)}
_WINDOW = 2.0  # seconds


def model_of(name: str):
    """Return a network by its name, of bytes in three channels."""
    scaling = dict(mean=data.cifar.MEAN, std=data.cifar.STD)
    if name == WIDE:
        return models.wide_resnet(10, depth=10, widen_factor=1, **scaling)
    return models.myrtle(10, (int(name.partition("-")[2]),) * 4, "relu", **scaling)


def made_images(side: int, num: int = 1_024) -> Batch:
    """Return random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, side, side, 3), np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, 10, num, np.int32)))


def problem_of(name: str, side: int) -> Problem:
    """Return a run with momentum on augmented batches."""
    batch, key = made_images(side), jax.random.key(0)
    augment = (dict(name="pad_crop", pad=4), "flip")
    return train.make_problem(
        model_of(name),
        losses.cross_entropy,
        schedules.triangular(10, amplitude=16.0, period=100),
        dict(name="sgd", learning_rate=RATE, momentum=0.9),
        batch,
        batch_fn=data.minibatches(batch, BATCH_SIZE, augment=augment, key=key),
        key=key,
    )


def _ours(name: str, side: int) -> Callable[[], float]:
    problem, num_steps = problem_of(name, side), 4
    params, model_state = problem.model.init(jax.random.key(0), problem.train.inputs[:1])
    state = train.init_state(params, problem.optimizer, model_state)
    loop = train.make_loop(train.problem_step(problem))
    return timed(lambda: loop(state, {}, num_steps), num_steps, _WINDOW)


def _theirs(name: str, side: int, num_threads: int) -> Callable[[], float]:
    from experiments.benchmark import peers

    step = peers.image_training(name, made_images(side), BATCH_SIZE, RATE, num_threads)
    return timed(step, 1, _WINDOW)


def _product(name: str, side: int) -> Callable[[], float]:
    """Return a matrix product, its seconds for as many operations as a step with a batch needs."""
    model = model_of(name)
    inputs = made_images(side, BATCH_SIZE).inputs
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    cost = jax.jit(model.apply).lower(*variables, inputs).compile().cost_analysis()
    product, num_operations = timing.matrix_product()
    # backward are two products for each forward
    return timed(product, num_operations / (3 * cost["flops"]), _WINDOW / 4)


@lru_cache(maxsize=1)
def _case(make: Callable, *args: Any) -> Callable[[], float]:
    return make(*args)


def seconds(cores: tuple[int, ...], make: Callable, *args: Any) -> float:
    """Return the seconds a step of a case; for a process of its own, pinned before JAX starts."""
    os.sched_setaffinity(0, cores)
    return _case(make, *args)()


def _awaited(submit: Callable, *args: Any) -> float:
    return submit(*args).result()


def rates(name: str, side: int, repeats: int) -> list[Record]:
    """Return images a second of one network, on one core and on all, against PyTorch and the bound."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    found, which = [], f"{name}, {side}x{side}"
    for words, pinned in {"one core": cores[:1], f"{len(cores)} cores": cores}.items():
        of = {"ours": (_ours, name, side), MATMUL: (_product, name, side)}
        if find_spec("torch"):
            numbers = range(1, len(pinned) + 1)
            of |= {f"PyTorch, {num} threads": (_theirs, name, side, num) for num in numbers}
        with ExitStack() as stack:
            cases = {}
            for label, case in of.items():
                submit = stack.enter_context(timing.fresh_process()).submit
                cases[label] = partial(_awaited, submit, seconds, pinned, *case)
            taken = timing.measure(cases, repeats)
        peer = timing.fastest(times for label, times in taken.items() if "PyTorch" in label)
        target = _TARGETS.get(name) if len(pinned) == 1 else None
        found += [
            (f"{words}: images", "1/s", BATCH_SIZE / taken["ours"], None),
            (f"{words}: PyTorch's images", "1/s", BATCH_SIZE / peer, None),
            (f"{words}: images : PyTorch's", "times", peer / taken["ours"], target),
            (f"{words}: images : bound", "%", 100 * taken[MATMUL] / taken["ours"], None),
        ]
    return [row(which, *of) for of in found]


def product_over_gradient(name: str, side: int, repeats: int) -> np.ndarray:
    """Return the time of a product with the Hessian over that of a gradient; for a fresh process."""
    problem = problem_of(name, side)
    batch = Batch(problem.train.inputs[:BATCH_SIZE], problem.train.labels[:BATCH_SIZE])
    params, model_state = problem.model.init(jax.random.key(0), batch.inputs[:1])
    loss_fn = losses.make_loss(
        models.apply_fn(problem.model, model_state), problem.weighted_loss, problem.schedule
    )
    at = params, batch, jnp.asarray(0)
    # all are arguments: of a constant batch the compiler works the first layer out beforehand
    product = partial(jax.jit(lambda v, *at: operators.hessian(loss_fn, *at)(v)), params, *at)
    cases = {"product": product, "gradient": partial(jax.jit(jax.grad(loss_fn)), *at)}
    taken = timing.measure({of: timed(run, window=1) for of, run in cases.items()}, repeats)
    return taken["product"] / taken["gradient"]


def solving(repeats: int) -> tuple[list[Record], list[Record]]:
    """Return the solvers' records and rows on Myrtle5-16 at 32x32; for a fresh process."""
    from experiments.benchmark import eigenpairs  # which starts JAX

    jax.config.update("jax_enable_x64", True)  # for the true residuals
    made, model = made_images(32, 32), models.myrtle(10, (16,) * 4, "relu")
    batch = Batch((made.inputs / jnp.asarray(255, "f4") - 0.5).astype("f4"), made.labels)
    results, rows = [], []
    for case in eigenpairs.stages(f"{MYRTLE16}, 32x32", model, "relu", batch, 10, 0.05, 100):
        found = eigenpairs.solve(case, repeats)
        results += found
        rows += [of for of in eigenpairs.summarise(found) if "PyTorch" in of["quantity"]]
    return results, rows


def speed(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure networks of images: training, products with the Hessian, the largest eigenvalues."""
    for name, sides in SIDES.items():
        for side in sides:
            yield {"rows": rates(name, side, repeats)}
    for name, side in ((MYRTLE16, 32), (WIDE, 14)):
        ratio = timing.in_fresh_process(product_over_gradient, name, side, repeats)
        yield {"rows": [row(f"{name}, {side}x{side}", "Hessian product : gradient", "times", ratio)]}
    results, rows = timing.in_fresh_process(solving, repeats)
    yield {"results": results, "rows": rows}
