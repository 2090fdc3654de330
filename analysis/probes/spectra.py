"""Probes of spectra, of the kernel, and of the accuracy on the test set."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.ntk import empirical_ntk
from analysis.probes.checks import check_positive, check_tol
from dlf.losses import accuracy
from dlf.types import Probe, Problem, TrainState, Variable


def hessian(problem: Problem, every: int, num: int, tol: float) -> Probe:
    """Measure the `num` largest eigenvalues of the Hessian of the dynamical loss at its step.

    Each measurement is a cold start with a key of its own step, so the probe has no memory.
    Residuals are |H u - value u|; `tol` is relative to the largest |value|.

    Raises ValueError for `every` or `num` below 1 or `tol` not positive.
    """
    check_positive(every=every, num=num)
    check_tol(tol)

    def measure(carry, state: TrainState):
        batch = problem.batch_fn(state.step)
        matvec = operators.hessian(problem.loss_fn, state.params, batch, state.step)
        key = jax.random.fold_in(problem.key, state.step)
        pairs = top_eigenpairs(matvec, like=state.params, num=num, tol=tol, key=key)
        return carry, {
            "hessian_eigenvalues": pairs.values,
            "hessian_residuals": pairs.residuals,
            "hessian_converged": pairs.converged.astype(pairs.values.dtype),
        }

    variables = {
        "hessian_eigenvalues": Variable(("rank",), "nat", "largest Hessian eigenvalues of F"),
        "hessian_residuals": Variable(("rank",), "nat", "|H u - value u| of the Hessian eigenpairs"),
        "hessian_converged": Variable((), "1", "1 if all residuals are below the tolerance, else 0"),
    }
    return Probe(every, lambda state: (), measure, variables)


def ntk(problem: Problem, every: int, num: int, num_examples: int) -> Probe:
    """Measure the `num` largest eigenvalues of the empirical NTK on the first examples.

    The kernel is traced over the logits and divided by their number.

    Raises ValueError for `every` or `num` below 1, `num` above `num_examples`, or `num_examples`
    above the size of the batch.
    """
    check_positive(every=every, num=num)
    if num > num_examples:
        raise ValueError(f"num_examples must be at least num={num}, got {num_examples}")

    def measure(carry, state: TrainState):
        inputs = problem.batch_fn(state.step).inputs
        if num_examples > len(inputs):
            raise ValueError(f"num_examples must be at most {len(inputs)}, got {num_examples}")
        kernel = empirical_ntk(problem.apply_fn, state.params, inputs[:num_examples])
        # The singular values of a positive semi-definite matrix are its eigenvalues, at half the
        # cost: XLA's symmetric solver computes the vectors too.
        return carry, {"ntk_eigenvalues": jnp.linalg.svd(kernel, compute_uv=False)[:num]}

    variables = {"ntk_eigenvalues": Variable(("rank",), "1", "largest eigenvalues of the NTK")}
    return Probe(every, lambda state: (), measure, variables)


def kernel(problem: Problem, every: int, num_examples: int) -> Probe:
    """Measure the empirical NTK itself on examples spread evenly over the batch (see `evenly`).

    Traced over the logits and divided by their number, so every pair of examples has one value.

    Raises ValueError for `every` or `num_examples` below 1, or `num_examples` above the size of the batch.
    """
    check_positive(every=every, num_examples=num_examples)

    def measure(carry, state: TrainState):
        inputs = evenly(problem.batch_fn(state.step).inputs, num_examples)
        return carry, {"empirical_ntk": empirical_ntk(problem.apply_fn, state.params, inputs)}

    variables = {"empirical_ntk": Variable(("example", "other_example"), "1", "empirical NTK")}
    return Probe(every, lambda state: (), measure, variables)


def evenly(inputs: Float[Array, "examples ..."], num_examples: int) -> Float[Array, "num_examples ..."]:
    """Return `num_examples` of the inputs, spread evenly from the first on: number k is floor(k P / num).

    Raises ValueError for more than there are.

    >>> evenly(jnp.arange(8.0), 5).tolist()
    [0.0, 1.0, 3.0, 4.0, 6.0]
    """
    if num_examples > len(inputs):
        raise ValueError(f"num_examples must be at most {len(inputs)}, got {num_examples}")
    return inputs[np.arange(num_examples) * len(inputs) // num_examples]


def validation(problem: Problem, every: int) -> Probe:
    """Measure the accuracy on the test set.

    Raises ValueError for `every` below 1.
    """
    check_positive(every=every)

    def measure(carry, state: TrainState):
        logits = problem.apply_fn(state.params, problem.test.inputs)
        return carry, {"validation_accuracy": accuracy(logits, problem.test.labels)}

    variables = {"validation_accuracy": Variable((), "1", "validation accuracy")}
    return Probe(every, lambda state: (), measure, variables)
