"""One run, that of Fig. 4: its speed and memory, the cost of its probes, the spread of its chaos.

The compiled program, a loop as in the authors' notebook and PyTorch eager, where it is installed, train
the same problem. Each precision has a process of its own, with JAX's x64 flag as its user would set it.
"""

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from ml_collections import ConfigDict

from analysis import cascades
from dlf import data, losses, schedules, train
from dlf.types import Batch
from experiments import build, command_line, second_pass, threads
from experiments.benchmark import timing
from experiments.benchmark.timing import MATMUL, Record, fastest, in_fresh_process, measure, row, timed
from experiments.configs import cascades as config_cascades
from experiments.configs import fig4

COMPILED, NOTEBOOK = "compiled program", "notebook loop"
PYTORCH = {n: f"PyTorch, {n} thread{'s' * (n > 1)}" for n in sorted({1, 2, os.cpu_count() or 1})}
# in the matrix products of a step, 300 points, 2-100-3: forward, gradients of weights and hidden layer
STEP_FLOPS = 2 * 300 * (2 * (2 * 100 + 100 * 3) + 100 * 3)
BOUNDS = {"one core": 1, "all cores": threads.num_cpus()}  # and their threads
_FEW_STEPS = 20  # long before the first instability, where any rounding would grow


def prepare(config: ConfigDict, **settings: Any) -> build.Experiment:
    """Build an experiment in its precision, with some settings changed."""
    config.update(settings)
    command_line.use_precision(config)
    return build.build(config)


def compiled(experiment: build.Experiment, probe_names: Iterable[str], num_steps: int) -> Callable[[], Any]:
    """Train as `experiments.train` does, without the store; return the series."""
    loop, arguments = build.ready_loop(experiment, probe_names)
    return lambda: loop(*arguments, num_steps)[2]


def notebook(experiment: build.Experiment, num_steps: int) -> Callable[[], Any]:
    """Train as the authors' notebook does: a jitted function and a list for each quantity, no waiting."""
    problem, rate = experiment.problem, float(experiment.replica.settings["optimizer.learning_rate"])
    batch, static = problem.train, schedules.constant(len(problem.schedule(experiment.state.step)))
    apply_fn, loss_fn = train.frozen(problem, experiment.state), train.loss_of(problem, experiment.state)
    measured = {
        "loss": jax.jit(loss_fn),
        "static_loss": jax.jit(losses.make_loss(apply_fn, problem.weighted_loss, static)),
        "accuracy": jax.jit(lambda p, *_: losses.accuracy(apply_fn(p, batch.inputs), batch.labels)),
        "class_weights": lambda params, batch, step: problem.schedule(step),  # theirs is without jit, too
    }

    @jax.jit
    def advance(params, step):
        grads = jax.grad(loss_fn)(params, batch, step)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), step + 1

    def run():
        params, step, series = experiment.state.params, experiment.state.step, {name: [] for name in measured}
        for _ in range(num_steps):
            for name, function in measured.items():
                series[name].append(function(params, batch, step))
            params, step = advance(params, step)
        return series

    return run


def check_agreement(series_of: Mapping[str, Mapping[str, Any]], rtol: float) -> None:
    """Raise AssertionError unless all implementations recorded the same first steps."""
    num_steps = min(_FEW_STEPS, *(len(series["loss"]) for series in series_of.values()))
    for name, series in series_of.items():
        for variable in ("loss", "static_loss", "accuracy"):
            found, reference = (np.asarray(s[variable][:num_steps]) for s in (series, series_of[COMPILED]))
            np.testing.assert_allclose(found, reference, rtol, err_msg=f"{variable}: {name}")


@cache
def _product(num_threads: int, float64: bool) -> Callable[[], float]:
    os.environ["PJRT_NPROC"] = str(num_threads)
    jax.config.update("jax_enable_x64", float64)
    return timed(*timing.matrix_product())


def product_seconds(num_threads: int, float64: bool) -> float:
    """Return the seconds a floating-point operation of a matrix product; for a process of its own."""
    return _product(num_threads, float64)()


