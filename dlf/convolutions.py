"""Convolutions that XLA's code for the CPU runs as fast inside a loop as outside, as all their derivatives.

XLA has fast code for a convolution in single precision whose axes have one order, and brings others into it,
but only outside of loops (jax issue 12868). The two operations here have that order at every derivative:

    y = C(x, k):    y[n, p, f] = sum_{t, c} x[n, p + t, c] k[t, c, f]
    K = G(x, d):    K[t, c, f] = sum_{n, p} x[n, p + t, c] d[n, p, f]

for examples n, places p, taps t on both sides of 0, channels c and features f. Both are bilinear, and

    <C(x, k), d> = <k, G(x, d)> = <x, C(d, k')>,    k'[t, f, c] = k[-t, c, f].
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_ORDERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}  # by the number of sides
_CACHE = 2**21  # bytes of a part of the examples: with more, transposes take longer than products


def convolve(x, kernel, stride=1):
    """Convolve x [examples, *sides, in] with kernel [*sides, in, out] and zeros around, on one or two axes.

    Of n points on a side ceil(n / stride) stay, with the padding that XLA calls "SAME".

    >>> convolve(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    taps = kernel.shape[:-2]
    if jax.default_backend() != "cpu":
        return _lax(x, kernel, stride, "SAME")
    fits = all(n % 2 and n <= side for n, side in zip(taps, x.shape[1:-1], strict=True))  # else it is slow
    whole = (
        not jax.sharding.get_abstract_mesh().manual_axes
    )  # in shard_map, sums over devices come with JAX's
    if stride == 1 and x.dtype.itemsize == 4 and max(taps) > 1 and fits and whole:
        return convolve_p.bind(x, kernel)
    return _of_patches(x, kernel, stride)


def _lax(x, kernel, stride, padding):
    sides = x.ndim - 2
    return lax.conv_general_dilated(x, kernel, (stride,) * sides, padding, dimension_numbers=_ORDERS[sides])


def _of_patches(x, kernel, stride):
    """Convolve by one product of two matrices."""
    sides, taps, (channels, features) = x.shape[1:-1], kernel.shape[:-2], kernel.shape[-2:]
    left = [-(-n // stride) for n in sides]
    missing = [max((m - 1) * stride + k - n, 0) for m, k, n in zip(left, taps, sides, strict=True)]
    x = jnp.pad(x, ((0, 0), *((of // 2, of - of // 2) for of in missing), (0, 0)))
    shifted = [
        x[:, *(slice(i, i + (m - 1) * stride + 1, stride) for i, m in zip(tap, left, strict=True))]
        for tap in itertools.product(*map(range, taps))
    ]
    # A product of two plain matrices: with more axes the derivatives are slower.
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, math.prod(taps) * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(len(x), *left, features)


def _forward(x, kernel):
    """Return C(x, k), of few channels with two neighbouring places as one of twice as many.

    The products are twice as many, half of them with zeros (an infinity makes its neighbour NaN), but three
    times as fast: with three channels most of the time is spent on bringing them into place.
    """
    *sides, channels = x.shape[1:]
    *taps, num, _, features = kernel.shape
    if sides[-1] % 2 or channels >= 8 or features > 32:
        return _lax(x, kernel, 1, "SAME")
    reach = (num // 2 + 1) // 2  # in pairs of places
    pair, place, of = np.ogrid[-reach : reach + 1, :2, :2]
    tap = 2 * pair + place - of + num // 2
    inside = np.asarray((tap >= 0) & (tap < num))[..., None, None]
    kernel = jnp.where(inside, kernel[..., tap.clip(0, num - 1), :, :], 0).swapaxes(-3, -2)
    kernel = kernel.reshape(*taps, 2 * reach + 1, 2 * channels, 2 * features)
    x = x.reshape(len(x), *sides[:-1], sides[-1] // 2, 2 * channels)
    return _lax(x, kernel, 1, "SAME").reshape(len(x), *sides, features)


def _of_kernel(x, d, *, taps):
    """Return G(x, d), a convolution in which channels are the examples and examples the channels."""
    order = (*range(1, x.ndim - 1), 0, x.ndim - 1)  # [*sides, examples, features]

    def summed(x, d):
        # Without barriers XLA makes other orders of the convolution's axes out of the transposes.
        x, d = lax.optimization_barrier((x.swapaxes(0, -1), d.transpose(order)))
        return lax.optimization_barrier(_lax(x, d, 1, [(n // 2, n // 2) for n in taps])).transpose(order)

    num_parts = _parts(x)
    if num_parts == 1:
        return summed(x, d)
    parts = (of.reshape(num_parts, -1, *of.shape[1:]) for of in (x, d))
    begin = jnp.zeros((*taps, x.shape[-1], d.shape[-1]), x.dtype)
    return lax.scan(lambda total, part: (total + summed(*part), None), begin, tuple(parts))[0]


def _parts(x):
    """Return into how many parts of its examples to cut x, so that each fits into a cache."""
    whole, size = len(x), x.size * x.dtype.itemsize
    num_parts = next((n for n in range(1, whole + 1) if whole % n == 0 and size // n <= _CACHE), 1)
    return num_parts if size // num_parts >= _CACHE // 4 else 1


def _reversed(kernel):
    """Return k', the kernel of the derivative by x."""
    return lax.optimization_barrier(jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2))


def _primitive(name, fn, folded, by_first, by_second):
    """Return a bilinear primitive of two arrays; of batches of both, one after the other is done.

    `folded` are the axes of the first, the second and the result that a batch of the first alone, or of the
    second alone, is counted with.
    """

    def abstract(*args, **kwargs):
        args = (jax.ShapeDtypeStruct(of.shape, of.dtype) for of in args)
        found = jax.eval_shape(partial(fn, **kwargs), *args)
        return jax.core.ShapedArray(found.shape, found.dtype)

    primitive = Primitive(name)
    primitive.def_impl(jax.jit(fn, static_argnames=tuple(inspect.signature(fn).parameters)[2:]))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(fn, multiple_results=False))
    ad.defbilinear(primitive, by_first, by_second)

    def batch(args, axes, **kwargs):
        bind = partial(primitive.bind, **kwargs)
        args = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True)]
        if None not in axes:
            return lax.map(lambda pair: bind(*pair), args), 0
        which = axes.index(None) ^ 1
        size, (into, out) = len(args[which]), folded[which]
        if size == 0:
            return lax.map(lambda one: bind(*args[:which], one, *args[which + 1 :]), args[which]), 0
        args[which] = _fold(args[which], into)
        return _unfold(bind(*args), out, size), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


def _fold(x, axis):
    """Return x [batch, ...] with the batch counted with one of its other axes."""
    at = axis % (x.ndim - 1)
    x = jnp.moveaxis(x, 0, at)
    return x.reshape(*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])


def _unfold(x, axis, size):
    """Return x with the batch of that size that an axis holds as its first axis."""
    at = axis % x.ndim
    return jnp.moveaxis(x.reshape(*x.shape[:at], size, x.shape[at] // size, *x.shape[at + 1 :]), at, 0)


convolve_p = _primitive(
    "convolve",
    _forward,
    ((0, 0), (-1, -1)),
    lambda d, x, kernel: convolve_p.bind(d, _reversed(kernel)),
    lambda d, x, kernel: _of_kernel_p.bind(x, d, taps=kernel.aval.shape[:-2]),
)
_of_kernel_p = _primitive(
    "convolve_by_kernel",
    _of_kernel,
    ((-1, -2), (-1, -1)),
    lambda kernel, x, d, **_: convolve_p.bind(d, _reversed(kernel)),
    lambda kernel, x, d, **_: convolve_p.bind(x, kernel),
)


def warn_of_convolutions(fn: Callable[..., Any], *args: Any) -> None:
    """Warn if fn(*args) holds a `lax.conv` and the platform is the CPU, where a loop slows it down.

    Arguments may be shapes (`jax.ShapeDtypeStruct`): the function is traced, never run.

    >>> warn_of_convolutions(convolve, jnp.zeros((1, 3, 3, 1)), jnp.zeros((3, 3, 1, 2)))  # silent
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and lax.conv_general_dilated_p in _primitives(jax.make_jaxpr(fn)(*args)):
        slow = "XLA on CPU runs lax.conv 20 to 50 times slower inside a loop (jax issue 12868)"
        warnings.warn(f"{slow}: build the network of dlf.layers.Conv", stacklevel=2)


def _primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive
        for inner in jax.tree.leaves(eqn.params):
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)
