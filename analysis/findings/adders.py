"""What networks of clauses have learned of addition, and what two lists of facts can teach them."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from dlf import outputs
from dlf.data import arithmetic
from dlf.types import Model, Params


def longer_numbers(model: Model, learned: Sequence[Params], bits: Iterable[int]) -> xr.Dataset:
    """Return what networks of clauses have learned, and the share of right additions of longer numbers.

    `clause` [network, of, carry, bit_a, bit_b], sigma of the parameters; `longer_share` [bits, network].
    """
    rng, shares = np.random.default_rng(0), []
    of_all = jax.tree.map(lambda *leaves: jnp.stack(leaves), *learned)

    @jax.jit
    def right(inputs, labels):
        logits = jax.vmap(model.apply, in_axes=(0, None, None))(of_all, (), inputs)
        return jax.vmap(outputs.right_side, in_axes=(0, None))(logits, labels).mean(axis=1)

    for num in (bits := list(bits)):
        bits_of, digits = arithmetic.binary(rng.integers(0, 2**num, (200, 2)), num)
        labels = jnp.asarray(np.column_stack([np.zeros(len(digits)), digits]), float)
        shares.append(np.asarray(right(jnp.asarray(bits_of, float), labels), float))
    tables = [[1 / (1 + np.exp(-np.asarray(p[name]))) for name in ("digit", "carry")] for p in learned]
    return xr.Dataset(
        {
            "clause": (("network", "of", "carry", "bit_a", "bit_b"), np.asarray(tables)),
            "longer_share": (("bits", "network"), np.asarray(shares)),
        },
        {"of": ["digit", "carry"], "bits": bits},
    )


def bound(num_bits: int = 5) -> float:
    """Return the share of all pairs that never meet the clause (1, 1, carry 1), by counting.

    >>> round(bound(), 3)
    0.708
    """
    numbers = np.arange(2**num_bits)
    a, b = np.meshgrid(numbers, numbers)
    carry, met = np.zeros_like(a), np.zeros(a.shape, bool)
    for place in range(num_bits):
        of = (a >> place & 1) + (b >> place & 1) + carry
        met |= of == 3
        carry = of // 2
    return float(1 - met.mean())
