"""Branches: from a moment of a run on with other settings, as a run of its own."""

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib import image

from dlf import store
from dlf.store.files import StoreError
from experiments import branch as branching
from experiments import train as training
from experiments.branch import branch
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.train import train

STEP = 250  # between the checkpoints at 200 and 300


@pytest.fixture(scope="module")
def parent(made_once):
    def make(workdir):
        import jax

        config = tiny.get_config()
        config.num_steps, config.stop_after, config.checkpoints_kept = 400, 400, 3
        config.optimizer.momentum = 0.5
        config.probes.tracker = dict(every=20, num=2, tol=0.01)
        with jax.enable_x64(True):
            train(config, workdir)

    return made_once("parent", make)


def rows(workdir):
    found = store.load(workdir)
    found.attrs = {}
    return found


def test_a_branch_with_the_same_settings_is_its_parent_to_the_bit(float64, parent, tmp_path):
    meta = branch(parent, STEP, {}, tmp_path / "same")
    assert rows(tmp_path / "same").identical(rows(parent))
    assert meta["status"] == "done" and meta["branch"]["parent"] == str(parent.resolve())
    assert (meta["branch"]["step"], meta["branch"]["checkpoint"]) == (STEP, 200)


OVERRIDES = {
    "quiet": {"stop_after": STEP},
    "frozen": {"schedule": {"name": "constant", "weights": (2.0, 0.5, 0.5)}},
    "another phase": {"schedule.ahead": 50},
    "another rate": {"optimizer.learning_rate": 0.3},
    "a schedule": {"optimizer.learning_rate": dict(name="linear_schedule", init_value=1.0, end_value=0.1,
                                                   transition_steps=400)},
    "a rule": {"optimizer.rule": {"name": "cap"}, "probes.step_sharpness": {"every": 5},
               "optimizer.learning_rate": 20.0},
    "longer": {"num_steps": 500},
}  # fmt: skip


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_branch_is_its_parent_before_the_step_and_another_run_after_it(float64, parent, tmp_path, case):
    branch(parent, STEP, OVERRIDES[case], tmp_path / "run")
    found, before = rows(tmp_path / "run"), rows(parent)
    head = found.sel(step=slice(0, STEP - 1))
    for name in ("loss", "class_weights", "accuracy", "learning_rate"):
        np.testing.assert_array_equal(head[name], before[name].sel(step=slice(0, STEP - 1)))
    at = found["hessian_step"] < STEP
    np.testing.assert_array_equal(
        found["hessian_eigenvalues"][at], before["hessian_eigenvalues"][: int(at.sum())]
    )
    if case not in ("quiet", "frozen", "another phase"):  # in which the loss of this step is another
        assert found["loss"][STEP] == before["loss"][STEP]
    if case != "longer":
        assert found["loss"][-1] != before["loss"][-1]
    assert found["loss"].notnull().all() and found.sizes["step"] == (500 if case == "longer" else 400)
    if case == "quiet":
        assert (found["class_weights"].sel(step=slice(STEP, None)) == 1).all()


def test_perturbed_restarts_differ_by_their_seed_and_a_little(float64, parent, tmp_path):
    losses = []
    for seed in (0, 1, 1):
        workdir = tmp_path / f"{len(losses)}"
        branch(parent, STEP, {}, workdir, perturbation=1e-6, seed=seed)
        losses.append(rows(workdir)["loss"].values)
    np.testing.assert_array_equal(losses[1], losses[2])
    assert 0 < abs(losses[0][STEP] / losses[1][STEP] - 1) < 1e-4


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["write_meta", "commit"])
def test_a_branch_that_was_killed_at_its_start_goes_on_with_the_same_bits(
    float64, parent, tmp_path, monkeypatch, at
):
    """After the first file of its own, and after its first commit."""
    overrides, original = {"stop_after": STEP}, getattr(store, at)

    def killed(*arguments):
        original(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store, at, killed)
        with pytest.raises(Killed):
            branch(parent, STEP, overrides, tmp_path / "killed")
    if at == "write_meta":
        config = branching.overridden(tiny_of(parent), overrides)
        with pytest.raises(ConfigError, match="has not begun"):
            train(config, tmp_path / "killed", resume=True)
    branch(parent, STEP, overrides, tmp_path / "killed")
    branch(parent, STEP, overrides, tmp_path / "whole")
    assert rows(tmp_path / "killed").identical(rows(tmp_path / "whole"))
    meta = json.loads((tmp_path / "killed" / "meta.json").read_text())
    assert meta["branch"]["step"] == STEP and meta["status"] == "done"


def tiny_of(workdir):
    return branching.checked(branching.Config(json.loads((workdir / "config.json").read_text())))


