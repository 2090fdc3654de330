"""Many runs in one compiled program: mapped one after another on CPU, vectorised elsewhere.

On CPU the runs of a small network are no faster side by side than one after another, and mapped each
has the bits of its single run. On accelerators they are vectorised and spread over all devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from dlf.train import VARIABLES, StepFn, init_carries, make_loop
from dlf.types import Probe, TrainState, Variable

RECORDS = ("final", "last_cycle", "series")
_STEPS_PER_SEGMENT = 1_000  # a replica that diverged is noticed at the end of its segment


class Run(NamedTuple):
    """One training run as functions and arrays; the arrays may be traced.

    `cycle` is the number of steps that "last_cycle" summarises.
    """

    state: TrainState
    step_fn: StepFn
    probes: Mapping[str, Probe]
    cycle: Int[Array, ""]


class Outcome(NamedTuple):
    """What was recorded of each replica: NaN for one that diverged, or was not active."""

    values: dict[str, Array]  # [replicas, *row] or, for series, [replicas, rows, *row]
    diverged_step: Int[Array, " replicas"]  # first step whose loss is not finite, -1 without one


def described(run: Run) -> dict[str, tuple[str, int, Variable]]:
    """Return (step coordinate, every, description) of all that a run measures."""
    found = {name: ("step", 1, variable) for name, variable in VARIABLES.items()}
    for probe_name, probe in run.probes.items():
        found |= {name: (f"{probe_name}_step", probe.every, v) for name, v in probe.variables.items()}
    return found


def make_ensemble(
    assemble: Callable[[PyTree], Run],
    num_steps: int,
    record: str,
    variables: tuple[str, ...],
    vectorized: bool | None = None,
) -> Callable[[PyTree, Bool[Array, " replicas"]], Outcome]:
    """Return a compiled program that trains many replicas: (replicas, active) -> Outcome.

    `assemble(replica)` turns the arrays of one replica, a slice of the pytree `replicas` along the leading
    axes, into a run. `record` says what to keep of `variables`: "final", their last measurement in
    `num_steps` steps; "last_cycle", mean, least and greatest over the last cycle, with the suffixes
    `_mean`, `_min` and `_max`; or "series", all that was measured. A replica whose loss is not finite is
    frozen, and costs nothing more where replicas are mapped; so does one that is not active. They are
    mapped on CPU and vectorised elsewhere, unless `vectorized` says otherwise.

    >>> from dlf.optimizers import make_optimizer
    >>> from dlf.train import init_state, make_step
    >>> def assemble(learning_rate):
    ...     sgd = make_optimizer("sgd", learning_rate)
    ...     step_fn = make_step(lambda w, batch, step: w**2, lambda step: None, sgd)
    ...     return Run(init_state(jnp.asarray(1.0), sgd), step_fn, {}, cycle=jnp.asarray(1))
    >>> outcome = make_ensemble(assemble, 300, "final", ("loss",))(jnp.asarray([0.25, 2.0]), jnp.ones(2) > 0)
    >>> outcome.values["loss"].tolist(), outcome.diverged_step.tolist()
    ([0.0, nan], [-1, 41])
    """
    vectorized = is_vectorized() if vectorized is None else vectorized
    num_segments = -(-num_steps // _STEPS_PER_SEGMENT)
    segment = -(-num_steps // num_segments)  # the last one may go beyond num_steps, unrecorded

    def train(replica: PyTree, active: Bool[Array, ""]) -> Outcome:
        run = assemble(replica)
        loop, carries = make_loop(run.step_fn, run.probes), init_carries(run.probes, run.state)
        every = {name: described(run)[name][1] for name in variables}
        _, _, shapes = jax.eval_shape(lambda state: loop(state, carries, 1), run.state)
        memory = {
            "final": lambda: {name: _nan(shapes[name].shape[1:], shapes[name].dtype) for name in variables},
            "last_cycle": lambda: {name: _empty_summary(shapes[name]) for name in variables},
            "series": lambda: {},
        }[record]()
        nothing = {name: _nan((segment, *shapes[name].shape[1:]), shapes[name].dtype) for name in variables}

        def advance(first, state, carries, memory):
            # the step does not come from the carry: it is one number for all replicas, so that probes cost
            # nothing between their measurements where replicas are vectorised, too
            state, carries, series = loop(state._replace(step=first), carries, segment)
            steps = first + jnp.arange(segment, dtype=first.dtype)
            broken = ~jnp.isfinite(series["loss"]) & (steps < num_steps)
            diverged_step = jnp.where(jnp.any(broken), first + jnp.argmax(broken).astype(first.dtype), -1)
            for name in memory:
                due = (steps < num_steps) & (steps % every[name] == 0)
                if record == "final":
                    last = (num_steps - 1) // every[name] * every[name]
                    row = series[name][jnp.clip(last - first, 0, segment - 1)]
                    inside = (first <= last) & (last < first + segment)
                    memory = memory | {name: jnp.where(inside, row, memory[name])}
                else:
                    due &= steps >= num_steps - run.cycle
                    memory = memory | {name: _summarize(memory[name], series[name], due)}
            kept = {name: series[name] for name in variables} if record == "series" else {}
            return (state._replace(step=jnp.zeros_like(first)), carries, memory, diverged_step), kept

        def body(carry, first):
            state, carries, memory, diverged_step = carry
            skipped = carry, nothing if record == "series" else {}
            running = active & (diverged_step < 0)
            if vectorized:  # a branch of which the condition differs makes all that it takes differ
                gone = advance(first, state, carries, memory)
                return jax.tree.map(lambda new, old: jnp.where(running, new, old), gone, skipped)
            return lax.cond(running, lambda: advance(first, state, carries, memory), lambda: skipped)

        firsts = jnp.arange(num_segments, dtype=run.state.step.dtype) * segment
        carry = (run.state, carries, memory, jnp.full_like(run.state.step, -1))
        (_, _, memory, diverged_step), kept = lax.scan(body, carry, firsts)
        if record == "last_cycle":
            memory = _finish(memory)
        for name, rows in kept.items():
            memory[name] = rows.reshape(-1, *rows.shape[2:])[: num_steps : every[name]]
        finite = diverged_step < 0
        return Outcome({name: jnp.where(finite, v, jnp.nan) for name, v in memory.items()}, diverged_step)

    @jax.jit
    def ensemble(replicas: PyTree, active: Bool[Array, " replicas"]) -> Outcome:
        if vectorized:
            return jax.vmap(train)(replicas, active)
        return lax.map(lambda replica: train(*replica), (replicas, active))

    return ensemble


def is_vectorized() -> bool:
    """Return whether replicas are vectorised on the default device, not mapped."""
    return jax.default_backend() != "cpu"


def spread(replicas: PyTree) -> PyTree:
    """Spread the leading axis of all arrays over the devices, whose number divides it.

    >>> jax.tree.leaves(spread({"x": jnp.ones((8, 2))}))[0].shape
    (8, 2)
    """
    mesh = Mesh(jax.devices(), ("replica",))
    return jax.device_put(replicas, NamedSharding(mesh, PartitionSpec("replica")))


def _nan(shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.full(shape, jnp.nan, dtype)


def _empty_summary(rows: jax.ShapeDtypeStruct) -> dict[str, Array]:
    shape, dtype = rows.shape[1:], rows.dtype
    zero, most = jnp.zeros(shape, dtype), jnp.full(shape, jnp.inf, dtype)
    return {"sum": zero, "num": zero, "min": most, "max": -most}


def _summarize(summary: dict[str, Array], rows: Array, due: Array) -> dict[str, Array]:
    """Add the rows that are `due` and measured to a summary."""
    counted = due.reshape(-1, *[1] * (rows.ndim - 1)) & ~jnp.isnan(rows)
    return {
        "sum": summary["sum"] + jnp.sum(jnp.where(counted, rows, 0), axis=0),
        "num": summary["num"] + jnp.sum(counted, axis=0, dtype=rows.dtype),
        "min": jnp.minimum(summary["min"], jnp.min(jnp.where(counted, rows, jnp.inf), axis=0)),
        "max": jnp.maximum(summary["max"], jnp.max(jnp.where(counted, rows, -jnp.inf), axis=0)),
    }


def _finish(memory: dict[str, dict[str, Array]]) -> dict[str, Array]:
    found = {}
    for name, summary in memory.items():
        measured = summary["num"] > 0
        found[f"{name}_mean"] = summary["sum"] / summary["num"]
        found[f"{name}_min"] = jnp.where(measured, summary["min"], jnp.nan)
        found[f"{name}_max"] = jnp.where(measured, summary["max"], jnp.nan)
    return found
