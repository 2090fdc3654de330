"""What is drawn anew of each example at every step: (key, inputs) -> inputs of the same shape and type.

`__all__` is the catalogue that a config names an augmentation from. What becomes of an example depends on the
key, which is that of a step, and on its place in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dlf.types import Inputs

__all__ = ["cutout", "flip", "pad_crop", "shift"]

Augmentation = Callable[[Array, Inputs], Inputs]
_GREY = 127  # what a byte has where nothing is seen; 0 of numbers with mean 0


def pad_crop(key: Array, inputs: Inputs, *, pad: int) -> Inputs:
    """Move each image by up to `pad` pixels along both axes, with zeros from outside.

    Raises ValueError for inputs that are no images, or a pad that is not below their sides.

    >>> images = jnp.ones((100, 3, 3, 1))
    >>> sorted({int(of.sum()) for of in pad_crop(jax.random.key(0), images, pad=1)})
    [4, 6, 9]
    """
    _check(inputs, 4, pad, "pad", min(inputs.shape[1:3]) - 1)
    offsets = jax.random.randint(key, (len(inputs), 2), 0, 2 * pad + 1)
    padded = jnp.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image, offset):
        return jax.lax.dynamic_slice(image, (*offset, jnp.zeros_like(offset[0])), inputs.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def flip(key: Array, inputs: Inputs) -> Inputs:
    """Mirror each image left to right with a probability of one half. Raises ValueError for no images.

    >>> images = jnp.arange(2).reshape(1, 1, 2, 1).repeat(100, axis=0)
    >>> 0.3 < float(flip(jax.random.key(0), images)[:, 0, 0, 0].mean()) < 0.7
    True
    """
    _check(inputs, 4, 1, "width", inputs.shape[2] if inputs.ndim == 4 else 1)
    coins = jax.random.bernoulli(key, 0.5, (len(inputs), 1, 1, 1))
    return jnp.where(coins, inputs[:, :, ::-1], inputs)


def cutout(key: Array, inputs: Inputs, *, side: int) -> Inputs:
    """Hide a square of each image, whose centre is any of its pixels, by grey: 127 of bytes, else 0.

    Raises ValueError for inputs that are no images, or a square larger than they are.

    Source: DeVries and Taylor 2017 (arXiv 1708.04552).

    >>> int((cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), side=1) == 0).sum())
    1
    """
    _check(inputs, 4, side, "side", min(inputs.shape[1:3]))
    hidden = jnp.ones((), bool)
    for axis, of_axis in zip((1, 2), jax.random.split(key), strict=True):
        centre = jax.random.randint(of_axis, (len(inputs), 1), 0, inputs.shape[axis])
        places = jnp.arange(inputs.shape[axis])[None]
        first = centre - side // 2
        along = (places >= first) & (places < first + side)
        hidden = hidden & jnp.expand_dims(along, [a for a in (1, 2, 3) if a != axis])
    grey = _GREY if jnp.isdtype(inputs.dtype, "integral") else 0
    return jnp.where(hidden, jnp.asarray(grey, inputs.dtype), inputs)


def shift(key: Array, inputs: Inputs, *, most: int) -> Inputs:
    """Move each signal by up to `most` points either way, around its ends.

    Raises ValueError for inputs that are not [examples, points, channels], or as many points or more.

    >>> signals = jnp.arange(4.0).reshape(1, 4, 1).repeat(50, axis=0)
    >>> sorted({tuple(of.tolist()) for of in shift(jax.random.key(0), signals, most=1)[..., 0]})
    [(0.0, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 0.0), (3.0, 0.0, 1.0, 2.0)]
    """
    _check(inputs, 3, most, "most", inputs.shape[1] - 1)
    distances = jax.random.randint(key, (len(inputs),), -most, most + 1)
    return jax.vmap(partial(jnp.roll, axis=0))(inputs, distances)


def chain(steps: Sequence[Mapping[str, Any] | str]) -> Augmentation:
    """Return one augmentation of several, each dict(name=..., settings) or a name, in their order.

    Raises ValueError for what is no sequence or a name that is unknown, TypeError for a setting that it does
    not take.

    >>> both = chain(("flip", dict(name="pad_crop", pad=2)))
    >>> both(jax.random.key(0), jnp.ones((5, 8, 8, 3))).shape
    (5, 8, 8, 3)
    """
    if isinstance(steps, str | Mapping):
        raise ValueError(f"need a tuple of augmentations, names or dict(name=..., ...), got {steps!r}")
    parts = []
    for step in steps:
        settings = dict(step) if isinstance(step, Mapping) else {"name": step}
        name = settings.pop("name", None)
        if callable(name):
            parts.append(partial(name, **settings))
        elif name in __all__:
            parts.append(partial(globals()[name], **settings))
        else:
            raise ValueError(f"unknown augmentation {name!r}: one of {', '.join(__all__)}")

    def augment(key: Array, inputs: Inputs) -> Inputs:
        for number, part in enumerate(parts):
            inputs = part(jax.random.fold_in(key, number), inputs)
        return inputs

    return augment


def _check(inputs, num_axes, value, name, most):
    if inputs.ndim != num_axes:
        kind = (
            "images [examples, height, width, channels]" if num_axes == 4 else "[examples, points, channels]"
        )
        raise ValueError(f"inputs must be {kind}, got {list(inputs.shape)}")
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(
            f"{name} must be from 1 to {most} for inputs {list(inputs.shape[1:])}, got {value!r}"
        )
