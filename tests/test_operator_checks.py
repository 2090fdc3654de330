"""The self-check of operators: it passes what is right, kinks included, and names what is not."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis import operators
from analysis.linear_maps import check_operator
from dlf import data, losses, models, schedules

SCHEDULE = schedules.triangular(3, amplitude=70.0, period=40)


def network(activation, initialization, num_turns=0.5):
    """(params, loss of parameters and step, its products at a step) of a network on a spiral."""
    batch = data.spiral(examples_per_class=10, num_turns=num_turns).train
    model = models.mlp(3, (12,), activation, initialization, use_bias=True)
    params, _ = jax.jit(model.init)(jax.random.PRNGKey(0), batch.inputs)
    apply_fn = models.apply_fn(model)
    loss_fn = losses.make_loss(apply_fn, losses.cross_entropy, SCHEDULE)
    logits_loss = losses.make_loss(lambda logits, _: logits, losses.cross_entropy, SCHEDULE)

    def products(step, batch_size=None):
        hessian = operators.hessian(loss_fn, params, batch, jnp.asarray(step), batch_size=batch_size)
        return hessian, operators.ggn(apply_fn, logits_loss, params, batch, jnp.asarray(step))

    return params, jax.jit(lambda p, step: loss_fn(p, batch, step)), products


def test_the_self_check_passes_what_is_right_and_names_what_is_not(x64):
    params, loss_fn, products = network("tanh", "updated")
    key = jax.random.key(0)

    def loss(p):
        return loss_fn(p, jnp.asarray(17))

    matvec, ggn = products(17, batch_size=7)
    measured = check_operator(matvec, params, key=key, loss=loss)
    assert measured.nondeterminism == 0 and measured.difference < (1e-6 if x64 else 1e-2)
    assert measured.kinks is None
    flat, unravel = ravel_pytree(params)
    skewed = jnp.triu(jnp.ones((flat.size, flat.size), flat.dtype))
    calls = itertools.count()
    wrong = {
        "not symmetric": lambda v: unravel(skewed @ ravel_pytree(v)[0]),
        "not the Hessian": lambda v: jax.tree.map(lambda x: 2 * x, matvec(v)),
        "not the Hessian of this loss": ggn,
        "not deterministic": lambda v: jax.tree.map(lambda x: x * (1 + next(calls)), v),
        "the product with the operator is not finite": lambda v: jax.tree.map(lambda x: x * jnp.nan, v),
        "operator is not finite: look for NaN or infinity": lambda v: jax.tree.map(lambda x: x / 0.0, v),
    }
    for words, operator in wrong.items():
        with pytest.raises(ValueError, match=words) as error:
            check_operator(operator, params, key=key, loss=loss)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the gradient of the loss is not finite"):
        check_operator(matvec, params, key=key, loss=lambda p: loss(p) * jnp.nan)


@pytest.mark.parametrize("step", [0, 30])
def test_kinks_are_told_from_faults(x64, step):
    """Zero biases put the examples at the origin on a kink; at step 0 the jumps of their gradients cancel."""
    params, loss_fn, products = network("relu", "original")
    matvec, ggn = products(step)
    later, _ = products(step + 20)

    def loss(p):
        return loss_fn(p, jnp.asarray(step))

    for number in range(6):
        key = jax.random.key(number)
        found = check_operator(matvec, params, key=key, loss=loss)
        assert found.kinks is None or 0.1 < found.kinks <= 1
        assert (found.kinks is None) == (found.difference < (1e-4 if x64 else 0.05))
        for operator in (ggn, later, lambda v: jax.tree.map(lambda x: 1.2 * x, matvec(v))):
            with pytest.raises(ValueError, match="not the Hessian of this loss"):
                check_operator(operator, params, key=key, loss=loss)
    assert found.kinks is not None or not x64


def test_a_wrong_rule_of_differentiation_is_no_kink(x64):
    @jax.custom_jvp
    def slope(x):
        return 1 / jnp.cosh(x) ** 2

    @jax.custom_jvp
    def activation(x):
        return jnp.tanh(x)

    slope.defjvp(lambda x, t: (slope(*x), jnp.zeros_like(t[0])))
    activation.defjvp(lambda x, t: (activation(*x), slope(*x) * t[0]))
    x, w = (jnp.asarray(np.random.RandomState(seed).randn(9, 3)) for seed in (0, 1))

    def loss(w):
        return jnp.sum(activation(x @ w.T) ** 2)

    def matvec(v):
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    expected = re.escape("product and central differences, without a kink, differ")
    with pytest.raises(ValueError, match=expected):
        check_operator(matvec, w, key=jax.random.key(0), loss=loss)
