"""Functions of one's own by "file.py:function": in runs, sweeps and workers, and what is kept of them."""

import json

import jax
import numpy as np
import pytest

from dlf import data, store
from experiments import build, catalogues, records, train
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.sweep import blocks, fill
from experiments.sweep.axes import axis, make_sweep, record

MINE = """
import jax
import jax.numpy as jnp
from dlf import losses
from dlf.types import Batch, Dataset, Model, Probe, Series

def lines(num):
    inputs = jnp.linspace(-1.0, 1.0, 2 * num).reshape(num, 2)
    half = Batch(inputs, (inputs[:, 0] > 0).astype(int))
    return Dataset(half, {"near": half, "far": Batch(2 * inputs, half.labels)}, 2)

def tilted(logits, labels, weights, power=1.0):
    return losses.dmse1(logits, labels, weights) * power
tilted.are_right = losses.are_right

def norm(problem, every):
    def measure(carry, state):
        return carry, {"norm": sum(jnp.sum(leaf["kernel"] ** 2) for leaf in state.params.values())}
    return Probe(every, lambda state: (), measure, {"norm": Series((), "1", "squared norm of the kernels")})

def flipped(key, inputs):
    return -inputs

def late(num_classes, period):
    return lambda step: jnp.where(step < 1100, jnp.ones(2), jnp.asarray([-1.0, 3.0])) + 0 * period

def leaning(num_classes, amplitude):
    return lambda step: jnp.stack([2 - amplitude, amplitude * jnp.ones(())])

def coupled(num_classes):
    def init(key, inputs):
        return {"kernel": jax.random.normal(key, (2, 2), inputs.dtype)}, ()
    def apply(params, model_state, inputs):
        logits = inputs @ params["kernel"]
        return logits - logits.mean(axis=0)[None]
    return Model(init, apply, lambda params, state, inputs, key: (apply(params, state, inputs), state))

def decaying(step):
    return 0.1 / (1 + step)

def from_own(value):
    return lambda step: value
"""


@pytest.fixture
def mine(tmp_path):
    """A configuration of functions in a file of its own, in single precision."""
    (tmp_path / "mine.py").write_text(MINE)
    config, file = tiny.get_config(), tmp_path / "mine.py"
    config.num_steps, config.steps_per_chunk, config.float64 = 30, 10, False
    config.dataset = dict(name=f"{file}:lines", num=12)
    config.loss = dict(name=f"{file}:tilted", power=0.5)
    config.batches = dict(name="minibatches", batch_size=4, augment=f"{file}:flipped")
    config.probes = dict(mine=dict(name=f"{file}:norm", every=10), evaluation=dict(every=10, batch_size=5))
    with jax.enable_x64(False):
        yield config


def test_a_run_of_ones_own_functions_measures_named_sets_and_keeps_their_source(mine, tmp_path):
    meta = train.train(mine, tmp_path / "run")
    run = store.load(tmp_path / "run")
    assert {"norm", "near_accuracy", "far_loss", "far_class_accuracy"} <= set(run)
    assert list(meta["sources"].values()) == [MINE]
    assert "evaluation" in run.attrs["network_mode"]
    batch_fn, expected = build.build(mine).problem.batch_fn, data.minibatches
    plain = expected(build.draw(mine).train, 4, key=jax.random.key(0))(3)
    assert batch_fn(3).inputs.shape == plain.inputs.shape
    seen = np.concatenate([batch_fn(step).inputs for step in range(3)])
    whole = -np.asarray(build.draw(mine).train.inputs)
    np.testing.assert_array_equal(
        np.sort(seen, axis=0), np.sort(whole, axis=0)
    )  # every example once, flipped


def test_a_resume_tells_that_a_function_of_ones_own_has_changed(mine, tmp_path, capsys):
    asked = json.loads(mine.to_json())
    meta = {"status": "interrupted", "seconds": 1.0, **records.provenance(asked)}
    records.resumed(meta, asked)
    assert "another" not in capsys.readouterr().err
    (tmp_path / "mine.py").write_text(MINE + "\n# changed\n")
    assert records.provenance(asked)["sources"] == meta["sources"]  # what this process runs is the old one
    catalogues._load.cache_clear()  # as in the process that resumes
    records.resumed(meta, asked)
    assert f"resumed with another version of {tmp_path / 'mine.py'}" in capsys.readouterr().err


