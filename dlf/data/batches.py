"""What a step sees of a data set: pure functions of the step, so that a resume sees the same."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf.data.augmentations import chain
from dlf.schedules import as_step
from dlf.types import Batch, BatchFn, Inputs

__all__ = ["lists_in_sequence", "minibatches"]  # what a config names; without one a step sees the full batch


def full_batch(batch: Batch) -> BatchFn:
    """Return the whole batch at every step.

    >>> from dlf.data import spiral
    >>> full_batch(spiral().train)(3).labels.shape
    (300,)
    """
    return lambda step: batch


def minibatches(
    train: Batch,
    batch_size: int,
    *,
    drop_last: bool = False,
    augment: Callable[[Array, Inputs], Inputs] | Sequence[Mapping[str, Any] | str] | None = None,
    key: Array,
) -> BatchFn:
    """Return `batch_size` examples a step, drawn without replacement, in another order every epoch.

        step t sees examples pi_e(n mod P) of epoch e = n // P,   n = B t, ..., B t + B - 1

    The orders pi_e are laid end to end, so that each epoch has each of the P examples exactly once and
    all batches have B: where B does not divide P, the last batch of an epoch takes its rest from the next.
    With `drop_last` the last P mod B examples of each order are left out instead, and no batch is of two
    epochs. The order is no list: only the places of one batch are worked out, in O(B).

    `augment(key, inputs) -> inputs` of the same shape and type is applied to the batch, with a key of its
    own for each step; or it is a tuple of augmentations by name, see `dlf.data.augmentations`. Of `key` alone
    depend both: replicas with other keys share one `train`.

    Raises ValueError for a batch size that is no int from 1 to P, inputs and labels of different
    numbers, or more than 2^30 examples; when it is called, for an augmentation of another shape or type.

    >>> from dlf.data import spiral
    >>> batch_fn = minibatches(spiral().train, 75, key=jax.random.key(0))
    >>> jnp.bincount(jnp.concatenate([batch_fn(step).labels for step in range(4)])).tolist()
    [100, 100, 100]
    """
    train = jax.tree.map(jnp.asarray, train)
    numbers = {leaf.shape[:1] for leaf in jax.tree.leaves(train)}
    if len(numbers) != 1 or () in numbers:
        raise ValueError(f"inputs and labels must be of one number of examples, got {sorted(numbers)}")
    ((num_examples,),) = numbers
    if type(batch_size) is not int or not 1 <= batch_size <= num_examples <= 2**30:
        raise ValueError(
            f"batch_size must be an int from 1 to the number of examples, which is {num_examples} "
            f"and may be 2**30, got {batch_size!r}"
        )
    if augment is not None and not callable(augment):
        augment = chain(augment)
    length = num_examples - (num_examples % batch_size if drop_last else 0)
    order_key, augment_key = jax.random.split(key)

    def batch_fn(step) -> Batch:
        step = as_step(step).astype(jnp.uint32)
        rows = _rows(order_key, step, batch_size, length, num_examples)
        # in bounds, as a permutation is: nothing to check
        batch = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), train)
        if augment is None:
            return batch
        inputs = augment(jax.random.fold_in(augment_key, step), batch.inputs)
        if (found := _type(lambda: inputs)) != (expected := _type(lambda: batch.inputs)):
            raise ValueError(f"augment must return {expected}, as it is given, got {found}")
        return batch._replace(inputs=inputs)

    return batch_fn


def in_sequence(tasks: Sequence[Batch | BatchFn], steps_per_task: int | tuple[int, ...]) -> BatchFn:
    """Return the batches of one task after another, and from its turn on those of the last.

    Each task counts its own steps: its first batch is that of its step 0. One that comes twice shows
    the same batches twice, unless they are drawn with two keys. A task that is a Batch is copied at each
    step: of a large one give `minibatches`.

    Raises ValueError without tasks, for steps that are not a positive int (or a tuple, one a task), or
    for batches of different shapes or types.

    >>> from dlf.data import spiral
    >>> train, test, _ = spiral()
    >>> batch_fn = in_sequence([train, test], 100)
    >>> [bool((batch_fn(step).inputs == test.inputs).all()) for step in (99, 100, 5000)]
    [False, True, True]
    """
    batch_fns = [full_batch(task) if isinstance(task, Batch) else task for task in tasks]
    steps = steps_per_task if isinstance(steps_per_task, tuple) else (steps_per_task,) * len(batch_fns)
    wrong = any(type(n) is not int or n < 1 for n in steps) or sum(steps) >= 2**31
    if wrong or not batch_fns or len(steps) != len(batch_fns):
        raise ValueError(
            "in_sequence needs tasks, and steps_per_task a positive int or a tuple of one for each, "
            f"below 2**31 in all; got {len(batch_fns)} tasks and {steps_per_task!r}"
        )
    first, *others = (_type(batch_fn, jnp.zeros((), jnp.int32)) for batch_fn in batch_fns)
    for other in others:
        if other != first:
            raise ValueError(f"tasks must have batches of one shape and type, got {first} and {other}")

    def batch_fn(step) -> Batch:
        step = as_step(step)
        starts = jnp.asarray(list(accumulate((0, *steps[:-1]))), step.dtype)
        task = (step >= starts).sum() - 1
        return jax.lax.switch(task, batch_fns, step - starts[task])

    return batch_fn


def lists_in_sequence(train: Batch, batch_size: int, num_epochs: tuple[int, ...], *, key: Array) -> BatchFn:
    """Return minibatches of one list of the training set after another, each for so many epochs.

    Lists are runs of examples of equal size whose labels begin with its number, as `dlf.data.facts` has them:
    as many as there are `num_epochs`. The last one goes on. Order and errors as of `minibatches`, each list
    with a key of its own.

    Raises ValueError for another number of lists than the labels tell (where they are known), or a batch size
    that does not divide a list.

    >>> from dlf.data import facts
    >>> batch_fn = lists_in_sequence(facts().train, 1, (2, 1), key=jax.random.key(0))
    >>> [int(batch_fn(step).labels[0, 0]) for step in (0, 33, 34, 99)]
    [0, 0, 1, 1]
    """
    num, num_lists = len(train.labels), len(num_epochs) if isinstance(num_epochs, tuple) else 0
    size, rest = divmod(num, max(1, num_lists))
    counted = num_lists and all(type(n) is int and n >= 1 for n in num_epochs)
    if not counted or rest or type(batch_size) is not int or batch_size < 1 or size % batch_size:
        raise ValueError(
            "num_epochs must be a tuple of one positive int for each list, and batch_size a positive int "
            f"that divides a list, got {num_epochs} and {batch_size} for {num} examples"
        )
    if not isinstance(train.labels, jax.core.Tracer):
        lists = np.asarray(train.labels).reshape(num_lists, size, -1)[..., 0]
        if (lists != lists[:, :1]).any() or len(np.unique(lists)) != num_lists:
            found = f"{num_lists} for {len(np.unique(lists))} lists"
            raise ValueError(f"num_epochs must be one positive int for each list, got {found}")

    def part(number: int) -> Batch:
        return jax.tree.map(lambda x: x[number * size : (number + 1) * size], train)

    tasks = [
        minibatches(part(number), batch_size, key=jax.random.fold_in(key, number))
        for number in range(len(num_epochs))
    ]
    return in_sequence(tasks, tuple(n * (size // batch_size) for n in num_epochs))


def _type(function: Callable, *args: Array) -> str:
    of = jax.eval_shape(function, *args)
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", of))


def _divmod_of_product(factor: int, step: Array, length: int) -> tuple[Array, Array]:
    """Return divmod(factor * step, length) for factor <= length <= 2^30, where the product overflows."""
    quotient = rest = jnp.zeros_like(step)
    for bit in f"{factor:b}":  # long multiplication
        carry, rest = jnp.divmod(2 * rest + int(bit) * step, length)
        quotient = 2 * quotient + carry
    return quotient, rest


@partial(jax.jit, static_argnums=(2, 3, 4))  # or each call from Python would compile it anew
def _rows(key: Array, step: Array, batch_size: int, length: int, num_examples: int) -> Array:
    """Return the examples of one step, of orders of which `length` places are used."""
    epoch, place = _divmod_of_product(batch_size, step, length)
    # the sides of the network's pairs, of which the fewest are no examples; within a factor of four
    root = math.isqrt(num_examples)
    a = min(range(max(2, root // 2), max(2, root) + 1), key=lambda a: (-num_examples % a, -a))
    # a pair of places remembers its difference with a probability of a^(-rounds / 2): of 1 / 4096 at most
    num_rounds = max(8, 2 * math.ceil(12 / math.log2(a)))
    # one by one: a generator need not give the same numbers in a vmap
    keys = (jax.random.fold_in(key, epoch + i) for i in (0, 1))
    now, then = (jax.random.bits(key, (num_rounds,), jnp.uint32) for key in keys)
    places = place + jnp.arange(batch_size, dtype=jnp.uint32)
    is_next = places >= length
    round_keys = [jnp.where(is_next, *pair) for pair in zip(then, now, strict=True)]
    return _permuted(round_keys, jnp.where(is_next, places - length, places), num_examples, a)


def _permuted(round_keys: Sequence[Array], places: Array, size: int, a: int) -> Array:
    """Map places in range(size) to examples, one to one for each choice of round keys [rounds, places].

    A Feistel network on pairs (l, r) of range(a) x range(b): in turn l += f(r) mod a and r += f(l) mod b,
    which can be undone whatever f. A result beyond `size` goes through it again, until it is inside.

    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains (the generalised network, cycle
    walking). f is the hash "lowbias32" of Chris Wellons' hash-prospector.
    """
    b = -(-size // a)

    def through(pairs: Array) -> Array:
        right, left = jnp.divmod(pairs, a)
        for even, odd in zip(round_keys[::2], round_keys[1::2], strict=True):
            left = _add(left, _hash(right + even), a)
            right = _add(right, _hash(left + odd), b)
        return left + a * right

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        pairs, inside = carry
        pairs = jnp.where(inside, pairs, through(pairs))
        return pairs, pairs < size

    return jax.lax.while_loop(lambda carry: ~carry[1].all(), again, (places, places < 0))[0]


def _add(value: Array, words: Array, modulus: int) -> Array:
    total = value + ((words >> 16) * modulus >> 16)  # a word scaled to range(modulus): no division
    return jnp.where(total < modulus, total, total - modulus)


def _hash(words: Array) -> Array:
    words = (words ^ (words >> 16)) * 0x7FEB352D
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return words ^ (words >> 16)