def time_runs(float64: bool, repeats: int, num_steps: int) -> dict[str, np.ndarray]:
    """Return the seconds a step of each run in each repeat; for a fresh process."""
    config, few = fig4.get_config(), -(-num_steps // 4)  # on a busy machine PyTorch's threads are very slow
    threads.choose([config])  # as a run does
    experiment = prepare(config, float64=float64)
    runs = {COMPILED: compiled(experiment, (), num_steps), NOTEBOOK: notebook(experiment, num_steps)}
    if find_spec("torch"):
        from experiments.benchmark import peers

        weights = np.asarray(runs[COMPILED]()["class_weights"])[:few]
        training = partial(peers.training, experiment, weights, is_recorded=True)
        runs |= {name: training(num_threads) for num_threads, name in PYTORCH.items()}
    check_agreement({name: run() for name, run in runs.items()}, rtol=1e-9 if float64 else 1e-3)
    if float64:
        sets = {name: (name,) for name in config.probes} | {"all probes": tuple(config.probes)}
        runs |= {f"with {name}": compiled(experiment, names, num_steps) for name, names in sets.items()}
    cases = {name: timed(run, few if name in PYTORCH.values() else num_steps) for name, run in runs.items()}
    with ExitStack() as stack:
        for name, num_threads in BOUNDS.items():
            submit = stack.enter_context(timing.fresh_process()).submit
            cases[f"{MATMUL}, {name}"] = lambda submit=submit, num_threads=num_threads: submit(
                product_seconds, num_threads, float64
            ).result()
        return measure(cases, repeats)


def speed_rows(float64: bool, taken: Mapping[str, np.ndarray], config: ConfigDict) -> list[Record]:
    """Derive the rows of one precision from the seconds a step of each run; `a : b` compares speeds."""
    compiled = taken[COMPILED]
    pytorch = {name: taken[name] for name in PYTORCH.values() if name in taken}
    found = [(name, "steps/s", 1 / taken[name]) for name in (COMPILED, NOTEBOOK, *pytorch)]
    found += [
        *([] if pytorch else [("PyTorch: not installed", "steps/s")]),
        ("compiled : PyTorch", "times", fastest(pytorch.values()) / compiled, (">=", 5 if float64 else 12)),
        ("compiled : notebook", "times", taken[NOTEBOOK] / compiled),
    ]
    for name in BOUNDS:
        product, target = taken[f"{MATMUL}, {name}"], (">=", 30) if name == "one core" else None
        found += [
            (f"{MATMUL}, {name}", "Gflop/s", 1e-9 / product),
            (f"bound of {name}, {STEP_FLOPS / 1e3:.0f} kflop/step", "steps/s", 1 / product / STEP_FLOPS),
            (f"compiled : bound of {name}", "%", 100 * STEP_FLOPS * product / compiled, target),
        ]
    for name in (name.removeprefix("with ") for name in taken if name.startswith("with ")):
        extra, target = taken[f"with {name}"] - compiled, ("<=", 30) if name == "all probes" else None
        found.append((f"with {name}", "steps/s", 1 / taken[f"with {name}"]))
        found.append((f"cost of {name}", "us/step", 1e6 * extra))
        found.append((f"{name}, whole run", "s", config.num_steps * extra, target))
    return [row("float64" if float64 else "float32", *of) for of in found]


def measure_program(probe_names: Iterable[str], num_steps: int) -> tuple[float, float]:
    """Return the compile time in s and the peak memory in MiB of the program; for a fresh process."""
    loop, arguments = build.ready_loop(prepare(fig4.get_config()), probe_names)
    started = perf_counter()
    executable = loop.lower(*arguments, num_steps).compile()
    seconds = perf_counter() - started
    jax.block_until_ready(executable(*arguments))
    return seconds, timing.peak_memory()


def minibatch_share(repeats: int, num_steps: int) -> np.ndarray:
    """Return what minibatches of 128 of 50,000 images take of a step of 1 ms; for a fresh process.

    It is the time beyond that of one batch which stays, under the same consumer.
    """
    labels = jnp.arange(50_000) % 10
    train = Batch(jnp.ones((labels.size, 784)), labels)

    @partial(jax.jit, static_argnums=2)
    def consume(train: Batch, key: Array, is_drawn: bool) -> Array:
        few = jax.tree.map(lambda leaf: leaf[:128], train)
        batch_fn = data.minibatches(train, 128, key=key) if is_drawn else data.full_batch(few)

        def body(total, step):
            inputs, labels = batch_fn(step)  # the product reads all inputs, and differs from step to step
            return total + (inputs @ jnp.full(784, total)).sum() + labels.sum().astype(total.dtype), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.arange(num_steps))[0]

    each = {drawn: partial(consume, train, jax.random.key(0), drawn) for drawn in (False, True)}
    taken = measure({drawn: timed(run, num_steps) for drawn, run in each.items()}, repeats)
    return (taken[True] - taken[False]) / 1e-3