def test_workers_of_a_sweep_load_ones_own_functions(mine, tmp_path):
    axes = [axis("seed", range(2), "seed"), record("final", "norm", "far_accuracy")]
    sweep = make_sweep(mine, "main", axes)
    meta = fill.run(sweep, tmp_path / "sweep", fill.Settings(launcher="local", num_jobs=1))
    found = store.load(tmp_path / "sweep")
    assert meta["status"] == "done" and (found["status"] == 1).all() and found["norm"].notnull().all()
    assert list(meta["sources"].values()) == [MINE]
    alone = train.train(mine, tmp_path / "run") and store.load(tmp_path / "run")
    np.testing.assert_array_equal(found["norm"][0], alone["norm"][-1])


def test_cells_that_share_their_data_hold_them_once(mine):
    experiment, shared = (
        build.build(mine),
        make_sweep(mine, "main", [axis("seed", range(2), "seed"), record("final")]),
    )
    own = make_sweep(mine, "main", [axis("num", (12, 13), "dataset.num"), record("final")])
    num_bytes = sum(
        leaf.nbytes for leaf in jax.tree.leaves((experiment.replica.train, experiment.replica.tests))
    )

    def size(sweep, num):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(blocks.copies(sweep, experiment, num)))

    assert size(own, 5) - size(shared, 5) == 4 * num_bytes
    assert size(shared, 5) - size(shared, 4) == (size(own, 5) - size(own, 4)) - num_bytes


RATES = {
    "cosine": dict(name="cosine_decay_schedule", init_value=0.3, decay_steps=30),
    "linear": dict(name="linear_schedule", init_value=0.3, end_value=0.2, transition_steps=30),
    "number": 0.05,
    "own": "{file}:decaying",
    "joined": dict(name="join_schedules", boundaries=(3,), schedules=(dict(name="{file}:from_own", value=0.2),
                   "{file}:decaying")),
}  # fmt: skip


@pytest.mark.parametrize("base", ["number", "cosine", "own"])
def test_cells_with_schedules_numbers_and_own_functions_have_each_its_rate(mine, tmp_path, base):
    rates = json.loads(json.dumps(RATES).replace("{file}", str(tmp_path / "mine.py")))
    with mine.unlocked():
        del mine.batches
        mine.probes, mine.optimizer = {}, dict(name="sgd", learning_rate=rates[base])
    axes = [axis("rate", tuple(rates), lambda name: {"optimizer.learning_rate": rates[name]}),
            axis("seed", range(2), "seed")]  # fmt: skip
    sweep = make_sweep(mine, "main", [*axes, record("final", "loss", "learning_rate", "threshold")])
    fill.run(sweep, tmp_path / "sweep")
    found = store.load(tmp_path / "sweep")
    assert (found["status"] == 1).all() and len(set(found["learning_rate"][:, 0].values.tolist())) == 5
    for index in np.ndindex(5, 2):
        run = tmp_path / f"run{index}"
        train.train(sweep.cell(index), run)
        alone = store.load(run)
        for name in ("loss", "learning_rate", "threshold"):
            np.testing.assert_array_equal(found[name].values[index], alone[name].values[-1])


@pytest.mark.parametrize("base", [0.1, RATES["cosine"]])
@pytest.mark.parametrize("value", [True, "word", None])
def test_a_rate_that_is_neither_number_nor_schedule_is_refused(mine, base, value):
    with mine.unlocked():
        mine.optimizer = dict(name="sgd", learning_rate=base)
    with pytest.raises((ConfigError, TypeError), match="learning_rate must be"):
        axes = [axis("a", ("x",), lambda _: {"optimizer.learning_rate": value})]
        build.build(make_sweep(mine, "main", axes).cell((0,)))


BROKEN = {
    "dataset": {
        "a test set's name": ("return Dataset(half, {'so far': half}, 2)", "got 'so far'"),
        "a number as a name": ("return Dataset(half, {'near': half, 1: half}, 2)", "got 1"),
        "numbers for examples": ("return Dataset(Batch(1.0, 1), half, 2)", "it needs examples, and a label"),
        "an end of the program": ("exit(3)", "dataset"),
    },
    "batches": {"none": ("return None", "must return a function step -> Batch, got NoneType")},
    "before": {"none": ("return None", "is no transformation of optax")},
}


