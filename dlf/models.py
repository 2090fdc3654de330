"""Networks in flax.linen, each as three functions: init, apply in evaluation, train.

`__all__` is the catalogue that a config names a model from. Of images that are bytes, each takes the `mean`
and the `std` of every channel, from 0 to 1, and computes in `dtype`, "bfloat16" say, if that is set;
parameters, statistics and losses stay as they are.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from numbers import Real

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlf import modes, networks
from dlf.layers import NORMALIZATIONS
from dlf.modes import apply_fn as apply_fn
from dlf.modes import linen as linen
from dlf.modes import prepared
from dlf.modes import stateless as stateless
from dlf.types import Model

__all__ = ["clauses", "logistic_mlp", "mlp", "myrtle", "wide_resnet"]

# The two initialisations that the authors published: (kernel, bias).
_INITIALIZERS = {
    "original": (
        lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / math.sqrt(shape[0]),
        nn.initializers.zeros_init(),
    ),
    "updated": (nn.initializers.glorot_normal(), nn.initializers.normal(0.01)),
}
_TABLES = ("digit", "carry")  # of clauses


def _check(activation, normalization, dropout, widths):
    if activation not in networks.ACTIVATIONS:
        known = ", ".join(sorted(networks.ACTIVATIONS))
        raise ValueError(f"unknown activation {activation!r}: one of {known}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization!r}: one of {', '.join(NORMALIZATIONS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, the share that is dropped, got {dropout}")
    if not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"widths and numbers of classes and outputs must be positive integers, got {widths}")


def mlp(
    num_classes: int,
    hidden_widths: Sequence[int],
    activation: str,
    initialization: str,
    use_bias: bool,
    normalization: str = "none",
    dropout: float = 0.0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dtype: str = "",
) -> Model:
    """Build a fully connected network: (inputs [examples, ...]) -> logits [examples, classes].

        h_0 = x, flattened,   h_{l+1} = drop(activation(norm(h_l W_l + b_l))),   logits h_L W_L + b_L

    `activation` is one of flax.linen; `initialization` is "original" (W ~ N(0, 1/fan_in), zero
    biases) or "updated" (Glorot-normal W, biases ~ N(0, 0.01^2)). Whether there are biases must
    be said: without them this network does not learn the spiral. `normalization` is one of
    `dlf.layers.NORMALIZATIONS`; `dropout` the share of hidden values that is set to zero in training.

    The draw is the authors' too: keys are split layer by layer as their `stax.serial` did (one
    split for each dense layer and each activation, then one between W and b), under JAX's older
    random bits. So PRNGKey(0) gives their initial parameters to the bit in float64.

    Raises ValueError for an unknown activation, initialization or normalization, or an impossible width
    or dropout.

    Source: Ruiz-Garcia et al. 2021 (arXiv 2102.03793) and the authors' two notebooks.

    >>> import jax.numpy as jnp
    >>> model = mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
    >>> params, _ = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 2)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    603
    """
    widths = (*hidden_widths, num_classes)
    _check(activation, normalization, dropout, widths)
    if initialization not in _INITIALIZERS:
        raise ValueError(f"unknown initialization {initialization!r}: one of {', '.join(_INITIALIZERS)}")
    model = _model(networks.Mlp(widths, activation, use_bias, normalization, dropout))
    draw_kernel, draw_bias = _INITIALIZERS[initialization]

    def init(key, inputs):
        networks.check_inputs(inputs, range(1, 10))
        params, model_state = model.init(key, inputs) if normalization != "none" else ({}, ())
        fan_in, dtype = math.prod(inputs.shape[1:]), inputs.dtype
        with jax.threefry_partitionable(False):
            for depth, width in enumerate(widths):
                if depth > 0:
                    key, _ = jax.random.split(key)  # the activation's, unused
                key, layer_key = jax.random.split(key)
                kernel_key, bias_key = jax.random.split(layer_key)
                layer = {"kernel": draw_kernel(kernel_key, (fan_in, width), dtype)}
                if use_bias:
                    layer["bias"] = draw_bias(bias_key, (width,), dtype)
                params[f"Dense_{depth}"] = layer
                fan_in = width
        return params, model_state

    return prepared(model._replace(init=init), mean, std, dtype)


def myrtle(
    num_classes: int,
    widths: Sequence[int],
    activation: str,
    per_pool: Sequence[int] = (),
    normalization: str = "none",
    dropout: float = 0.0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dtype: str = "",
    frozen_after: int = 0,
    strided: bool = False,
) -> Model:
    """Build a convolutional network: (images [examples, height, width, channels]) -> logits.

        h_{l+1} = pool(activation(norm(conv(h_l)))),   logits = W drop(mean_{pixels} h_L) + b

    One 3x3 convolution with zero padding and biases for each of `widths`, its number of channels; of signals
    [examples, points, channels] one over 3 points. `pool` averages squares of 2x2 pixels (without an odd last
    row or column), or pairs of points. `per_pool` are the convolutions before each pool: Myrtle5 has four
    widths and (2, 1, 1), Myrtle7 six and (2, 2, 2), Myrtle10 nine and (3, 3, 3). Without it there is a pool
    after each from the second on, while the sides are longer than 2: four widths are Myrtle5 of 32x32 images,
    two to four suit 8x8 ones. `normalization` and `dropout` as in `mlp`; statistics stand still after the
    first `frozen_after` steps if that is not 0 (see `dlf.modes.frozen_after`). If `strided`, convolutions
    halve the sides in place of pools and W sees all pixels; (25, 25, 25) is MNIST-1D's reference network.
    Kernels are He-normal (variance 2/fan_in), W has variance 1/fan_in, both from normals cut at two standard
    deviations; biases start at zero.

    Raises ValueError as `mlp` does, for inputs that are neither images nor signals, or too many pools.

    Source: Shankar et al. 2020 (arXiv 2003.02237); strided Greydanus 2020 (arXiv 2011.14439), whose first
    kernel spans 5 points; initialisation and other sizes are ours.

    >>> import jax.numpy as jnp
    >>> model = myrtle(10, (4, 8), activation="relu")
    >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> logits = model.apply(params, model_state, jnp.zeros((5, 8, 8, 1)))
    >>> sum(p.size for p in jax.tree.leaves(params)), logits.shape
    (426, (5, 10))
    """
    widths = (*widths, num_classes)
    _check(activation, normalization, dropout, widths)
    if per_pool and strided:
        raise ValueError("strided convolutions leave nothing to a pool: give no per_pool")
    if per_pool and (min(per_pool) < 1 or sum(per_pool) > len(widths) - 1):
        raise ValueError(f"per_pool must share out the {len(widths) - 1} convolutions, got {per_pool}")
    model = _model(networks.Myrtle(widths, tuple(per_pool), activation, normalization, dropout, strided))
    if frozen_after:
        model = modes.frozen_after(model, frozen_after)
    model = model._replace(init=jax.jit(model.init))  # compiled, it skips the logits
    return prepared(model, mean, std, dtype)


def wide_resnet(
    num_classes: int,
    depth: int,
    widen_factor: int,
    normalization: str = "batch",
    dropout: float = 0.0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dtype: str = "",
) -> Model:
    """Build a wide residual network of images or signals: inputs as those of `myrtle` -> logits.

        h <- h + conv(drop(relu(norm(conv(relu(norm(h)))))))        a block

    After one convolution of 16 channels three groups of (depth - 4) / 6 blocks with 16 k, 32 k and 64 k
    channels, of which the second and third halve the sides; where shapes differ, a convolution over one pixel
    takes the place of h. Then a mean over pixels and a dense layer. Convolutions have biases only without
    `normalization`.

    Raises ValueError for a depth that is not 6 n + 4, an impossible factor, or as `myrtle` does.

    Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146); the initialisation, as in `myrtle`, is ours.

    >>> import jax.numpy as jnp
    >>> model = wide_resnet(10, depth=10, widen_factor=1)
    >>> params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    77850
    """
    _check("relu", normalization, dropout, (widen_factor, num_classes))
    if type(depth) is not int or depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 for n blocks a group, from 10 on, got {depth}")
    model = _model(networks.WideResNet(num_classes, (depth - 4) // 6, widen_factor, normalization, dropout))
    return prepared(model._replace(init=jax.jit(model.init)), mean, std, dtype)


def logistic_mlp(
    num_classes: int, hidden_widths: Sequence[int], num_outputs: int, limit: float = 0.3
) -> Model:
    """Build a network of logistic units with biases: inputs [examples, in] -> outputs in (0, 1).

        h_{l+1} = sigma(h_l W_l + b_l),   h_0 = x,   outputs h_L        all weights uniform in +-limit

    The classes of the loss, whose number is `num_classes`, are no outputs here: see `dlf.outputs`.

    Raises ValueError for widths that are no positive whole numbers, or a limit that is not positive; when it
    is called, for inputs with further axes.

    Source: McCloskey and Cohen 1989, with one hidden layer of 50 units.

    >>> model = logistic_mlp(2, (50,), num_outputs=24)
    >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 28)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    2674
    """
    _check("sigmoid", "none", 0.0, (*hidden_widths, num_outputs, num_classes))
    if not (isinstance(limit, Real) and 0 < limit < math.inf):
        raise ValueError(f"limit must be positive and finite, got {limit!r}")

    def init(key, inputs):
        networks.check_inputs(inputs, (2,))
        widths, layers = (inputs.shape[1], *hidden_widths, num_outputs), {}
        for depth, (fan_in, width) in enumerate(itertools.pairwise(widths)):
            draw = partial(jax.random.uniform, dtype=jnp.zeros(()).dtype, minval=-limit, maxval=limit)
            key, kernel_key, bias_key = jax.random.split(key, 3)
            layers[f"Dense_{depth}"] = {
                "kernel": draw(kernel_key, (fan_in, width)), "bias": draw(bias_key, (width,)),
            }  # fmt: skip
        return layers

    def apply_fn(params, inputs):
        for layer in params.values():
            inputs = jax.nn.sigmoid(inputs @ layer["kernel"] + layer["bias"][None])
        return inputs

    return stateless(init, apply_fn)


def clauses(num_classes: int, scale: float = 0.1, tied: bool = False) -> Model:
    """Build an adder of conditional clauses: bits [examples, places, 2], least first -> digits in (0, 1).

        p_k     = (1 - c_k) sigma(W[0, a_k, b_k]) + c_k sigma(W[1, a_k, b_k])        digit k
        c_{k+1} = (1 - c_k) sigma(V[0, a_k, b_k]) + c_k sigma(V[1, a_k, b_k])        carry, c_0 = 0

    Between 0 and 1 the choice is linear in a_k and b_k, too, so that gradients pass through every condition.
    Each clause has a parameter, or if they are `tied` all clauses of one sum a + b + c. Parameters are normal
    with standard deviation `scale`. `num_classes` is that of the loss, see `dlf.outputs`.

    Raises ValueError for a scale that is negative or not finite, or `tied` that is no boolean; when it is
    called, for inputs of another shape.

    Source: the idea Ruiz-Garcia 2022 (arXiv 2108.03940); all details are ours.

    >>> model = clauses(1)
    >>> right = 20 * jnp.asarray([[[-1.0, 1], [1, -1]], [[1, -1], [-1, 1]]])  # 1 where a + b + c is odd
    >>> carry = 20 * jnp.asarray([[[-1.0, -1], [-1, 1]], [[-1, 1], [1, 1]]])
    >>> bits = jnp.asarray([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]])  # 3 + 1, with a place for the carry
    >>> model.apply({"digit": right, "carry": carry}, (), bits).round().tolist()
    [[0.0, 0.0, 1.0]]
    """
    if not (isinstance(scale, Real) and 0 <= scale < math.inf) or type(tied) is not bool:
        raise ValueError(
            f"scale must be a finite number of at least 0 and tied True or False, got {scale!r}, {tied!r}"
        )
    shape = (4,) if tied else (2, 2, 2)
    sums = jnp.indices((2, 2, 2)).sum(0)

    def init(key, inputs):
        keys = jax.random.split(key)
        return {name: scale * jax.random.normal(of, shape) for name, of in zip(_TABLES, keys, strict=True)}

    def apply_fn(params, inputs):
        if inputs.ndim != 3 or inputs.shape[2] != 2:
            raise ValueError(
                f"inputs must be bits of two numbers, [examples, places, 2], got {list(inputs.shape)}"
            )
        tables = jnp.stack([jax.nn.sigmoid(params[name]) for name in _TABLES])
        tables = tables[:, sums] if tied else tables

        def place(carry, bits):
            choices = (jnp.stack([1 - x, x], axis=-1) for x in (carry, bits[:, 0], bits[:, 1]))
            digit, carry = jnp.einsum("ni,nj,nk,tijk->tn", *choices, tables, precision="highest")
            return carry, digit

        begin = jnp.zeros(len(inputs), inputs.dtype)
        return jax.lax.scan(place, begin, inputs.swapaxes(0, 1))[1].T

    return stateless(init, apply_fn)


def _model(module: nn.Module) -> Model:
    weights = "weights" if module.normalization == "weighted_batch" else ""
    return linen(module, training={"train": True}, evaluation={"train": False}, weights=weights)
