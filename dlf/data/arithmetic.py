"""Additions: the facts of a table in a coarse code, and numbers in binary.

A label is a row: the number of the list that an example is on, from 0, and a target for each output. The
lists are the classes of a loss that moves.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from dlf.types import Batch, Dataset

__all__ = ["binary_addition", "facts"]

_NAMES = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
_PLUS = (1, 1, 0, 0)  # the pattern of the operation
_HIGH, _LOW = 0.9, 0.1


def _tables(tables: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return the facts of each table: 1 + k to 9 + k and k + 1 to k + 9, k + k once."""
    known = isinstance(tables, Sequence) and all(type(k) is int and 1 <= k <= 9 for k in tables)
    if not known or not tables or len({*tables}) < len(tables):
        raise ValueError(
            f"tables must be a tuple of different ints from 1 to 9, at least one, got {tables!r}"
        )
    return [
        list(dict.fromkeys([(i, k) for i in range(1, 10)] + [(k, i) for i in range(1, 10)])) for k in tables
    ]


def _dataset(tables, code, also) -> Dataset:
    """Return the facts of all tables, list after list, and each list without the facts of the others."""
    lists = _tables(tables)

    def batch(of, number) -> Batch:
        inputs, targets = code(np.asarray(of))
        labels = np.column_stack([np.full(len(of), number), targets])
        return Batch(jnp.asarray(inputs, float), jnp.asarray(labels, float))

    parts = [batch(of, number) for number, of in enumerate(lists)]
    tests = {}
    for number, (k, of) in enumerate(zip(tables, lists, strict=True)):
        others = {pair for other in lists if other is not of for pair in other}
        tests[_NAMES[k]] = batch([pair for pair in of if pair not in others], number)
    for name, pairs in also.items():
        tests[name] = batch(pairs, 0)
    train = Batch(*(jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    return Dataset(train, tests, len(lists))


def coarse(numbers: np.ndarray) -> np.ndarray:
    """Return twelve units a number, of which n switches on those from n to n + 2.

    Raises ValueError for a number that is not from 0 to 9.

    >>> coarse(np.asarray([3]))[0].tolist()
    [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    if numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers <= 9)).all():
        found = f"{numbers.dtype} from {numbers.min()} to {numbers.max()}" if numbers.size else "none"
        raise ValueError(f"the code has units for 0 to 9, whole numbers, got {found}")
    units = np.arange(12) - numbers[..., None]
    return ((units >= 0) & (units < 3)).astype(int)


def facts(tables: Sequence[int] = (1, 2)) -> Dataset:
    """Return the 17 additions of each table: 28 inputs (two numbers and "+"), 24 outputs (tens and ones).

    The training set is table after table. Test sets are "ones", "twos" and so on, each without what is in
    another table, and "all", the hundred additions of two digits. Targets are .9 and .1.

    Raises ValueError for tables that are not different ints from 1 to 9.

    Source: McCloskey and Cohen 1989; the pattern of "+" is ours.

    >>> train, tests, num_lists = facts()
    >>> train.inputs.shape, train.labels.shape, tests["ones"].labels.shape, num_lists
    ((34, 28), (34, 25), (15, 25), 2)
    """

    def code(pairs):
        operation = np.broadcast_to(_PLUS, (len(pairs), len(_PLUS)))
        inputs = np.concatenate([coarse(pairs[:, 0]), coarse(pairs[:, 1]), operation], axis=1)
        tens, ones = np.divmod(pairs.sum(axis=1), 10)
        return inputs, np.where(np.concatenate([coarse(tens), coarse(ones)], axis=1), _HIGH, _LOW)

    return _dataset(tables, code, {"all": [(a, b) for a in range(10) for b in range(10)]})


def binary(
    pairs: Integer[np.ndarray, "pairs 2"], num_bits: int
) -> tuple[Integer[np.ndarray, "pairs places 2"], Integer[np.ndarray, "pairs places"]]:
    """Return pairs of numbers in binary, least bit first with a place more for the carry, and their sums.

    >>> bits, digits = binary(np.asarray([[1, 3]]), 2)
    >>> bits[0].T.tolist(), digits[0].tolist()
    ([[1, 0, 0], [1, 1, 0]], [0, 0, 1])
    """
    places = np.arange(num_bits + 1)
    return pairs[:, None, :] >> places[:, None] & 1, pairs.sum(axis=1)[:, None] >> places & 1


def binary_addition(num_bits: int = 5, tables: Sequence[int] = ()) -> Dataset:
    """Return additions of two numbers in binary, least bit first: [examples, bits + 1, 2], and their digits.

    The last place is empty, for the carry. The training set holds all pairs of numbers of `num_bits` bits, or
    table after table, with test sets as those of `facts`; the test set "pairs" holds all pairs.

    Raises ValueError for no bits or more than 10, numbers of tables that do not fit, and as `facts` does.

    >>> train, tests, _ = binary_addition(2)
    >>> train.inputs[7].T.astype(int).tolist(), train.labels[7].astype(int).tolist()  # 1 + 3 = 4
    ([[1, 0, 0], [1, 1, 0]], [0, 0, 0, 1])
    """
    if type(num_bits) is not int or not 1 <= num_bits <= 10:
        raise ValueError(f"num_bits must be an int from 1 to 10, got {num_bits!r}")

    def code(pairs):
        if pairs.max() >= 2**num_bits:
            raise ValueError(f"num_bits={num_bits} hold numbers below {2**num_bits}, got {pairs.max()}")
        return binary(pairs, num_bits)

    numbers = range(2**num_bits)
    pairs = [(a, b) for a in numbers for b in numbers]
    if tables:
        return _dataset(tables, code, {"pairs": pairs})
    inputs, targets = code(np.asarray(pairs))
    labels = np.column_stack([np.zeros(len(pairs)), targets])
    of = Batch(jnp.asarray(inputs, float), jnp.asarray(labels, float))
    return Dataset(of, {"pairs": of}, 1)
