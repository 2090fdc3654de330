"""The learning rate of optimizers that count their updates themselves, and optimizers that ask for more."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf.optimizers import make_optimizer, rate_of
from dlf.train import init_state, make_step


def halving(count):
    return 0.5**count


WRAPPERS = {
    "every second": lambda sgd: optax.MultiSteps(sgd, 2).gradient_transformation(),
    "at some steps": lambda sgd: optax.conditionally_mask(sgd, lambda step: step % 3 != 1),
    "finite ones": lambda sgd: optax.apply_if_finite(sgd, 5),
    "groups": lambda sgd: optax.multi_transform({"a": sgd, "b": sgd}, ["a", "b"]),
    "sharpness-aware": lambda sgd: optax.contrib.sam(sgd, optax.sgd(1e-3), sync_period=2),
    "all": lambda sgd: sgd,
}
APPLIED = {
    "every second": 4, "at some steps": 5, "finite ones": 7, "groups": 8, "sharpness-aware": 4, "all": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_rate_is_read_where_the_optimizer_counts(standard, name):
    optimizer = make_optimizer(lambda learning_rate: WRAPPERS[name](optax.sgd(learning_rate)), halving)
    params, applied = [jnp.ones(()), jnp.ones(())], []
    state = optimizer.init(params)
    for step in range(8):
        rate = rate_of(optimizer, state, jnp.asarray(step))
        gradient = jnp.asarray(jnp.nan if name == "finite ones" and step == 2 else 1.0)
        updates, state = optimizer.update([gradient, gradient], state, params)
        ascent = name == "sharpness-aware" and step % 2 == 0  # a step of the other optimizer
        if updates[0] != 0 and not ascent:
            assert -updates[0] == rate
            applied.append(float(rate))
    np.testing.assert_array_equal(applied, [halving(count) for count in range(APPLIED[name])])


def test_injected_rates_are_read_where_they_are_counted(standard):
    def own(learning_rate):
        return optax.conditionally_mask(
            optax.inject_hyperparams(optax.adam)(learning_rate), lambda step: step % 2 == 0
        )

    optimizer, params = make_optimizer(own, halving), jnp.ones(2)
    state = optimizer.init(params)
    for count in (0, 1, 1, 2):
        assert rate_of(optimizer, state, jnp.asarray(99)) == halving(count)
        _, state = optimizer.update(params, state, params)


def wordless(grads, state, params):
    raise TypeError


def every_second(learning_rate):
    return optax.MultiSteps(optax.sgd(learning_rate), 2).gradient_transformation()


APART = {
    "groups": lambda rate: optax.multi_transform({"a": optax.sgd(rate), "b": every_second(rate)}, ["a", "b"]),
    "injected": lambda rate: optax.inject_hyperparams(
        lambda decay: optax.chain(optax.add_decayed_weights(decay), every_second(rate))
    )(decay=0.1),
}


@pytest.mark.parametrize("name", APART)
def test_parts_that_count_otherwise_than_each_other_have_no_one_rate(standard, name):
    optimizer = make_optimizer(lambda learning_rate: APART[name](learning_rate), halving)
    params = [jnp.ones(()), jnp.ones(())]
    state = optimizer.init(params)
    assert rate_of(optimizer, state, jnp.asarray(0)) == 1
    _, state = optimizer.update(params, state, params)
    assert jnp.isnan(rate_of(optimizer, state, jnp.asarray(1)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lookahead(optax.sgd(0.1), 5, 0.5),
        optax.contrib.reduce_on_plateau(),
        optax.lbfgs(),
        optax.GradientTransformation(lambda params: (), wordless),
    ],
    ids=["lookahead", "plateau", "line search", "no words"],
)
def test_an_optimizer_that_asks_for_more_is_refused_with_what_it_is_given(optimizer):
    step_fn = make_step(lambda params, batch, step: jnp.sum(params**2), lambda step: None, optimizer)
    with pytest.raises(ValueError, match="must do with gradients, its state and a pytree of parameters"):
        step_fn(init_state(jnp.ones(2), optimizer))
