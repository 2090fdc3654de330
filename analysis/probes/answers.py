"""A probe of the answers that a network of several outputs gives to every example of its test sets."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from analysis.probes.measures import check_settings
from dlf import outputs
from dlf.models import apply_fn
from dlf.types import Batch, Probe, Problem, Series, TrainState

__all__ = ["answers"]

CRITERIA = {
    "within_tenth": "1 where every output is within .1 of its target",
    "right_side": "1 where every output is on its target's side of .5",
    "best_match": "1 where the nearest answer is the right one",
    "squared_error": "squared error, sum over outputs",
    "answer": "number of the nearest answer",
}


def known_answers(tests: Mapping[str, Batch]) -> Float[Array, "answers outputs"]:
    """Return the targets of all test sets, in the order of their names; some are there more than once."""
    return jnp.concatenate([tests[name].labels[:, 1:] for name in sorted(tests)])


def answers(problem: Problem, every: int, criteria: tuple[str, ...], sets: tuple[str, ...]) -> Probe:
    """Measure by some of the `CRITERIA` every example of some test sets: `<set>_<criterion>` [example].

    The nearest answer is one of `known_answers`.

    Raises ValueError for a criterion or a test set that there is not, and labels of other kinds.
    """
    check_settings(every=every)
    for given, known, what in ((criteria, CRITERIA, "criteria"), (sets, problem.tests, "sets")):
        if not given or (wrong := [name for name in given if name not in known]):
            raise ValueError(f"unknown {what} {wrong if given else given}: of {', '.join(known)}")
        if len({*given}) < len(given):
            raise ValueError(f"{what} must be different, got {given}")
    if any(of.labels.ndim != 2 for of in problem.tests.values()):
        raise ValueError("answers needs labels with a target for each output: see dlf.data.facts")
    known = known_answers(problem.tests)

    def measure(carry, state: TrainState):
        rows = {}
        for name in sets:
            inputs, labels = problem.tests[name]
            found = apply_fn(problem.model, state.model_state)(state.params, inputs)
            answer = outputs.nearest(found, known)
            match = jnp.all(known[jnp.nan_to_num(answer).astype(int)] == labels[:, 1:], axis=1)
            of = {
                "within_tenth": outputs.within_tenth(found, labels),
                "right_side": outputs.right_side(found, labels),
                "best_match": jnp.where(jnp.isnan(answer), answer, match.astype(answer.dtype)),
                "squared_error": outputs.errors(found, labels),
                "answer": answer,
            }
            rows |= {f"{name}_{criterion}": of[criterion] for criterion in criteria}
        return carry, rows

    series = {
        f"{name}_{criterion}": Series((f"{name}_example",), "1", f"{name}: {CRITERIA[criterion]}")
        for name in sets
        for criterion in criteria
    }
    return Probe(every, lambda state: (), measure, series)