@pytest.mark.parametrize(("section", "name"), [(of, name) for of, names in BROKEN.items() for name in names])
def test_what_an_own_function_returns_wrongly_is_told_before_anything_is_written(
    mine, tmp_path, section, name
):
    code, words = BROKEN[section][name]
    (tmp_path / "broken.py").write_text(f"""
import jax.numpy as jnp
from dlf.types import Batch, Dataset
half = Batch(jnp.ones((4, 2)), jnp.arange(4) % 2)
def broken(*args, **settings):
    {code}
""")
    own = dict(name=f"{tmp_path / 'broken.py'}:broken")
    with mine.unlocked():
        if section == "before":
            mine.optimizer.before = (own,)
        else:
            mine[section] = own
    with pytest.raises(ConfigError) as error:
        train.train(mine, tmp_path / "run")
    assert words in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["plain", "9:30"])
def test_only_a_name_with_a_colon_is_looked_up(value):
    if ":" not in value:
        assert catalogues.resolved({"name": value}) == {"name": value}
    else:
        with pytest.raises(Exception, match="No module named '9'"):
            catalogues.resolved({"name": value})


def test_a_schedule_of_ones_own_is_tried_over_the_whole_run(mine, tmp_path):
    mine.num_steps = 1200
    mine.schedule = dict(name=f"{tmp_path / 'mine.py'}:late", period=10)
    with pytest.raises(ConfigError, match=r"must be positive and sum to their number, 2, got .* at step 11"):
        build.build(mine)


def test_every_cell_of_a_sweep_has_its_schedule_tried(mine, tmp_path):
    mine.schedule = dict(name=f"{tmp_path / 'mine.py'}:leaning", amplitude=1.0)
    axes = [axis("amplitude", (2.5, 1.5, 1.2), "schedule.amplitude"), record("final", "loss")]
    fill.run(make_sweep(mine, "main", axes), tmp_path / "sweep")
    found = store.load(tmp_path / "sweep")
    assert found["status"].values.tolist() == [3, 1, 1]
    assert "must be positive" in str(found["reason"].values[0]) and found["loss"][1:].notnull().all()


def test_a_network_that_couples_examples_in_evaluation_is_refused(mine, tmp_path):
    mine.model = dict(name=f"{tmp_path / 'mine.py'}:coupled")
    with pytest.raises(ConfigError, match="couples or tells apart"):
        build.build(mine)


@pytest.mark.parametrize("is_section", [False, True])
def test_a_rate_of_ones_own_is_named_like_any_function(mine, tmp_path, is_section):
    name = f"{tmp_path / 'mine.py'}:decaying"
    mine.optimizer.learning_rate = dict(
        name="linear_schedule", init_value=1.0, end_value=0.0, transition_steps=9
    )
    mine.optimizer = dict(
        name="sgd",
        learning_rate=name
        if not is_section
        else dict(
            name="join_schedules",
            boundaries=(10**6,),
            schedules=(dict(name="constant_schedule", value=0.1),) * 2,
        ),
    )
    rate = build.build(mine).problem.optimizer.rate
    assert float(rate(3)) == pytest.approx(0.1 if is_section else 0.025)


OPTIMIZERS = {  # whose init raises, as a mask or labels of another tree do
    "return optax.adamw(learning_rate, mask={'Dense_0': {'kernel': True}})": "optimizer: ",
    "return optax.multi_transform({'x': optax.sgd(learning_rate)}, lambda p: jax.tree.map(lambda _: 'y', p))":
        "optimizer: ",
    "return optax.GradientTransformation(lambda params: params['moon'], None)": "optimizer: 'moon'",
}  # fmt: skip


@pytest.mark.parametrize("body", OPTIMIZERS)
def test_an_optimizer_whose_init_raises_gets_one_line(command, tmp_path, body):
    (tmp_path / "own.py").write_text(f"import jax, optax\n\ndef own(learning_rate):\n    {body}\n")
    (tmp_path / "mine.py").write_text(
        "from experiments.configs import tiny\n\ndef get_config():\n    config = tiny.get_config()\n"
        f"    config.optimizer = dict(name='{tmp_path}/own.py:own', learning_rate=0.1)\n    return config\n"
    )
    status, _, err = command(train.main, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert status == 2 and OPTIMIZERS[body] in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
