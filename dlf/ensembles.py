"""Many runs in one compiled program: mapped one after another on CPU, vectorised elsewhere.

On CPU the runs of a small network are no faster side by side than one after another, and mapped each
has the bits of its single run. On accelerators they are vectorised and spread over all devices.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from dlf.recording import StepFn, missing
from dlf.train import init_carries, make_loop
from dlf.types import Probe, Series, TrainState

RECORDS = ("final", "series")
_STEPS_PER_SEGMENT = 1_000  # a replica that diverged is noticed at the end of its segment


class Run(NamedTuple):
    """One training run as functions and a first state, whose arrays may be traced."""

    state: TrainState
    step_fn: StepFn
    probes: Mapping[str, Probe]


class Outcome(NamedTuple):
    """What was recorded of each replica: NaN for one that diverged, or was not active."""

    values: dict[str, Array]  # [replicas, *row] or, for series, [replicas, rows, *row]
    diverged_step: Int[Array, " replicas"]  # first step whose loss is not finite, -1 without one


def make_ensemble(
    assemble: Callable[..., Run],
    num_steps: int,
    record: str,
    series: Mapping[str, Series],
    vectorized: bool | None = None,
) -> Callable[..., Outcome]:
    """Return a compiled program that trains many replicas: (replicas, active, *shared) -> Outcome.

    `assemble(replica, *shared)` turns the arrays of one replica, a slice of the pytree `replicas` along the
    leading axes, into a run; what all have in common, such as their data, is `shared` and exists once.
    `record` says what to keep of `series`: "final", the last measurement in `num_steps` steps, or "series",
    all that was measured. A replica whose loss is not finite is frozen, and costs nothing more where replicas
    are mapped; so does one that is not active. They are mapped on CPU and vectorised elsewhere, unless
    `vectorized` says otherwise.

    >>> import optax
    >>> from dlf.recording import step_series
    >>> from dlf.train import init_state, make_step
    >>> def assemble(learning_rate):
    ...     sgd = optax.sgd(learning_rate)
    ...     step_fn = make_step(lambda w, batch, step: w**2, lambda step: None, sgd)
    ...     return Run(init_state(jnp.asarray(1.0), sgd), step_fn, {})
    >>> run = assemble(0.25)
    >>> ensemble = make_ensemble(assemble, 300, "final", step_series(run.step_fn, run.state))
    >>> outcome = ensemble(jnp.asarray([0.25, 2.0]), jnp.ones(2) > 0)
    >>> outcome.values["loss"].tolist(), outcome.diverged_step.tolist()
    ([0.0, nan], [-1, 41])
    """
    vectorized = is_vectorized() if vectorized is None else vectorized
    num_segments = -(-num_steps // _STEPS_PER_SEGMENT)
    segment = -(-num_steps // num_segments)  # the last one may go beyond num_steps, unrecorded
    rows = (segment,) if record == "series" else ()
    nothing = {name: (*rows, *of.shape) for name, of in series.items()}

    def train(replica: PyTree, active: Bool[Array, ""], shared: tuple[PyTree, ...]) -> Outcome:
        run = assemble(replica, *shared)
        loop, carries = make_loop(run.step_fn, run.probes), init_carries(run.probes, run.state)
        empty = {name: missing(shape, series[name].dtype) for name, shape in nothing.items()}

        def advance(first, state, carries, memory):
            # the step does not come from the carry: it is one number for all replicas, so that probes cost
            # nothing between their measurements where replicas are vectorised, too
            state, carries, measured = loop(state._replace(step=first), carries, segment)
            steps = first + jnp.arange(segment, dtype=first.dtype)
            broken = ~jnp.isfinite(measured["loss"]) & (steps < num_steps)
            diverged_step = jnp.where(jnp.any(broken), first + jnp.argmax(broken).astype(first.dtype), -1)
            for name in memory:
                last = (num_steps - 1) // series[name].every * series[name].every
                row = measured[name][jnp.clip(last - first, 0, segment - 1)]
                inside = (first <= last) & (last < first + segment)
                memory = memory | {name: jnp.where(inside, row, memory[name])}
            kept = {name: measured[name] for name in series} if record == "series" else {}
            return (state._replace(step=jnp.zeros_like(first)), carries, memory, diverged_step), kept

        def body(carry, first):
            state, carries, memory, diverged_step = carry
            skipped = carry, empty if record == "series" else {}
            running = active & (diverged_step < 0)
            if vectorized:  # a branch of which the condition differs makes all that it takes differ
                gone = advance(first, state, carries, memory)
                return jax.tree.map(lambda new, old: jnp.where(running, new, old), gone, skipped)
            return lax.cond(running, lambda: advance(first, state, carries, memory), lambda: skipped)

        firsts = jnp.arange(num_segments, dtype=run.state.step.dtype) * segment
        memory = empty if record == "final" else {}
        carry = (run.state, carries, memory, jnp.full_like(run.state.step, -1))
        (_, _, found, diverged_step), kept = lax.scan(body, carry, firsts)
        for name, of_segments in kept.items():
            whole = of_segments.reshape(-1, *series[name].shape)
            found[name] = whole[: num_steps : series[name].every]
        finite = diverged_step < 0
        return Outcome(
            {name: jnp.where(finite, v, missing((), v.dtype)) for name, v in found.items()}, diverged_step
        )

    @jax.jit
    def ensemble(replicas: PyTree, active: Bool[Array, " replicas"], *shared: PyTree) -> Outcome:
        if vectorized:
            return jax.vmap(train, in_axes=(0, 0, None))(replicas, active, shared)
        return lax.map(lambda replica: train(*replica, shared), (replicas, active))

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
