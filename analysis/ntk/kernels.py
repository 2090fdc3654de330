"""The forms of the empirical NTK, dense and as an operator, from the factors of two blocks of examples."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from analysis.linear_maps import as_pytree, precise
from analysis.ntk.factors import jacobian_factors, rooted_logits
from analysis.parts import check_batch_size, check_network, checked_logits
from dlf.derivatives import tangent
from dlf.types import ApplyFn, Inputs, Matvec, Params

Gamma = Float[Array, "examples ..."] | None  # the weight of each example, or of each of its outputs


@precise
def empirical_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Inputs, *, weights: Gamma = None, batch_size: int | None = None
) -> Float[Array, "examples examples"]:
    """Return the empirical NTK, traced over the logits and divided by their number.

        Theta(x, x') = (1/C) sum_c grad_theta f_c(x) . grad_theta f_c(x')

    Symmetric, positive semi-definite up to rounding. If every parameter belongs to a dense layer
    y = h W + b of flax or of ours, called once, gradients are outer products and never formed:

        Theta(x, x') = (1/C) sum_layers (h(x) . h(x') + 1) sum_c delta_c(x) . delta_c(x')
        delta_c = d f_c / d y,   no + 1 without a bias

    Any other network costs its Jacobian, [examples, classes, parameters]. The other kernels are built the
    same way. `weights` per example only.

    Source: the default of `empirical_ntk_fn` in neural-tangents, which Ruiz-Garcia et al. 2021
    (arXiv 2102.03793) used; by layers: Novak et al. 2022 (arXiv 2206.08720), structured derivatives.

    >>> x = jnp.asarray([[1.0], [2.0]])
    >>> empirical_ntk(lambda w, x: x @ w, jnp.ones((1, 3)), x).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """

    def contract(rows, columns):
        # The classes' products are added one by one: their sum along an axis crashes the compiler of
        # jaxlib 0.10.1 on CPU, in float32 from 128 examples on.
        layers = zip(rows, columns, strict=True)
        return sum(h @ k.mT * reduce(jnp.add, d @ e.mT) for (h, d), (k, e) in layers) / len(rows[0][1])

    return _kernel(contract, apply_fn, params, inputs, weights, batch_size, per_output=False)


@precise
def full_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Inputs, *, weights: Gamma = None, batch_size: int | None = None
) -> Float[Array, "rows rows"]:
    """Return the full empirical NTK J J^T, the logits of one example side by side.

        Theta[C x + c, C x' + d] = Theta_cd(x, x')        not divided; `weights` per example or per output

    >>> full_ntk(lambda w, x: x @ w, jnp.ones((1, 2)), jnp.asarray([[1.0], [2.0]])).tolist()
    [[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 2.0], [2.0, 0.0, 4.0, 0.0], [0.0, 2.0, 0.0, 4.0]]
    """

    def contract(rows, columns):
        layers = zip(rows, columns, strict=True)
        kernel = sum(
            (h @ k.mT)[:, None, :, None] * jnp.einsum("cpk,dqk->pcqd", d, e) for (h, d), (k, e) in layers
        )
        return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)

    return _kernel(contract, apply_fn, params, inputs, weights, batch_size, per_output=True)


@precise
def per_class_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Inputs, *, weights: Gamma = None, batch_size: int | None = None
) -> Float[Array, "classes examples examples"]:
    """Return the empirical NTK of each logit; their mean is the traced kernel.

        Theta[c, x, x'] = Theta_cc(x, x')        `weights` per example or per output

    >>> per_class_ntk(lambda w, x: x @ w, jnp.ones((1, 2)), jnp.asarray([[1.0], [2.0]])).tolist()
    [[[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0], [2.0, 4.0]]]
    """

    def contract(rows, columns):
        return sum((h @ k.mT)[None] * (d @ e.mT) for (h, d), (k, e) in zip(rows, columns, strict=True))

    return _kernel(contract, apply_fn, params, inputs, weights, batch_size, per_output=True)


@precise
def diagonal_ntk(
    apply_fn: ApplyFn, params: Params, inputs: Inputs, *, weights: Gamma = None, batch_size: int | None = None
) -> Float[Array, " examples"]:
    """Return the diagonal Theta(x, x) of `empirical_ntk` without the kernel; `weights` per example only.

    >>> diagonal_ntk(lambda w, x: x @ w, jnp.ones((1, 3)), jnp.asarray([[1.0], [2.0]])).tolist()
    [1.0, 4.0]
    """
    roots = _checked_roots(apply_fn, params, inputs, weights, batch_size, per_output=False)
    factors = jacobian_factors(apply_fn, params, inputs)

    def squares(block):
        rows = factors(*block)
        return sum((h * h).sum(1) * (d * d).sum((0, 2)) for h, d in rows) / len(rows[0][1])

    if batch_size is None:
        return squares((inputs, roots))
    return jax.lax.map(squares, _split((inputs, roots), batch_size)).reshape(-1)[: len(inputs)]


def ntk_operator(
    apply_fn: ApplyFn, params: Params, inputs: Inputs, *, weights: Gamma = None, batch_size: int | None = None
) -> Matvec:
    """Return the full kernel as a map of vectors shaped as the logits, for `top_eigenpairs`.

        v -> W^{1/2} J J^T W^{1/2} v        one vjp and one jvp: neither kernel nor Jacobian

    `weights` per example or per output. With a `batch_size` both passes take so many examples at a
    time, and memory is one block's activations.

    >>> matvec = ntk_operator(lambda w, x: x @ w, jnp.ones((1, 2)), jnp.asarray([[1.0], [2.0]]))
    >>> matvec(jnp.asarray([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[3.0, 2.0], [6.0, 4.0]]
    """
    roots = _checked_roots(apply_fn, params, inputs, weights, batch_size, per_output=True)
    blocks = _split((inputs, roots), len(inputs) if batch_size is None else batch_size)
    return Partial(_product, as_pytree(apply_fn), params, blocks)


@jax.jit
@precise
def _product(apply_fn, params, blocks, v):
    num_blocks, size = blocks[0].shape[:2]
    rows = v.reshape(len(v), -1)
    padded = jnp.pad(rows, ((0, num_blocks * size - len(v)), (0, 0)))  # zeros add nothing to J^T v

    def logits(block):
        return lambda p: jax.vmap(partial(rooted_logits, apply_fn, p))(*block)

    def pull(total, block_and_part):
        block, part = block_and_part
        return jax.tree.map(jnp.add, total, jax.vjp(logits(block), params)[1](part)[0]), None

    parts = padded.reshape(num_blocks, size, -1)
    u, _ = jax.lax.scan(pull, jax.tree.map(jnp.zeros_like, params), (blocks, parts))
    images = jax.lax.map(lambda block: tangent(logits(block), params, u)[1], blocks)
    return images.reshape(padded.shape)[: len(v)].reshape(v.shape)


def _checked_roots(apply_fn, params, inputs, weights, batch_size, per_output):
    """Return the square roots of the weights, None without weights."""
    num_examples = len(inputs)
    if num_examples == 0:
        raise ValueError("inputs are empty: a kernel needs at least one example")
    check_batch_size(batch_size, num_examples)
    logits = jax.eval_shape(partial(checked_logits, apply_fn), params, inputs[:1])
    check_network(apply_fn, params, inputs)
    if weights is None:
        return None
    shapes, hint = [(num_examples,)], "; weights per output need the full or the per-class kernel"
    if per_output:
        shapes.append((num_examples, logits.size))
        hint = ""
    if weights.shape not in shapes:
        shape = " or ".join(map(str, shapes))
        raise ValueError(f"weights must have the shape {shape}, got {weights.shape}{hint}")
    return jnp.sqrt(weights)


def _split(arrays, size):
    """Cut arrays [examples, ...] into [blocks, size, ...]; copies of the last example fill up."""

    def split(x):
        x = jnp.pad(x, ((0, -len(x) % size), *[(0, 0)] * (x.ndim - 1)), mode="edge")
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, arrays)


def _kernel(contract, apply_fn, params, inputs, weights, batch_size, per_output):
    """Fill the kernel of the examples, whose last two axes are theirs, by blocks."""
    examples = inputs, _checked_roots(apply_fn, params, inputs, weights, batch_size, per_output)
    factors, num_examples = jacobian_factors(apply_fn, params, inputs), len(inputs)
    if batch_size is None:
        rows = factors(*examples)
        return contract(rows, rows)

    def block(i):  # slices start early enough to be whole, so the last two may overlap
        start = i * batch_size
        return factors(*jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, batch_size), examples))

    def put(kernel, part, i, j):
        corner = (0,) * (part.ndim - 2) + (i * part.shape[-2], j * part.shape[-1])
        return jax.lax.dynamic_update_slice(kernel, part, corner)

    def fill_row(i, kernel):
        rows = block(i)

        def fill(j, kernel):
            part = contract(rows, block(j))
            return put(put(kernel, part, i, j), part.mT, j, i)

        return jax.lax.fori_loop(0, i + 1, fill, kernel)

    part = jax.eval_shape(lambda: contract(block(0), block(0)))
    num_rows = part.shape[-1] // batch_size * num_examples
    kernel = jnp.zeros((*part.shape[:-2], num_rows, num_rows), part.dtype)
    return jax.lax.fori_loop(0, -(-num_examples // batch_size), fill_row, kernel)
