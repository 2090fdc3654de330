"""What can be done with any symmetric linear map on pytrees: write it out, restrict, precondition, check."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from dlf.derivatives import hvp
from dlf.types import Matvec, Params


def precise(fn: Callable) -> Callable:
    """Return a function that multiplies matrices at full precision: the default of GPU and TPU is too coarse.

    One context for each function: a shared one, entered twice, would stay on.
    """
    return jax.default_matmul_precision("highest")(fn)


def as_pytree(fn: Callable) -> Partial:
    """Return a function as a pytree, so that a compiled function can take it as an argument.

    Its arrays are leaves if it is a `Partial` already; otherwise it is static, and whatever it closes
    over is part of the program that is compiled for it.
    """
    return fn if isinstance(fn, Partial) else Partial(fn)  # a Partial of a Partial would be static


def dense(matvec: Matvec, like: Params) -> Float[Array, "size size"]:
    """Return the matrix of a linear map on pytrees shaped as `like`, for small sizes.

    Rows and columns are in the order of `jax.flatten_util.ravel_pytree`.

    >>> dense(lambda v: {"a": 2 * v["a"], "b": v["b"]}, {"a": jnp.zeros(1), "b": jnp.zeros(1)}).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    return _dense(as_pytree(matvec), like)


@jax.jit
def _dense(matvec, like):
    flat, unravel = ravel_pytree(like)
    units = jnp.eye(flat.size, dtype=flat.dtype)
    return jax.lax.map(lambda e: ravel_pytree(matvec(unravel(e)))[0], units).T


