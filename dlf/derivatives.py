"""Derivatives along one direction: forward, or by reverse passes alone where a rule allows no forward ones.

A function of `jax.custom_vjp` has a rule for reverse derivatives only. Which way it goes is found out while
JAX traces, so that a compiled product costs no more.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dlf.types import Params


def forward_or(forward: Callable[[], PyTree], backward: Callable[[], PyTree]) -> PyTree:
    """Return forward(), or backward() if a function in it can only be differentiated backwards."""
    # JAX may refuse what has no forward rule only when it compiles, too late to turn back.
    try:
        names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(forward)())}
    except (NotImplementedError, TypeError):  # what is wrong otherwise fails backwards, too
        return backward()
    return backward() if "custom_lin" in names else forward()


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def tangent(fn: Callable[[Params], PyTree], point: Params, vector: Params) -> tuple[PyTree, PyTree]:
    """Return f(p) and its derivative J v along a vector.

        J v = d/de f(p + e v) at e = 0,    backwards as the transpose of c -> J^T c

    >>> value, slope = tangent(lambda p: p**3, jnp.asarray(2.0), jnp.asarray(1.0))
    >>> value.item(), slope.item()
    (8.0, 12.0)
    """

    def backward():
        value, pullback = jax.vjp(fn, point)
        zeros = jax.tree.map(jnp.zeros_like, value)
        return value, jax.vjp(lambda cotangent: pullback(cotangent)[0], zeros)[1](vector)[0]

    return forward_or(lambda: jax.jvp(fn, (point,), (vector,)), backward)


def hvp(scalar_fn: Callable[[Params], Float[Array, ""]], point: Params, vector: Params) -> Params:
    """Return H v of a scalar function, forward over reverse, else reverse over reverse.

    >>> hvp(lambda p: p @ p, jnp.ones(2), jnp.asarray([1.0, 2.0])).tolist()
    [2.0, 4.0]
    """
    gradient = jax.grad(scalar_fn)
    return forward_or(
        lambda: jax.jvp(gradient, (point,), (vector,))[1],
        lambda: jax.vjp(gradient, point)[1](vector)[0],  # H is its own transpose
    )


def curvature_along(
    fn: Callable[[Params], Float[Array, "..."]], point: Params, vector: Params
) -> Float[Array, "..."]:
    """Return d2/de2 f(p + e v) at e = 0 of each output, forward over forward, else reverse over reverse.

    >>> curvature_along(lambda p: p**3, jnp.asarray([2.0, 1.0]), jnp.ones(2)).tolist()
    [12.0, 6.0]
    """

    def slope(p):
        return jax.jvp(fn, (p,), (vector,))[1]

    def line(e):
        return fn(jax.tree.map(lambda p, v: p + e * v, point, vector))

    zero = jnp.zeros_like(jax.tree.leaves(point)[0], shape=())
    return forward_or(
        lambda: jax.jvp(slope, (point,), (vector,))[1], lambda: jax.jacrev(jax.jacrev(line))(zero)
    )
