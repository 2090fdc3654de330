"""Probes of stability: how near to the threshold, and how fast tangents grow."""

import jax
import jax.numpy as jnp

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.probes.checks import check_positive, check_tol
from analysis.stability import effective_hessian, first_tangents, log_growth, threshold
from dlf.types import Probe, Problem, TrainState, Variable


def stability(problem: Problem, every: int, tol: float) -> Probe:
    """Measure the stability ratio, the mean over two consecutive steps of sharpness over threshold.

        ratio = (lambda_eff(t) / threshold(t) + lambda_eff(t + 1) / threshold(t + 1)) / 2

    lambda_eff is the largest eigenvalue of the Hessian, for RMSProp and Adam of the preconditioned one; in
    a two-cycle it alternates from step to step, hence the mean. Not measured (NaN) before Adam's first
    update. Costs two cold eigenvalues and one training step a measurement.

    Raises ValueError for `every` below 1, `tol` not positive, or an optimizer without a formula.
    """
    check_positive(every=every)
    check_tol(tol)
    threshold(**problem.optimizer, step=jnp.zeros((), jnp.int32))

    def ratio(state: TrainState):
        batch = problem.batch_fn(state.step)
        matvec = operators.hessian(problem.loss_fn, state.params, batch, state.step)
        matvec = effective_hessian(matvec, state.opt_state, **problem.optimizer)
        key = jax.random.fold_in(problem.key, state.step)
        pairs = top_eigenpairs(matvec, like=state.params, num=1, tol=tol, key=key)
        return pairs.values[0], pairs.values[0] / threshold(**problem.optimizer, step=state.step)

    def measure(carry, state: TrainState):
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), state, problem.advance(state))
        sharpness, ratios = jax.lax.map(ratio, both)
        return carry, {"sharpness": jnp.mean(sharpness), "stability_ratio": jnp.mean(ratios)}

    variables = {
        "sharpness": Variable((), "nat", "largest (preconditioned) Hessian eigenvalue, mean of two steps"),
        "stability_ratio": Variable((), "1", "sharpness over the optimizer's threshold, mean of two steps"),
    }
    return Probe(every, lambda state: (), measure, variables)


def lyapunov(problem: Problem, num: int) -> Probe:
    """Measure the growth of `num` tangents of the training step at every step, the leading one first.

    Means over steps are finite-time Lyapunov exponents, in nat a step; see
    `analysis.stability.log_growth`. The tangents are this probe's memory.

    Raises ValueError for `num` below 1.
    """
    check_positive(num=num)

    def measure(tangents, state: TrainState):
        tangents, growth = log_growth(problem.advance, state, tangents)
        return tangents, {"log_growth": growth}

    variables = {"log_growth": Variable(("tangent",), "nat", "growth of tangents in one step")}
    return Probe(1, lambda state: first_tangents(state, num, key=problem.key), measure, variables)
