"""Dynamical loss functions: F(params, batch, step) with the step as an argument.

`__all__` is the catalogue that a config names a loss from. Each entry maps (logits, labels,
weights) to unreduced losses [examples] and is linear in the weights; weights of one give the
ordinary loss. Linearity carries over to every derivative: the Hessian is sum_i Gamma_i(t) H_i.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlf.types import ApplyFn, Batch, Labels, Logits, Losses, LossFn, WeightedLoss, Weights, WeightSchedule

__all__ = ["cross_entropy", "dmse1", "dmse2"]


def _one_hot(logits: Logits, labels: Labels) -> Logits:
    return jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)


def cross_entropy(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh each example's cross-entropy by its class.

        l_j = -Gamma_{y_j} log softmax(f(x_j))_{y_j}        in nats, raw logits f

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793), the dynamical cross-entropy.

    >>> logits = jnp.zeros((2, 3))
    >>> labels = jnp.asarray([0, 1])
    >>> [round(float(l), 4) for l in cross_entropy(logits, labels, jnp.asarray([2.0, 0.5, 0.5]))]
    [2.1972, 0.5493]
    """
    # A product with one-hot rows, not a gather: its gradient is a product too, not a scatter.
    # Classes lead, so that on CPU the sums over the few classes run along the examples.
    weighted = _one_hot(logits, labels).T * weights[:, None]
    return -jnp.sum(weighted * jax.nn.log_softmax(logits.T, axis=0), axis=0)


def dmse1(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh each example's squared error by its class.

        l_j = Gamma_{y_j} sum_i (f_i(x_j) - delta_{i, y_j})^2

    Source: name and properties from Ruiz-Garcia et al. 2024 (arXiv 2410.10690); the formula is ours.

    >>> dmse1(jnp.zeros((1, 2)), jnp.asarray([1]), jnp.asarray([0.5, 1.5])).tolist()
    [1.5]
    """
    one_hot = _one_hot(logits, labels)
    return jnp.sum(one_hot * weights[None, :], axis=1) * jnp.sum((logits - one_hot) ** 2, axis=1)


def dmse2(logits: Logits, labels: Labels, weights: Weights) -> Losses:
    """Weigh the squared error of each output unit.

        l_j = sum_i Gamma_i (f_i(x_j) - delta_{i, y_j})^2

    Source: name and properties from Ruiz-Garcia et al. 2024 (arXiv 2410.10690); the formula is ours.

    >>> dmse2(jnp.ones((1, 2)), jnp.asarray([1]), jnp.asarray([0.5, 1.5])).tolist()
    [0.5]
    """
    return jnp.sum(weights[None, :] * (logits - _one_hot(logits, labels)) ** 2, axis=1)


def make_loss(apply_fn: ApplyFn, weighted_loss: WeightedLoss, schedule: WeightSchedule) -> LossFn:
    """Return the dynamical loss F(params, batch, step), a scalar.

        F(theta, t) = (1/P) sum_j l(f(x_j; theta), y_j, Gamma(t))        mean over P examples

    The step is an argument, so that gradient and Hessian at frozen time are one compiled function.

    >>> from dlf.schedules import triangular
    >>> F = make_loss(lambda w, x: x @ w, cross_entropy, triangular(2, amplitude=3.0, period=4))
    >>> batch = Batch(jnp.ones((1, 1)), jnp.asarray([0]))
    >>> [round(float(F(jnp.zeros((1, 2)), batch, jnp.asarray(t))), 4) for t in (0, 2, 6)]
    [0.6931, 1.0397, 0.3466]
    """

    def loss_fn(params, batch: Batch, step):
        logits = apply_fn(params, batch.inputs)
        weights = schedule(step).astype(logits.dtype)
        return jnp.mean(weighted_loss(logits, batch.labels, weights))

    return loss_fn


def make_class_losses(apply_fn: ApplyFn, weighted_loss: WeightedLoss, num_classes=None):
    """Return (params, batch) -> class losses [classes], so that F = Gamma(step) . l.

        l_c = dF/dGamma_c        with the factor 1/P of F, so the sum over c is the static loss

    >>> l = make_class_losses(lambda w, x: x @ w, cross_entropy)
    >>> batch = Batch(jnp.ones((4, 1)), jnp.asarray([0, 0, 0, 1]))
    >>> [round(float(c), 4) for c in l(jnp.zeros((1, 2)), batch)]
    [0.5199, 0.1733]
    """

    def class_losses(params, batch: Batch):
        logits = apply_fn(params, batch.inputs)
        units = jnp.eye(logits.shape[1], dtype=logits.dtype)
        return jax.vmap(lambda e: jnp.mean(weighted_loss(logits, batch.labels, e)))(units)

    return class_losses


def accuracy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Return the fraction of examples whose largest logit is that of their label.

    >>> float(accuracy(jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), jnp.asarray([0, 1])))
    0.5
    """
    return jnp.mean(jnp.argmax(logits, axis=1) == labels, dtype=logits.dtype)


def rightness_of(weighted_loss):
    return lambda logits, labels: (jnp.argmax(logits, axis=1) == labels).astype(logits.dtype)
