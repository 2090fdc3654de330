"""The probe that a cap on the learning rate reads: cheap enough to be taken every few steps."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from analysis.linear_maps import precise, preconditioned
from analysis.probes.measures import check_settings
from analysis.stability import preconditioner
from dlf.derivatives import hvp
from dlf.optimizers import threshold_of
from dlf.recording import missing
from dlf.train import make_objective
from dlf.types import Params, Probe, Problem, Series, TrainState

__all__ = ["step_sharpness"]

_MOST_ROUNDS = 20


def step_sharpness(problem: Problem, every: int, tol: float = 0.05) -> Probe:
    """Follow the largest eigenvalue of the Hessian of what a step descends, on the batch of that step.

    The network is in training mode; for RMSProp and Adam the Hessian is the preconditioned one, whose
    threshold is known. Each measurement goes on from the vector H u of the last one; as long as
    |H u - value u| > tol value, at most 20 times, one product more gives the best vector in the plane of u
    and H u. What has not converged by then is missing. For `dlf.rules.cap`: an eigenvector may be overtaken
    unnoticed for a few measurements; `tracker` proves what it finds.
    """
    check_settings(tol, every=every)
    objective, settings = make_objective(problem), problem.optimizer.settings
    has_formula = threshold_of(settings) is not None

    def init(state: TrainState) -> Float[Array, " size"]:
        flat, _ = ravel_pytree(state.params)
        vector = jax.random.normal(problem.key, flat.shape, flat.dtype)
        return vector / jnp.linalg.norm(vector)

    @precise
    def measure(start, state: TrainState):
        batch, (_, unravel) = problem.batch_fn(state.step), ravel_pytree(state.params)
        scale = preconditioner(state.opt_state, **settings) if has_formula else None

        def loss_fn(params: Params):
            return objective(params, state.model_state, batch, state.step)[0]

        def product(vector: Params) -> Params:
            return hvp(loss_fn, state.params, vector)

        matvec = product if scale is None else preconditioned(product, scale)

        def image_of(vector):
            return ravel_pytree(matvec(unravel(vector)))[0]

        def improved(carry):
            vector, image, _, _, rounds = carry
            return *_improved(image_of, vector, image), rounds + 1

        def unfinished(carry):
            _, _, value, residual, rounds = carry
            return (rounds < _MOST_ROUNDS) & (residual > tol * value)  # not where either is NaN

        image = image_of(start)
        value = start @ image
        first = start, image, value, jnp.linalg.norm(image - value * start), jnp.zeros_like(state.step)
        _, image, value, residual, _ = jax.lax.while_loop(unfinished, improved, first)
        rows = {"step_sharpness": jnp.where(residual <= tol * value, value, missing((), value.dtype))}
        size = jnp.linalg.norm(image)
        is_sound = jnp.isfinite(size) & (size > 0)
        return jnp.where(is_sound, image / jnp.where(is_sound, size, 1), start), rows

    words = "largest (preconditioned) Hessian eigenvalue of F on the batch of the step"
    return Probe(every, init, measure, {"step_sharpness": Series((), "nat", words)})


def _improved(matvec, u, image):
    """Return the best unit vector in the plane of u and H u, its image, Rayleigh quotient and residual."""
    along = u @ image
    rest = image - along * u
    size = jnp.linalg.norm(rest)
    w = rest / jnp.where(size > 0, size, 1)
    of_rest = matvec(w)
    lower = w @ of_rest
    value = (along + lower) / 2 + jnp.hypot((along - lower) / 2, size)
    parts = jnp.where(size > 0, jnp.stack([value - lower, size]), jnp.asarray([1.0, 0.0], u.dtype))
    parts = parts / jnp.linalg.norm(parts)
    value = jnp.where(size > 0, value, along)
    found, product = (parts[0] * a + parts[1] * b for a, b in ((u, w), (image, of_rest)))
    norm = jnp.linalg.norm(found)
    found, product = found / norm, product / norm
    return found, product, value, jnp.linalg.norm(product - value * found)