def select(params: PyTree, *names: str) -> PyTree:
    """Return the parameters of some layers or groups, with None in place of all others.

    A name is a path into the pytree, as "Dense_0" or "Dense_0/kernel", and takes what lies below.

    Raises ValueError for a name that is not there.

    >>> select({"Dense_0": {"bias": 1.0, "kernel": 2.0}, "Dense_1": {"bias": 3.0}}, "Dense_0/bias", "Dense_1")
    {'Dense_0': {'bias': 1.0, 'kernel': None}, 'Dense_1': {'bias': 3.0}}
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if not names:
        raise ValueError(f"name at least one group of parameters: there are {', '.join(paths)}")
    chosen = {name: [f"{path}/".startswith(f"{name}/") for path in paths] for name in names}
    for name, matches in chosen.items():
        if not any(matches):
            raise ValueError(f"no parameters under {name!r}: there are {', '.join(paths)}")
    taken = zip(leaves, zip(*chosen.values(), strict=True), strict=True)
    return structure.unflatten([leaf if any(matches) else None for (_, leaf), matches in taken])


@jax.jit
def _block(matvec, params, vector):
    is_none = {"is_leaf": lambda x: x is None}
    padded = jax.tree.map(lambda v, p: jnp.zeros_like(p) if v is None else v, vector, params, **is_none)
    return jax.tree.map(lambda v, w: None if v is None else w, vector, matvec(padded), **is_none)


def block(matvec: Matvec, params: Params) -> Matvec:
    """Restrict a map to the diagonal block of those leaves that a vector has.

        v -> (H [v, 0]) at the leaves of v;    v is shaped as `select(params, ...)`

    >>> params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    >>> matvec = block(lambda v: {"a": v["a"] + v["b"], "b": v["a"] + 3 * v["b"]}, params)
    >>> matvec(select(params, "b"))["b"].tolist()
    [3.0, 3.0]
    """
    return Partial(_block, as_pytree(matvec), params)


@jax.jit
def _preconditioned(matvec, preconditioner, vector):
    def scale(v):
        return jax.tree.map(lambda p, x: jax.tree.map(lambda leaf: leaf / jnp.sqrt(p), x), preconditioner, v)

    return scale(matvec(scale(vector)))


def preconditioned(matvec: Matvec, preconditioner: Params) -> Matvec:
    """Return P^(-1/2) H P^(-1/2) for a diagonal P, given as a pytree of positive numbers.

    One number may stand for a whole layer. The spectrum is that of P^(-1) H, which decides on the stability
    of theta <- theta - eta P^(-1) g.

    >>> preconditioned(lambda v: 3.0 * v, jnp.asarray([4.0, 16.0]))(jnp.ones(2)).tolist()
    [0.75, 0.1875]
    """
    return Partial(_preconditioned, as_pytree(matvec), preconditioner)


_KINKED = 0.1  # of a difference: more than third derivatives make of one well beyond its limit


class OperatorCheck(NamedTuple):
    """What `check_operator` measured, each relative to the size of the products."""

    nondeterminism: float  # |H x - H x|, computed twice
    asymmetry: float  # |x . H y - y . H x|
    difference: float | None  # |H x - D|, D = (g(theta + h x) - g(theta - h x)) / 2h, None without a loss
    kinks: float | None  # share of a difference beyond the limit that comes from kinks, None within it


@precise
def check_operator(
    matvec: Matvec, params: Params, *, key: Array, loss: Callable[[Params], Float[Array, ""]] | None = None
) -> OperatorCheck:
    """Check that a map is deterministic, symmetric and, given the loss, its Hessian at `params`.

    Two random directions x, y of unit length. Central differences D of the gradient g of `loss` use
    h = eps^(1/3) max(1, |theta|). Accepted are 100 eps between two equal products, sqrt(n) times that
    between x . H y and y . H x, and 10 eps^(1/3) to central differences (1e-4 of the product in
    float64, 0.05 in float32).

    A kink between the two points, as of a ReLU where an input and a bias are zero, exceeds the last however
    right the product. It shows in differences on one side: of a smooth loss they are those on both.

        D+ = (g(theta + h x) - g(theta + h x / 2)) / (h / 2),  D- with -h
        kinks = max |D+- - D| / |H x - D|, at most 1        above 0.1 there are some

    Then the product is accepted if it is that of automatic differentiation of `loss`, to 100 eps sqrt(n).

    Raises ValueError that says what is not finite, or which of these failed and by how much.

    >>> check_operator(lambda v: 2 * v, jnp.ones(3), key=jax.random.key(0), loss=lambda p: p @ p).asymmetry
    0.0
    """
    flat, unravel = ravel_pytree(params)
    eps = float(jnp.finfo(flat.dtype).eps)
    x, y = jax.random.normal(key, (2, flat.size), flat.dtype)
    x, y = x / jnp.linalg.norm(x), y / jnp.linalg.norm(y)

    def product(v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def gradient(side):
        return finite(ravel_pytree(jax.grad(loss)(unravel(flat + side * x)))[0], "the gradient of the loss")

    def finite(vector, name):
        if not bool(jnp.all(jnp.isfinite(vector))):
            raise ValueError(f"{name} is not finite: look for NaN or infinity in an example or a parameter")
        return vector

    def check(value, limit, fault):
        if not value <= limit:  # NaN fails, too
            raise ValueError(
                f"the operator is {fault} differ by {value:.1e} of the product (limit {limit:.1e})"
            )
        return value

    hx, hy = (finite(product(v), "the product with the operator") for v in (x, y))
    size = float(jnp.maximum(jnp.linalg.norm(hx), jnp.linalg.norm(hy))) or 1.0

    def apart(a, b):
        return float(jnp.linalg.norm(a - b)) / size

    nondeterminism = check(apart(product(x), hx), 100 * eps, "not deterministic, two equal products")
    rounding = 100 * eps * flat.size**0.5
    asymmetry = check(abs(float(x @ hy - y @ hx)) / size, rounding, "not symmetric, x . H y and y . H x")
    if loss is None:
        return OperatorCheck(nondeterminism, asymmetry, None, None)

    h, limit = eps ** (1 / 3) * max(1.0, float(jnp.linalg.norm(flat))), 10 * eps ** (1 / 3)
    up, down = gradient(h), gradient(-h)
    slope, kinks = (up - down) / (2 * h), None
    difference = apart(hx, slope)
    if difference > limit:
        exact = ravel_pytree(hvp(loss, params, unravel(x)))[0]
        not_this = "not the Hessian of this loss, product and"
        check(apart(hx, exact), rounding, f"{not_this} automatic differentiation")
        one_sided = [(end - gradient(side)) / side for end, side in ((up, h / 2), (down, -h / 2))]
        kinks = min(1.0, max(apart(side, slope) for side in one_sided) / difference)
        if kinks < _KINKED:
            check(difference, limit, f"{not_this} central differences, without a kink,")
    return OperatorCheck(nondeterminism, asymmetry, difference, kinks)
