"""What a run records is what one labelled data set can hold: the rest is refused when the run is built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf import recording
from dlf.types import Probe, Series
from experiments import train
from experiments.command_line import ConfigError
from experiments.configs import tiny

PROBE = """
import jax.numpy as jnp
from dlf.types import Probe, Series

def probe(problem, {every}):
    def measure(carry, state):
        return carry, {{{name!r}: {value}}}
    return Probe(every, lambda state: (), measure, {{{name!r}: {series}}})
"""
SOUND = dict(every="every", name="q", value="jnp.ones(2)", series="Series(('x',), '1', 'a pair')")
ROW = "Series((), '1', 'a number')"
BAD = {
    "every of zero": (dict(every="every=0"), "every must be a whole number of steps of at least 1, got 0"),
    "a negative every": (dict(every="every=-1"), "of at least 1, got -1"),
    "a broken every": (dict(every="every=2.5"), "of at least 1, got 2.5"),
    "no every": (dict(every="every=None"), "of at least 1, got None"),
    "every beyond an int32": (dict(every="every=2**40"), "of at least 1, got"),
    "a step of others": (dict(series="Series(('step',), '1', '')"), "step is the name"),
    "its own step": (dict(series="Series(('own_step',), '1', '')"), "own_step is the name"),
    "a series as a dimension": (dict(series="Series(('loss',), '1', '')"), "loss is the name"),
    "its own name as a dimension": (dict(series="Series(('q',), '1', '')"), "q is the name"),
    "a number as a dimension": (dict(series="Series((1,), '1', '')"), "letters, digits, _"),
    "a word for dimensions": (dict(series="Series('x', '1', '')"), "letters, digits, _"),
    "no series": (dict(series="('x',)"), "must be a Series"),
    "a number as a name": (dict(name=1), "letters, digits, _"),
    "a step as a name": (dict(name="own_step", value="jnp.ones(())", series=ROW), "own_step is the name"),
    "a dimension as a name": (dict(name="class", value="jnp.ones(())", series=ROW), "class is the name"),
    "a name with a slash": (dict(name="a/b", value="jnp.ones(())", series=ROW), "letters, digits, _"),
    "an empty name": (dict(name="", value="jnp.ones(())", series=ROW), "letters, digits, _"),
    "more classes": (dict(value="jnp.ones(8)", series="Series(('class',), '1', '')"), "'class' has 8 labels"),
    "one twice": (dict(value="jnp.ones((2, 3))", series="Series(('x', 'x'), '1', '')"), "q is [2, 3] when"),
    "another rank": (dict(value="jnp.ones(())"), "q is [] when measured, but has the dimensions ('x',)"),
    "nothing": (dict(value="jnp.ones(0)"), "of 32 or 64 bits and not empty, got float64[0]"),
    "half precision": (dict(value="jnp.ones(2, 'bfloat16')"), "and not empty, got bfloat16[2]"),
    "complex numbers": (dict(value="jnp.ones(2, complex)"), "and not empty, got complex128[2]"),
    "whole numbers": (dict(value="jnp.ones(2, int)"), "and not empty, got int64[2]"),
    "units that are no words": (dict(series="Series(('x',), {'1'}, '')"), "description must be words"),
}  # fmt: skip


def run(tmp_path, **given):
    file = tmp_path / "own.py"
    file.write_text(PROBE.format(**SOUND | given))
    config = tiny.get_config()
    config.update(num_steps=4, steps_per_chunk=2, stop_after=2)
    own = dict(name=f"{file}:probe") | (dict(every=2) if "every" not in given else {})
    with config.unlocked():
        config.probes = dict(own=own)
    return train.train(config, tmp_path / "run")


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(name, float64, tmp_path):
    given, words = BAD[name]
    with pytest.raises(ConfigError) as error:
        run(tmp_path, **given)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_can_be_stored_is(float64, tmp_path):
    assert run(tmp_path)["status"] == "done"


def test_only_ranks_may_differ_in_number():
    sizes = {"few": 2, "many": 5}
    for dim, is_sound in (("rank", True), ("class", False)):
        series = {name: Series((dim,), "1", "", shape=(size,)) for name, size in sizes.items()}
        if is_sound:
            recording.check_names(series)
        else:
            with pytest.raises(ValueError, match="'class' has 5 labels in many, 2 in few: rename one"):
                recording.check_names(series)


@pytest.mark.parametrize("looks", [False, True])
def test_infinity_is_a_measurement_also_while_jax_looks_for_nan(looks, x64):
    def measure(carry, state):
        return carry, {"q": jnp.full((), jnp.inf) * (1 - 2 * (state % 2)).astype(float)}

    probe = Probe(2, lambda state: (), measure, {"q": Series((), "1", "")})
    with jax.debug_nans(looks):
        rows = {
            "q": [probe.measure((), step)[1]["q"] for step in jnp.arange(2)],
            "gap": recording.missing((2,), jnp.result_type(float)),
        }
        found = recording.with_gaps({name: np.asarray(of) for name, of in rows.items()})
    assert found["q"].tolist() == [np.inf, -np.inf] and np.isnan(found["gap"]).all()
