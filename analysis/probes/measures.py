"""Probes of one state: spectra, the kernel, distance from the threshold, growth.

All raise ValueError for `every` or another count below 1, or `tol` not positive.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.ntk import empirical_ntk
from analysis.parts import check_batch_size, check_network
from analysis.stability import effective_hessian, first_tangents, log_growth, threshold
from dlf.models import apply_fn
from dlf.optimizers import rate_of
from dlf.recording import missing
from dlf.train import frozen, loss_of, problem_step
from dlf.types import Inputs, Probe, Problem, Series, TrainState

__all__ = ["hessian", "kernel", "lyapunov", "ntk", "stability"]


def check_settings(tol: float = 1.0, **counts: int) -> None:
    """Raise ValueError for a count that is not a whole number of at least 1, or a tolerance not positive."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")


def check_parts(problem: Problem, batch_size: int | None, num_examples: int | None = None) -> None:
    """Raise ValueError for an impossible size of parts, or a network that couples the examples of a part.

    It is tried at parameters drawn with the problem's key, unless data or key are traced.
    """
    inputs = problem.train.inputs
    check_batch_size(batch_size, num_examples or len(inputs))
    given = jax.tree.leaves((problem.train, problem.key))
    is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in given)
    if batch_size is not None and not is_traced:
        params, model_state = problem.model.init(problem.key, inputs[:1])
        check_network(apply_fn(problem.model, model_state), params, inputs)


def hessian(problem: Problem, every: int, num: int, tol: float, batch_size: int | None = None) -> Probe:
    """Measure the `num` largest eigenvalues of the Hessian of the dynamical loss at its step.

    Each measurement is a cold start with a key of its own step, so the probe has no memory.
    Residuals are |H u - value u|; `tol` is relative to the largest |value|. With a `batch_size` the training
    set is taken in parts of that size.
    """
    check_settings(tol, every=every, num=num)
    check_parts(problem, batch_size)

    def measure(carry, state: TrainState):
        at = state.params, problem.train, state.step
        matvec = operators.hessian(loss_of(problem, state), *at, batch_size=batch_size)
        key = jax.random.fold_in(problem.key, state.step)
        pairs = top_eigenpairs(matvec, like=state.params, num=num, tol=tol, key=key)
        return carry, {
            "hessian_eigenvalues": pairs.values,
            "hessian_residuals": pairs.residuals,
            "hessian_converged": pairs.converged.astype(pairs.values.dtype),
        }

    series = {
        "hessian_eigenvalues": Series(("rank",), "nat", "largest Hessian eigenvalues of F"),
        "hessian_residuals": Series(("rank",), "nat", "|H u - value u| of the Hessian eigenpairs"),
        "hessian_converged": Series((), "1", "1 if all residuals are below the tolerance, else 0"),
    }
    return Probe(every, lambda state: (), measure, series)


def ntk(problem: Problem, every: int, num: int, num_examples: int, batch_size: int | None = None) -> Probe:
    """Measure the `num` largest eigenvalues of the empirical NTK on the first examples.

    The kernel is traced over the logits and divided by their number. Raises ValueError for `num` above
    `num_examples`, or `num_examples` above the size of the training set. With a `batch_size` the kernel is
    filled in blocks of so many examples.
    """
    check_settings(every=every, num=num)
    if num > num_examples:
        raise ValueError(f"num_examples must be at least num={num}, got {num_examples}")
    inputs = problem.train.inputs
    if num_examples > len(inputs):
        raise ValueError(f"num_examples must be at most {len(inputs)}, got {num_examples}")
    check_parts(problem, batch_size, num_examples)

    def measure(carry, state: TrainState):
        settings = dict(batch_size=batch_size)
        kernel = empirical_ntk(frozen(problem, state), state.params, inputs[:num_examples], **settings)
        # The singular values of a positive semi-definite matrix are its eigenvalues, at half the
        # cost: XLA's symmetric solver computes the vectors too.
        return carry, {"ntk_eigenvalues": jnp.linalg.svd(kernel, compute_uv=False)[:num]}

    series = {"ntk_eigenvalues": Series(("rank",), "1", "largest eigenvalues of the NTK")}
    return Probe(every, lambda state: (), measure, series)


