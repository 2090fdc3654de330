"""What neural-tangents knows of our networks: the kernel of infinite width, and training in closed form."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Float

from analysis import neural_tangents_import
from analysis.ntk import full_ntk
from dlf import data, losses, models, optimizers, schedules, train
from dlf.labels import largest
from dlf.types import ApplyFn, Batch, Labels, Logits, Model, ModelState, Params


def infinite_ntk(
    hidden_widths: Sequence[int], activation: str, initialization: str, use_bias: bool
) -> Callable[[Float[Array, "examples ..."]], Float[Array, "examples examples"]]:
    """Return inputs -> the NTK that `empirical_ntk` of such a network tends to as its widths N grow.

        |Theta_N - Theta| / |Theta| ~ N^(-1/2)        Theta_N: `empirical_ntk` at the first parameters

    The arguments are those of `dlf.models.mlp`, but for the number of classes, on which nothing depends:
    the logits of a wide network are alike and independent. Standard parametrisation (weights of variance
    1 / fan_in, learned as they are), so the kernel keeps the widths as factors and grows as N; with one
    hidden layer it is the mean over initial parameters at any width. Biases start at zero and are learned.
    An input of zeros leaves all units at 0, where the derivative of our ReLU is 0: its kernel with any
    other is that of the last bias alone, 1; the library takes the signs of such units for independent.

    Raises ValueError for an activation without a kernel, or an initialization other than "original" (the
    first layer of "updated" is not normal), ImportError without neural-tangents.

    Source: Jacot et al. 2018 (arXiv 1806.07572); by `stax` of Novak et al. 2020 (arXiv 1912.02803).

    >>> kernel_fn = infinite_ntk((8,), "relu", "original", use_bias=True)
    >>> kernel_fn(jnp.asarray([[2.0, 0.0], [0.0, 0.0]])).tolist()  # N x.x / 4 + (x.x + 1) / 2 + 1
    [[11.5, 1.0], [1.0, 1.0]]
    """
    # Of gelu the library has the exact form only, ours is flax's approximation; of the rest none.
    settings = ("activation", activation, "relu"), ("initialization", initialization, "original")
    for name, given, known in settings:
        if given != known:
            raise ValueError(f"no kernel of infinite width for {name} {given!r}: {known!r} has one")
    stax = neural_tangents_import.load().stax

    def dense(width: int):  # None means no bias, 0.0 one that starts at zero
        return stax.Dense(width, W_std=1.0, b_std=0.0 if use_bias else None, parameterization="standard")

    hidden = [layer for width in hidden_widths for layer in (dense(width), stax.Relu())]
    *_, kernel_fn = stax.serial(*hidden, dense(1))

    def kernel(inputs):
        rows = inputs.reshape(len(inputs), -1)
        zero = ~jnp.any(rows != 0, axis=1) if hidden else jnp.zeros(len(rows), bool)
        theta = kernel_fn(rows, None, "ntk")
        return jnp.where(zero[:, None] | zero[None, :], jnp.full_like(theta, float(use_bias)), theta)

    return kernel


def linearized(model: Model, params: Params, model_state: ModelState = ()) -> Model:
    """Return a network's tangent at these parameters, f(theta_0) + J (theta - theta_0), as a network.

    Raises ValueError for a network with statistics.
    """
    if jax.tree.leaves(model_state):
        raise ValueError("a network with statistics has no tangent here: take group or layer norm")
    apply = neural_tangents_import.load().linearize(models.apply_fn(model, model_state), params)
    return models.stateless(lambda key, inputs: model.init(key, inputs)[0], apply)


def squared_loss_flow(
    kernel: Float[Array, "rows rows"], labels: Labels, start: Logits
) -> Callable[[Float[Array, ""]], Logits]:
    """Return time -> logits of a linearised network under the static squared loss, in closed form.

        d theta / ds = -grad L,    L = (1/P) sum_j sum_i (f_i(x_j) - delta_{i, y_j})^2
        f(s) = y + exp(-(2 s / P) Theta) (f(0) - y)        Theta = J J^T, `full_ntk` of the same examples

    L is `dmse1`, or `dmse2`, with weights of one. Time s is learning rate times step: gradient descent is off
    by O(eta). `start` are the logits f(0). Not inside `jit` from a kernel computed there.

    Raises ImportError without neural-tangents.

    Source: `predict` of neural-tangents; Lee et al. 2019 (arXiv 1902.06720), with 1 / (2 P C) for 1 / P.

    >>> flow = squared_loss_flow(jnp.eye(2), jnp.asarray([1]), jnp.zeros((1, 2)))
    >>> [round(float(f), 4) for f in flow(jnp.asarray(0.5))[0]]  # 1 - exp(-1)
    [0.0, 0.6321]
    """
    num_classes = start.shape[1]
    targets = jax.nn.one_hot(labels, num_classes, dtype=start.dtype)
    blocks = kernel.reshape(2 * start.shape).transpose(0, 2, 1, 3)  # [example, other, class, other class]
    predict = neural_tangents_import.load().predict.gradient_descent_mse(blocks, targets, trace_axes=())
    return lambda time: predict(2 * num_classes * time, start)


def flow_differences(apply_fn: ApplyFn, params: Params, batch: Batch, num_classes: int) -> xr.Dataset:
    """Return how far training by steps is from the closed form, for learning rates of which one is half.

    Of a network that is linear in its parameters, under the static squared loss, up to 20, learning rate
    times step: `flow_difference` [flow_rate], the largest difference of a logit relative to the largest
    change of one. It must halve with the learning rate.
    """
    rates, time = [0.02, 0.01], 20.0
    start = apply_fn(params, batch.inputs)
    kernel = full_ntk(apply_fn, params, batch.inputs)
    logits = squared_loss_flow(kernel, batch.labels, start)(jnp.asarray(time, start.dtype))
    loss_fn = losses.make_loss(apply_fn, losses.dmse1, schedules.constant(num_classes))
    found = []
    for rate in rates:
        optimizer = optimizers.make_optimizer("sgd", rate)
        loop = train.make_loop(train.make_step(loss_fn, data.full_batch(batch), optimizer))
        state, _, _ = loop(train.init_state(params, optimizer), {}, round(time / rate))
        apart = largest(jnp.abs(apply_fn(state.params, batch.inputs) - logits))
        found.append(float(apart / largest(jnp.abs(logits - start))))
    return xr.Dataset({"flow_difference": ("flow_rate", found, {"units": "1"})}, {"flow_rate": rates})