REFUSED = {
    "beyond the end": (dict(step=400), "1 to 399"),
    "before the first step": (dict(step=0), "1 to 399"),
    "before its checkpoints": (dict(step=150), "checkpoints_kept"),
    "another shape": (dict(overrides={"model.hidden_widths": (8,)}), "parameters"),
    "another optimizer": (dict(overrides={"optimizer.name": "ema", "optimizer.momentum": 0.9}), ""),
    "no momentum": (dict(overrides={"optimizer": dict(name="sgd", learning_rate=1.0)}), "only its rate"),
    "an unknown key": (dict(overrides={"num_stepz": 3}), "num_stepz"),
    "no section": (dict(overrides={"loss.name.more": 3}), "loss.name.more"),
    "another kind": (dict(overrides={"num_steps": "many"}), "num_steps"),
    "shorter": (dict(overrides={"num_steps": STEP}), "no step after"),
    "a rule without its probe": (dict(overrides={"optimizer.rule": {"name": "cap"}}), "step_sharpness"),
    "a negative perturbation": (dict(perturbation=-1.0), "perturbation"),
    "a seed beyond the generator's bits": (dict(perturbation=1e-3, seed=2**32 + 1), "seed must be"),
    "a negative seed": (dict(perturbation=1e-3, seed=-1), "seed must be"),
    "half a step": (dict(step=30.5), "step must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_branch_that_cannot_be_is_refused_in_one_line_and_leaves_nothing(float64, parent, tmp_path, case):
    changes, words = REFUSED[case]
    given = dict(step=STEP, overrides={}, workdir=tmp_path / "run") | changes
    with pytest.raises(ConfigError) as raised:
        branch(parent, **given)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_parent_and_another_run_are_not_written_over(float64, parent, tmp_path):
    with pytest.raises(ConfigError, match="own folder"):
        branch(parent, STEP, {}, parent)
    with pytest.raises(ConfigError, match="outside of it"):
        branch(parent, STEP, {}, parent / "inside")
    branch(parent, STEP, {}, tmp_path / "one")
    with pytest.raises(ConfigError, match="another"):
        branch(parent, STEP + 1, {}, tmp_path / "one")
    with pytest.raises(ConfigError, match="another config"):
        branch(parent, STEP, {"stop_after": STEP}, tmp_path / "one")
    with pytest.raises(StoreError):
        branch(tmp_path / "nothing", STEP, {}, tmp_path / "two")


OPTIMIZERS = """
import optax


def injected(learning_rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate, momentum=0.5)


def sam(learning_rate):
    return optax.contrib.sam(optax.sgd(learning_rate), optax.sgd(0.05), sync_period=2)
"""


@pytest.mark.parametrize("name", ["injected", "sam"])
def test_a_state_that_keeps_or_counts_its_rate_itself_goes_on_as_it_was_or_not_at_all(
    standard, tmp_path, name
):
    (tmp_path / "own.py").write_text(OPTIMIZERS)
    config = tiny.get_config()
    config.num_steps = config.stop_after = config.steps_per_chunk = 60
    config.steps_per_chunk, config.checkpoints_kept, config.probes = 20, 3, {}
    cosine = dict(name="cosine_decay_schedule", init_value=0.3, decay_steps=60)
    config.optimizer = dict(
        name=f"{tmp_path / 'own.py'}:{name}", learning_rate=cosine if name == "sam" else 0.3
    )
    train(config, tmp_path / "run")
    branch(tmp_path / "run", 29, {}, tmp_path / "same")
    assert rows(tmp_path / "same").identical(rows(tmp_path / "run"))
    change = {"optimizer.learning_rate": 0.003}
    with pytest.raises(ConfigError, match="of your own keeps in its state"):
        branch(tmp_path / "run", 29, change, tmp_path / "other")


def test_the_command_branches_and_goes_on(parent, tmp_path, command):
    arguments = parent, f"--step={STEP}", f"--workdir={tmp_path / 'run'}", "--config.stop_after=250"
    rule = "--config.optimizer.rule={'name': 'polyak'}"
    for _ in range(2):
        status, _, err = command(branching.main, *arguments, rule)
        assert status == 0 and "done" in err
    weights = rows(tmp_path / "run")["class_weights"]
    assert (weights.sel(step=slice(250, None)) == 1).all()
    for wrong, words in ((("--step=nine",), "step"), (("--more",), "--config.key=value"), ((), "no such")):
        first = parent if wrong else tmp_path / "nowhere"
        status, _, err = command(branching.main, first, *arguments[1:], *wrong)
        assert status == 2 and err.count("\n") == 1 and (words in err or not wrong)
    assert training.Start._fields[0] == "step"


def test_the_figure_goes_on_from_every_moment_in_every_way(smoke):
    folder = smoke("branches")
    found = xr.load_dataset(folder / "branches.nc", engine="scipy")
    assert found["final_accuracy"].notnull().all() and "as before" in (folder / "out.txt").read_text()
    assert image.imread(folder / "branches.png").std() > 0.05
    run = store.load(folder / "parent")
    stop_after = json.loads(run.attrs["config"])["stop_after"]
    for moment in found["moment"].values:
        step = int(found["moment_step"].sel(moment=moment))
        of = {name: store.load(folder / "branches" / f"{moment}_{name}_0") for name in BRANCHES}
        for name, row in of.items():  # what went before is the parent's
            np.testing.assert_array_equal(row["loss"][:step], run["loss"][:step], err_msg=name)
        later = slice(step, stop_after - 1)  # from there on all weights are one
        assert (of["switched_off"]["class_weights"].sel(step=later) == 1).all()
        assert (of["frozen"]["class_weights"].sel(step=later) == run["class_weights"].sel(step=step)).all()
        assert (of["slower"]["learning_rate"].sel(step=later) == run["learning_rate"][0] / 2).all()
        assert of["as_before"]["class_weights"].equals(run["class_weights"])
        assert not of["as_before"]["loss"].equals(run["loss"])  # restarted a little beside it
        accuracy = found["final_accuracy"].sel(moment=moment, way="frozen").values[0]
        assert accuracy == float(of["frozen"]["accuracy"][-1])


BRANCHES = ("as_before", "switched_off", "frozen", "slower")
