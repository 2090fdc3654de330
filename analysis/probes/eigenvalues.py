"""Probes that follow eigenvalues along training, and foresee them; settings are checked as in `measures`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from analysis import operators
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import preconditioned
from analysis.probes.measures import check_parts, check_settings
from analysis.stability import preconditioner, threshold
from analysis.tracking import class_subspace, gaps, gauss_newton_curvature, identify, split_change
from dlf.losses import make_class_losses, make_loss
from dlf.optimizers import rate_of
from dlf.recording import missing
from dlf.train import frozen, loss_of
from dlf.types import Params, Probe, Problem, Series, TrainState

__all__ = ["forecast", "tracker"]

AUDIT_EVERY = 10  # measurements
_KEPT = 0.75  # of the threshold


class Memory(NamedTuple):
    """What the tracker remembers of its last measurement: NaN and zeros before the first."""

    values: Float[Array, " num"]
    vectors: Params  # with a leading axis of length num
    identities: Int[Array, " num"]
    next_identity: Int[Array, ""]
    class_curvatures: Float[Array, "num classes"]
    weights: Float[Array, " classes"]


def tracker(problem: Problem, every: int, num: int, tol: float, batch_size: int | None = None) -> Probe:
    """Follow the `num` largest eigenvalues of the Hessian of the dynamical loss, and say what moves them.

    For RMSProp and Adam the preconditioned Hessian, whose threshold is known. Each measurement starts warm
    from the last one's vectors, with at least 8 products; every tenth is searched once more cold, from a
    random vector, and the better of the two is taken: `tracked_audit` is by what the eigenvalue in which they
    differ most is larger when searched cold, relative to the first. All pairs are stored; `tracked_kept`
    marks those above 0.75 of the threshold, and the first; if it marks the last, there may be more. A pair
    keeps its identity, a number, as long as its vector keeps more than half of its squared length along the
    one before; the rank in which it stands may change, which is a crossing. Each is split by class, into
    Gauss-Newton and residual part, and its change since the last measurement into "the loss moved" and "the
    network moved" (`analysis.tracking.split_change`). Let `every` be even, so that in a two-cycle both lie on
    one branch; there the change is that of this branch, which the mean of two steps need not share. With a
    `batch_size` the training set is taken in parts of that size.

    Raises ValueError for `num` below 2 (a gap needs two), or an optimizer without a formula.
    """
    check_settings(tol, every=every)
    if type(num) is not int or num < 2:
        raise ValueError(f"num must be a whole number of at least 2, since a gap needs two, got {num}")
    check_parts(problem, batch_size)
    optimizer = problem.optimizer.settings
    threshold(**optimizer, step=jnp.zeros((), jnp.int32))
    logits_loss = make_loss(lambda logits, inputs: logits, problem.weighted_loss, problem.schedule)

    def init(state: TrainState) -> Memory:
        vectors = jax.tree.map(lambda leaf: jnp.zeros((num, *leaf.shape), leaf.dtype), state.params)
        weights = problem.schedule(state.step)
        nothing = missing((num,), weights.dtype)
        curvatures = missing((num, len(weights)), weights.dtype)
        none = jnp.full(num, -1, state.step.dtype)
        return Memory(nothing, vectors, none, jnp.zeros_like(state.step), curvatures, weights)

    def measure(memory: Memory, state: TrainState):
        apply_fn, weights = frozen(problem, state), problem.schedule(state.step)
        at = state.params, problem.train
        matvec = operators.hessian(loss_of(problem, state), *at, state.step, batch_size=batch_size)
        class_losses = make_class_losses(apply_fn, problem.weighted_loss, len(weights))
        scale = preconditioner(state.opt_state, **optimizer)
        if scale is not None:
            matvec = preconditioned(matvec, scale)
        audit = (state.step // every) % AUDIT_EVERY == AUDIT_EVERY - 1
        pairs, excess, num_matvecs = _search(matvec, memory.vectors, state, num, tol, audit, problem.key)
        identity = identify(memory.vectors, pairs.vectors)
        vectors = jax.vmap(lambda s, u: jax.tree.map(lambda leaf: leaf * s, u))(identity.sign, pairs.vectors)

        def parts(vector):
            if scale is not None:
                vector = jax.tree.map(lambda x, p: x / jnp.sqrt(p), vector, scale)
            of_classes = operators.class_curvatures(class_losses, *at, vector, batch_size=batch_size)
            args = apply_fn, logits_loss, *at, state.step, vector
            return of_classes, gauss_newton_curvature(*args, batch_size=batch_size)

        curvatures, gauss_newton = jax.lax.map(parts, vectors)
        newcomers = identity.previous < 0
        fresh = memory.next_identity + jnp.cumsum(newcomers, dtype=memory.next_identity.dtype) - 1
        identities = jnp.where(newcomers, fresh, memory.identities[identity.previous])
        moved = split_change(
            memory.values, pairs.values, memory.class_curvatures, curvatures, weights - memory.weights,
            identity.previous, pairs.residuals,
        )  # fmt: skip
        rate = rate_of(problem.optimizer, state.opt_state, state.step)
        bound = threshold(**{**optimizer, "learning_rate": rate}, step=state.step)
        kept = (pairs.values > _KEPT * bound) | (jnp.arange(num) == 0)
        real = pairs.values.dtype
        gap = missing((), real)
        rows = {
            "tracked_eigenvalues": pairs.values,
            "tracked_residuals": pairs.residuals,
            "tracked_kept": kept.astype(real),
            "tracked_identity": identities.astype(real),
            "tracked_overlap": jnp.where(jnp.all(memory.identities < 0), gap, identity.overlap),
            "tracked_crossing": identity.crossing.astype(real),
            "tracked_gap": gaps(pairs.values),
            "tracked_classes": weights[None] * curvatures,
            "tracked_gauss_newton": gauss_newton,
            "tracked_residual_part": curvatures @ weights - gauss_newton,
            "loss_moved": moved.loss_moved,
            "network_moved": moved.network_moved,
            "split_valid": moved.valid.astype(real),
            "tracked_threshold": jnp.asarray(bound, real),
            "tracked_converged": pairs.converged.astype(real),
            "tracked_matvecs": num_matvecs.astype(real),
            "tracked_audit": excess,
        }
        next_identity = memory.next_identity + jnp.sum(newcomers, dtype=memory.next_identity.dtype)
        return Memory(pairs.values, vectors, identities, next_identity, curvatures, weights), rows

    return Probe(every, init, measure, _TRACKED)


def _search(matvec, start, state, num, tol, audit, key):
    """Return the pairs found warm or, at an audit, the better of warm and cold; its excess; the products."""
    key = jax.random.fold_in(key, state.step)
    warm = top_eigenpairs(matvec, state.params, num=num, tol=tol, start=start, key=key)

    def again(_, found):
        best, _, num_matvecs = found
        cold = top_eigenpairs(matvec, state.params, num=num, tol=tol, key=jax.random.fold_in(key, 1))
        more = cold.values - best.values
        better = (jnp.sum(more) > 0) | jnp.isnan(best.values[0])
        taken = jax.tree.map(lambda a, b: jnp.where(better, a, b), cold, best)
        excess = more[jnp.argmax(jnp.abs(more))] / jnp.abs(best.values[0])
        return taken, excess, num_matvecs + cold.num_matvecs

    # a loop of one or no turn: a branch would not let go of the carries of the search inside
    found = warm, missing((), warm.values.dtype), warm.num_matvecs
    return jax.lax.fori_loop(0, audit.astype(state.step.dtype), again, found)


_TRACKED = {
    "tracked_eigenvalues": Series(("rank",), "nat", "largest (preconditioned) Hessian eigenvalues of F"),
    "tracked_residuals": Series(("rank",), "nat", "|H u - value u| of the tracked eigenpairs"),
    "tracked_kept": Series(("rank",), "1", "1 above 0.75 of the threshold, else 0"),
    "tracked_identity": Series(("rank",), "1", "number of the eigenvector, kept while it turns slowly"),
    "tracked_overlap": Series(("rank",), "1", "|u . u before|, the largest over those before"),
    "tracked_crossing": Series(("rank",), "1", "1 where the eigenvector had another rank before, else 0"),
    "tracked_gap": Series(("rank",), "nat", "distance to the nearest other tracked eigenvalue"),
    "tracked_classes": Series(("rank", "class"), "nat", "Gamma_c u . H_c u"),
    "tracked_gauss_newton": Series(("rank",), "nat", "u . G u"),
    "tracked_residual_part": Series(("rank",), "nat", "u . R u = u . H u - u . G u"),
    "loss_moved": Series(("rank",), "nat", "change of the eigenvalue since before: the loss moved"),
    "network_moved": Series(("rank",), "nat", "change of the eigenvalue since before: the network moved"),
    "split_valid": Series(("rank",), "1", "1 where the split may be trusted, else 0"),
    "tracked_threshold": Series((), "nat", "threshold of the optimizer"),
    "tracked_converged": Series((), "1", "1 if all residuals are below the tolerance, else 0"),
    "tracked_matvecs": Series((), "1", "products with the Hessian"),
    "tracked_audit": Series(
        (), "1", "largest difference of cold and warm eigenvalues, relative to the first, at audits"
    ),
}


def forecast(
    problem: Problem,
    every: int,
    num: int,
    tol: float,
    batch_size: int | None = None,
    examples_per_class: int | None = None,
) -> Probe:
    """Measure what foretells the sharpness at frozen parameters: small Hessians of all classes.

    `forecast_matrices` [class, basis, basis] in the space of the `num` top eigenvectors of each class; with
    the class weights of a later step `analysis.tracking.forecast` gives its sharpness, from below. Of each
    class `examples_per_class` are looked at, the first ones, or all.
    """
    at_most = {} if examples_per_class is None else {"examples_per_class": examples_per_class}
    check_settings(tol, every=every, num=num, **at_most)
    check_parts(problem, batch_size)

    def measure(carry, state: TrainState):
        num_classes = len(problem.schedule(state.step))
        class_losses = make_class_losses(frozen(problem, state), problem.weighted_loss, num_classes)
        settings = dict(num=num, tol=tol, batch_size=batch_size, **at_most)
        key = jax.random.fold_in(problem.key, state.step)
        matrices = class_subspace(class_losses, state.params, problem.train, **settings, key=key)
        return carry, {"forecast_matrices": matrices}

    dims = ("class", "basis", "other_basis")
    series = {"forecast_matrices": Series(dims, "nat", "Hessians of the classes in a common basis")}
    return Probe(every, lambda state: (), measure, series)
