"""Minibatches against lists of all orders, their statistics, and exact arithmetic; tasks in sequence."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlf import losses
from dlf.data import batches, full_batch, in_sequence, minibatches
from dlf.types import Batch

KEY = jax.random.key(3)


def numbered(num_examples):
    """Examples that are their own numbers."""
    numbers = np.arange(num_examples)
    return Batch(np.stack([numbers, -numbers], axis=1).astype(np.float32), numbers)


def seen(batch_fn, steps):
    """The labels of some steps [steps, batch], of one program."""
    return np.asarray(jax.jit(jax.vmap(lambda step: batch_fn(step).labels))(jnp.asarray(steps, jnp.int32)))


def orders(num_examples, num_epochs, key=KEY):
    """The order of each epoch, as batches of everything are."""
    return seen(minibatches(numbered(num_examples), num_examples, key=key), np.arange(num_epochs))


@pytest.mark.parametrize("num_examples", [3, 97, 50_000])
def test_every_epoch_has_every_example_exactly_once(num_examples):
    found = orders(num_examples, 3)
    np.testing.assert_array_equal(np.sort(found, axis=1), [np.arange(num_examples)] * 3)


@pytest.mark.parametrize(
    "num_examples, batch_size, impl",
    [(1, 1, "threefry2x32"), (2, 1, "threefry2x32"), (13, 5, "rbg"), (16, 4, "threefry2x32")],
)
def test_batches_are_the_orders_end_to_end_or_without_their_ends(num_examples, batch_size, impl):
    train, key, num_epochs = numbered(num_examples), jax.random.key(3, impl=impl), 6
    whole = minibatches(train, num_examples, key=key)
    whole = np.stack([whole(epoch).labels for epoch in range(num_epochs)])
    np.testing.assert_array_equal(np.sort(whole, axis=1), [np.arange(num_examples)] * num_epochs)
    for drop_last in (False, True):
        used = whole[:, : num_examples - num_examples % batch_size] if drop_last else whole
        num_steps = used.size // batch_size
        batch_fn = minibatches(train, batch_size, drop_last=drop_last, key=key)
        found = jax.lax.map(batch_fn, jnp.arange(num_steps))
        np.testing.assert_array_equal(found.labels.ravel(), used.ravel()[: num_steps * batch_size])
        np.testing.assert_array_equal(found.inputs[..., 0], found.labels)
        np.testing.assert_array_equal(found.inputs[..., 1], -found.labels)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_steps_of_an_int32_are_exact(drop_last):
    num_examples, batch_size = 1009, 600
    batch_fn = minibatches(numbered(num_examples), batch_size, drop_last=drop_last, key=KEY)
    whole = jax.jit(minibatches(numbered(num_examples), num_examples, key=KEY))
    for step in (2**31 - 1, 2**31 - 2, 2**30 + 1):
        length = batch_size if drop_last else num_examples
        places = [divmod(batch_size * step + i, length) for i in range(batch_size)]  # Python's are exact
        order = {epoch: np.asarray(whole(jnp.asarray(epoch)).labels) for epoch, _ in places}
        expected = [order[epoch][place] for epoch, place in places]
        np.testing.assert_array_equal(seen(batch_fn, [step])[0], expected)


@pytest.mark.parametrize("factor, length", [(1, 1), (1, 2**30), (2**30, 2**30), (2**29 + 3, 2**30 - 1)])
def test_a_product_beyond_32_bits_is_divided_exactly(factor, length):
    for step in (0, 1, 2**30, 2**31 - 1):
        found = batches._divmod_of_product(factor, jnp.asarray(step).astype(jnp.uint32), length)
        assert tuple(map(int, found)) == divmod(factor * step, length)


@pytest.mark.parametrize("num_examples", [5, 6])  # an affine map reaches 20 of 120, and 12 of 720
def test_all_orders_of_a_small_set_are_as_frequent(num_examples):
    number = factorial(num_examples)
    found = orders(num_examples, 60 * number)
    _, counts = np.unique(found @ num_examples ** np.arange(num_examples), return_counts=True)
    assert len(counts) == number
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3


@pytest.mark.parametrize("num_examples", [37, 64])
def test_no_pair_of_places_is_tied(num_examples):
    found = orders(num_examples, 20_000)
    for place, other in ((0, 1), (5, 7), (1, 9), (3, 3 + num_examples // 2)):
        assert stats.chisquare(np.bincount(found[:, place], minlength=num_examples)).pvalue > 1e-4
        differences = (found[:, other] - found[:, place]) % num_examples
        assert stats.chisquare(np.bincount(differences, minlength=num_examples)[1:]).pvalue > 1e-4
    steps = (found[1:, 0] - found[:-1, 0]) % num_examples  # from one epoch to the next
    assert stats.chisquare(np.bincount(steps, minlength=num_examples)).pvalue > 1e-4


@pytest.mark.parametrize("num_examples", [50_000, 49_999])
def test_a_large_order_looks_random_and_changes_with_epoch_and_seed(num_examples):
    first, second = orders(num_examples, 2)
    (other,) = orders(num_examples, 1, jax.random.key(4))
    places = np.arange(num_examples)
    for a, b in ((places, first), (first, second), (first, other)):
        assert (a == b).sum() < 8  # one is expected of two random orders
        counts, *_ = np.histogram2d(a, b, bins=20)
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    for distance in (1, 2, 200, 250):  # 50,000 = 200 * 250 is how the network sees it
        differences = (first[distance:] - first[:-distance]) % num_examples
        counts, _ = np.histogram(differences, bins=50, range=(0, num_examples))
        assert stats.chisquare(counts).pvalue > 1e-3


def test_a_batch_depends_on_key_and_step_alone_in_both_precisions():
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            batch_fn = minibatches(numbered(50), 8, key=jax.random.key(7))
            found += [batch_fn(step).labels for step in (23, np.int64(23), jnp.asarray(23))]
            found += [jax.jit(batch_fn)(23).labels]
            assert batch_fn(23).inputs.dtype == np.float32
    for labels in found:
        np.testing.assert_array_equal(labels, found[0])


def largest(jaxpr):
    """The most elements of any value that a program computes, its parts included."""
    sizes = [0]
    for eqn in jaxpr.eqns:
        sizes += [getattr(var.aval, "size", 0) for var in eqn.outvars]
        parts = (getattr(value, "jaxpr", value) for value in jax.tree.leaves(list(eqn.params.values())))
        sizes += [largest(part) for part in parts if hasattr(part, "eqns")]
    return max(sizes)


def test_replicas_with_keys_of_their_own_share_the_data_and_no_step_has_work_of_its_size():
    train, keys = jax.tree.map(jnp.asarray, numbered(5_000)), jax.random.split(KEY, 3)

    def of_replica(key, step):
        return minibatches(train, 8, augment=lambda key, inputs: -inputs, key=key)(step)

    together = jax.vmap(of_replica, in_axes=(0, None))
    step = jnp.asarray(625)  # the first of an epoch
    for key, labels in zip(keys, together(keys, step).labels, strict=True):
        np.testing.assert_array_equal(labels, of_replica(key, step).labels)
    assert 3 * 8 * 2 <= largest(jax.make_jaxpr(together)(keys, step).jaxpr) < 5_000
    sorts = jax.make_jaxpr(lambda key: jax.random.permutation(key, 5_000))(KEY)
    assert largest(sorts.jaxpr) >= 5_000  # what the line before would see


def test_an_augmentation_has_a_key_for_each_step_and_sees_the_batch_alone():
    def noisy(key, inputs):
        assert inputs.shape == (5, 2)
        return inputs + jax.random.normal(key, inputs.shape, inputs.dtype)

    def rows(key=KEY, **settings):
        batch_fn = minibatches(numbered(13), 5, key=key, **settings)
        return jax.lax.map(batch_fn, jnp.arange(40))

    plain, found = rows(), rows(augment=noisy)
    np.testing.assert_array_equal(plain.labels, found.labels)
    noise = np.asarray(found.inputs - plain.inputs).reshape(40, -1)
    assert abs(noise.mean()) < 0.2 and noise.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.corrcoef(noise) - np.eye(40)).max() < 0.95  # no two steps have one draw
    np.testing.assert_array_equal(found.inputs, rows(augment=noisy).inputs)
    other = rows(jax.random.key(4), augment=noisy).inputs - rows(jax.random.key(4)).inputs
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(
    "augment, words",
    [(lambda key, x: x[:, 0], r"float32\[5\]"), (lambda key, x: x.astype(jnp.bfloat16), "bfloat16")],
    ids=["shape", "type"],
)
def test_an_augmentation_of_another_shape_or_type_is_refused(augment, words):
    with pytest.raises(ValueError, match=rf"augment must return float32\[5, 2\].* got {words}"):
        minibatches(numbered(13), 5, augment=augment, key=KEY)(0)


@pytest.mark.parametrize("batch_size", [0, -1, 14, True])
def test_an_impossible_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"from 1 to the number of examples, which is 13 .*{batch_size}$"):
        minibatches(numbered(13), batch_size, key=KEY)


def test_inputs_and_labels_of_different_numbers_and_sets_beyond_32_bits_are_refused():
    inputs, labels = numbered(13)
    with pytest.raises(ValueError, match="one number of examples"):
        minibatches(Batch(inputs, labels[:12]), 5, key=KEY)

    def labels_of(labels):
        return minibatches(Batch(labels, labels), 2**29, key=KEY)(0).labels

    assert jax.eval_shape(labels_of, jax.ShapeDtypeStruct((2**30,), np.int32)).shape == (2**29,)
    with pytest.raises(ValueError, match="2\\*\\*30"):
        jax.eval_shape(labels_of, jax.ShapeDtypeStruct((2**30 + 1,), np.int32))


@pytest.mark.parametrize("name", losses.__all__)
def test_a_class_that_a_batch_lacks_is_no_fault(x64, name):
    train = Batch(jnp.linspace(-1, 1, 12).reshape(6, 2), jnp.arange(6) // 2)
    batch_fn = minibatches(train, 1, key=KEY)  # two of three classes are always missing
    loss_fn = losses.make_loss(
        lambda params, inputs: inputs @ params,
        getattr(losses, name),
        lambda step: jnp.asarray([2.0, 0.5, 0.5]),
    )
    params = jnp.linspace(-1, 1, 6).reshape(2, 3)
    for step in range(6):
        of_step = jax.value_and_grad(loss_fn)(params, batch_fn(step), jnp.asarray(step))
        assert all(np.isfinite(leaf).all() for leaf in of_step)


@pytest.mark.parametrize("steps, starts", [(4, (0, 4, 8)), ((2, 5, 1), (0, 2, 7))])
def test_tasks_follow_each_other_by_their_own_steps_and_the_last_stays(x64, steps, starts):
    whole = numbered(5)

    def drawn_by(task):
        def batch_fn(step):
            return whole._replace(labels=whole.labels + 100 * task + jnp.asarray(step).astype(int))

        return batch_fn

    drawn = [drawn_by(1), drawn_by(2)]
    batch_fn = in_sequence([*drawn, whole], steps)
    found = jax.lax.map(batch_fn, jnp.arange(12, dtype=jnp.int32))
    for step, labels in enumerate(found.labels):
        task = max(i for i, start in enumerate(starts) if start <= step)
        expected = [*drawn, full_batch(whole)][task](step - starts[task])
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_array_equal(batch_fn(step).labels, labels)
    np.testing.assert_array_equal(batch_fn(jnp.asarray(2**31 - 1, jnp.int32)).labels, whole.labels)


def test_minibatches_of_tasks_of_different_sizes_are_a_sequence():
    tasks = [minibatches(numbered(n), 3, key=KEY) for n in (7, 11)]
    found = seen(in_sequence(tasks, 4), np.arange(8))
    np.testing.assert_array_equal(found, np.concatenate([seen(task, np.arange(4)) for task in tasks]))


@pytest.mark.parametrize(
    "tasks, steps",
    [([], 3), ([5, 5], 0), ([5, 5], (1,)), ([5, 5], (1, 0)), ([5, 5], True), ([5, 5], 2**30), ([5], -1)],
    ids=str,
)
def test_impossible_sequences_are_refused(tasks, steps):
    with pytest.raises(ValueError, match="in_sequence needs tasks"):
        in_sequence([numbered(n) for n in tasks], steps)


def test_tasks_of_different_shapes_or_types_are_refused_in_one_line():
    inputs, labels = numbered(5)
    for other in (numbered(6), Batch(inputs.astype(np.float16), labels), Batch(inputs[:, :1], labels)):
        with pytest.raises(ValueError, match=r"one shape and type, got .*float32\[5, 2\]") as error:
            in_sequence([Batch(inputs, labels), full_batch(other)], 3)
        assert "\n" not in str(error.value)