def speed(repeats: int, steps: int) -> Iterator[dict[str, list[Record]]]:
    """Measure speed, memory and compile time of the run of Fig. 4."""
    config = fig4.get_config()
    for label, names in {"no probes": (), "all probes": tuple(config.probes)}.items():
        each = [in_fresh_process(measure_program, names, steps) for _ in range(repeats)]
        seconds, peaks = np.transpose(each)
        yield {"rows": [row("float64", f"compile, {label}", "s", seconds, ("<", 10))]}
        yield {"rows": [row("float64", f"memory, {label}", "MiB", peaks)]}
    share = in_fresh_process(minibatch_share, repeats, steps)
    yield {"rows": [row("float32", "minibatches of 128 of 50,000: share of 1 ms", "1", share, ("<=", 0.05))]}
    for float64 in (True, False):
        yield {"rows": speed_rows(float64, in_fresh_process(time_runs, float64, repeats, steps), config)}


def tracking(repeats: int) -> Iterator[dict[str, list[Record]]]:
    """Measure what tracker, Lyapunov exponent and period labels cost on the run of Fig. 4."""
    config = config_cascades.get_config()
    experiment = prepare(config)  # a whole run, since the tracker's work depends on what a run does
    probes, num_steps = {"alone": (), "tracker": ("tracker",), "exponent": ("lyapunov",)}, config.num_steps
    runs = {name: compiled(experiment, names, num_steps) for name, names in probes.items()}
    series = runs["exponent"]()
    runs["labels"] = partial(cascades.label, *map(np.asarray, (series["loss"], series["log_growth"][:, 0])))
    cases = {name: timed(run) for name, run in runs.items()}
    taken = measure(cases | {"printed": lambda: second_pass.estimate_cost(config).gradients}, repeats)
    alone, tracker, printed = taken["alone"], taken["tracker"] - taken["alone"], taken["printed"]
    measured = tracker / alone * num_steps  # a gradient is a step
    found = (
        ("training alone", "s", alone),
        ("training alone", "us/step", 1e6 * alone / num_steps),
        ("tracker over training alone", "times", tracker / alone),
        ("tracker, whole run", "s", tracker),
        ("its Hessian products a measurement", "1", np.nanmean(runs["tracker"]()["tracked_matvecs"])),
        ("tracker, measured", "gradients", measured),
        ("tracker, printed before", "gradients", printed),
        ("|printed : measured - 1|", "%", 100 * abs(printed / measured - 1), ("<=", 20)),
        ("exponent of every step over alone", "times", taken["exponent"] / alone - 1, ("<=", 4)),
        (f"labels of {num_steps:,} steps", "s", taken["labels"], ("<", 1)),
    )
    yield {"rows": [row("float64", *of) for of in found]}


def spread(num_runs: int, config: ConfigDict | None = None, expected: tuple = fig4.EXPECTED):
    """Collect the numbers to expect of Fig. 4 over runs whose first parameters differ by 1e-12.

    A record holds one number's `values`, one a run (the first is not perturbed), and their statistics.
    """
    config = config or fig4.get_config()
    experiment = prepare(config)
    loop, (replica, first, carries) = build.ready_loop(experiment)
    (flat, unravel), values = ravel_pytree(first.params), []
    for run in range(num_runs):
        noise = jax.random.normal(jax.random.fold_in(experiment.problem.key, run), flat.shape, flat.dtype)
        state = first._replace(params=unravel(flat + (1e-12 * noise if run else 0)))
        series = loop(replica, state, carries, config.num_steps)[2]
        values.append([float(series[variable][step]) for variable, step, *_ in expected])
    found = []
    for (variable, step, authors, *_), column in zip(expected, np.transpose(values).tolist(), strict=True):
        mean = statistics.fmean(column)
        of = {"variable": variable, "step": step, "authors": authors, "min": min(column), "mean": mean}
        of |= {"max": max(column), "relative_std": statistics.stdev(column) / mean, "values": column}
        found.append(of)
    yield {"rows": found}