def kernel(problem: Problem, every: int, num_examples: int, batch_size: int | None = None) -> Probe:
    """Measure the empirical NTK itself on examples spread evenly over the training set (see `evenly`).

    Traced over the logits and divided by their number, so every pair of examples has one value. Raises
    ValueError for `num_examples` above the size of the training set. `batch_size` as in `ntk`.
    """
    check_settings(every=every, num_examples=num_examples)
    inputs = evenly(problem.train.inputs, num_examples)
    check_parts(problem, batch_size, num_examples)

    def measure(carry, state: TrainState):
        found = empirical_ntk(frozen(problem, state), state.params, inputs, batch_size=batch_size)
        return carry, {"empirical_ntk": found}

    series = {"empirical_ntk": Series(("example", "other_example"), "1", "empirical NTK")}
    return Probe(every, lambda state: (), measure, series)


def evenly(inputs: Inputs, num_examples: int) -> Real[Array, "num_examples ..."]:
    """Return `num_examples` of the inputs, spread evenly from the first on: number k is floor(k P / num).

    Raises ValueError for more than there are.

    >>> evenly(jnp.arange(8.0), 5).tolist()
    [0.0, 1.0, 3.0, 4.0, 6.0]
    """
    if num_examples > len(inputs):
        raise ValueError(f"num_examples must be at most {len(inputs)}, got {num_examples}")
    return inputs[np.arange(num_examples) * len(inputs) // num_examples]


def stability(problem: Problem, every: int, tol: float, batch_size: int | None = None) -> Probe:
    """Measure the stability ratio, the mean over two consecutive steps of sharpness over threshold.

        ratio = (lambda_eff(t) / threshold(t) + lambda_eff(t + 1) / threshold(t + 1)) / 2

    lambda_eff is the largest eigenvalue of the Hessian, for RMSProp and Adam of the preconditioned one; in a
    two-cycle it alternates, hence the mean. NaN before Adam's first update. Costs two cold eigenvalues and
    one training step a measurement. `batch_size` as in `hessian`. Raises ValueError for an optimizer without
    a formula.
    """
    check_settings(tol, every=every)
    check_parts(problem, batch_size)
    optimizer, step_fn = problem.optimizer.settings, problem_step(problem)
    threshold(**optimizer, step=jnp.zeros((), jnp.int32))

    def ratio(state: TrainState):
        at = state.params, problem.train, state.step
        matvec = operators.hessian(loss_of(problem, state), *at, batch_size=batch_size)
        matvec = effective_hessian(matvec, state.opt_state, **optimizer)
        key = jax.random.fold_in(problem.key, state.step)
        pairs = top_eigenpairs(matvec, like=state.params, num=1, tol=tol, key=key)
        rate = rate_of(problem.optimizer, state.opt_state, state.step)
        ratio = pairs.values[0] / threshold(**{**optimizer, "learning_rate": rate}, step=state.step)
        # before an update there is no preconditioner
        gap = missing((), ratio.dtype)
        return tuple(jnp.where(jnp.isnan(ratio), gap, x) for x in (pairs.values[0], ratio))

    def measure(carry, state: TrainState):
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), state, step_fn(state)[0])
        sharpness, ratios = jax.lax.map(ratio, both)
        return carry, {"sharpness": jnp.mean(sharpness), "stability_ratio": jnp.mean(ratios)}

    series = {
        "sharpness": Series((), "nat", "largest (preconditioned) Hessian eigenvalue, mean of two steps"),
        "stability_ratio": Series((), "1", "sharpness over the optimizer's threshold, mean of two steps"),
    }
    return Probe(every, lambda state: (), measure, series)


def lyapunov(problem: Problem, num: int) -> Probe:
    """Measure the growth of `num` tangents of the training step at every step, the leading one first.

    Means over steps are finite-time Lyapunov exponents, in nat a step; see `analysis.stability.log_growth`.
    The tangents are this probe's memory.
    """
    check_settings(num=num)
    step_fn = problem_step(problem)

    def measure(tangents, state: TrainState):
        tangents, growth = log_growth(lambda state: step_fn(state)[0], state, tangents)
        return tangents, {"log_growth": growth}

    series = {"log_growth": Series(("tangent",), "nat", "growth of tangents in one step")}
    return Probe(1, lambda state: first_tangents(state, num, key=problem.key), measure, series)
