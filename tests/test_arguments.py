"""What a program takes as arguments and own functions get as tracers, and numbers that would not fit."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from dlf import data, models
from dlf.types import Batch, Dataset
from experiments import build, train
from experiments.command_line import ConfigError
from experiments.configs import tiny

TRACED = """
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlf import data
from dlf.types import Probe, Series

def opt(learning_rate):
    return optax.sgd(float(learning_rate))

def wave(num_classes, amplitude):
    high = 1.2 if amplitude > 1 else 1.0
    return lambda step: jnp.asarray([high, 2 - high, 1.0])

def balanced(train, key):
    rows = np.flatnonzero(np.asarray(train.labels) == 0)
    return lambda step: jax.tree.map(lambda x: x[rows], train)

def seeded(train, key):
    return data.minibatches(train, int(jax.random.key_data(key)[-1]) % 3 + 1, key=key)

def early(problem, every):
    mean = np.asarray(problem.train.inputs).mean()
    return Probe(every, lambda state: (), lambda carry, state: (carry, {"m": jnp.asarray(mean)}),
                 {"m": Series((), "1", "mean")})

def late(problem, every):
    def measure(carry, state):
        return carry, {"m": jnp.asarray(np.asarray(problem.train.inputs).mean())}
    return Probe(every, lambda state: (), measure, {"m": Series((), "1", "mean")})
"""


@pytest.mark.parametrize(
    ("line", "section"),
    [
        ("config.optimizer = dict(name='{file}:opt', learning_rate=0.1)", "optimizer"),
        ("config.schedule = dict(name='{file}:wave', amplitude=2.0)", "schedule"),
        ("config.batches = dict(name='{file}:balanced')", "batches"),
        ("config.batches = dict(name='{file}:seeded')", "batches"),
        ("config.probes = dict(mine=dict(name='{file}:early', every=1))", "probes.mine"),
        ("config.probes = dict(mine=dict(name='{file}:late', every=1))", "probes.mine"),
    ],
)
def test_what_a_program_takes_as_an_argument_is_no_number_and_said_before_anything_is_written(
    tmp_path, command, line, section
):
    (tmp_path / "own.py").write_text(TRACED)
    line = line.replace("{file}", str(tmp_path / "own.py"))
    lines = "def get_config():", "    config = tiny.get_config()", f"    {line}", "    return config", ""
    path = tmp_path / "config.py"
    path.write_text("from experiments.configs import tiny\n" + "\n".join(lines))
    status, out, err = command(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert section in err and "arguments of the compiled program" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_labels_that_the_precision_would_wrap_are_refused(monkeypatch, kind):
    labels = np.arange(12).astype(kind) % kind(3) + kind(2**40)
    batch = Batch(np.ones((12, 2)), labels)
    monkeypatch.setattr(data, "far", lambda: Dataset(batch, batch, 3), raising=False)
    monkeypatch.setattr(data, "__all__", [*data.__all__, "far"])
    config = tiny.get_config()
    config.float64 = False
    with config.unlocked():
        config.dataset = dict(name="far")
    with jax.enable_x64(False), pytest.raises(ConfigError, match="do not fit"):
        build.build(config)


def test_parameters_in_float32_of_a_run_in_float64_are_told(monkeypatch, float64):
    monkeypatch.setattr(
        models, "narrow", lambda num_classes: models.linen(nn.Dense(num_classes)), raising=False
    )
    monkeypatch.setattr(models, "__all__", [*models.__all__, "narrow"])
    config = tiny.get_config()
    with config.unlocked():
        config.model, config.probes = dict(name="narrow"), dict()
    with (
        jax.numpy_dtype_promotion("standard"),  # as outside of the tests
        pytest.warns(UserWarning, match="parameters are float32 although float64=True"),
    ):
        build.build(config)
