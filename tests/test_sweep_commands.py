"""Sweeps by command: what a person declares and asks for, interrupts, kills, faults and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dlf.store import load
from dlf.store.cells import DONE, NOT_RUN, STORE, Store
from dlf.store.files import read_json, write_json
from experiments import listing
from experiments.command_line import ConfigError
from experiments.configs import tiny
from experiments.sweep import __main__ as cli
from experiments.sweep import fill
from experiments.sweep.axes import axis, make_sweep, record

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


DECLARATIONS = {
    "no axis": ([], "has no axis"),
    "empty": ([axis("seed", (), "seed")], "axis 'seed' has no values"),
    "twice": ([axis("period", (5, 6, 5), "schedule.period")], "axis 'period' has the value 5 twice"),
    "unknown": ([axis("a", (1.0,), "schedule.amplitud")], "did you mean 'amplitude'"),
    "section": ([axis("a", (1.0,), "scheduler.amplitude")], "unknown config key"),
    "name": ([axis("status", (1,), "seed")], "axis 'status': another one"),
    "names": ([axis("a", (1,), "seed"), axis("a", (1,), "stop_after")], "axis 'a': another one"),
    "keys": ([axis("a", (1,), "seed"), axis("b", (1,), "seed")], "the axes a and b both set seed"),
    "taken": ([axis("loss", (1,), "seed")], "axis 'loss': a variable or a dimension"),
    "dimension": ([axis("class", (1,), "seed")], "axis 'class': a variable or a dimension"),
    "no name": ([axis("a/b", (1,), "seed")], "axis 'a/b': give it a name"),
    "tuples": ([axis("a", ((4,), (5,)), "model.hidden_widths")], "label it with numbers, words or booleans"),
    "kinds": ([axis("a", ("x", 1), "seed")], "label it with numbers, words or booleans"),
    "equal": ([axis("a", (2, 2.0), "optimizer.learning_rate")], "has the value 2.0 twice"),
    "large": ([axis("a", (2**70,), "seed")], "does not fit 64 bits"),
    "no boolean": ([{"float64": "yes"}], "float64 is True or False, got 'yes'"),
    "mixed": ([{"float64": True}, {"schedule.amplitude": 3.0}], "all cells of a sweep have one precision"),
    "nothing": ([axis("a", (1,))], "axis 'a' sets nothing"),
    "precision": ([axis("a", (True, False), "float64")], "all cells of a sweep have one precision"),
    "record": ([axis("seed", (1,), "seed"), record("all")], "one of final, series, and names"),
    "variable": ([axis("seed", (1,), "seed"), record("final", "los")], "unknown variable los: one of loss,"),
    "shapes": (
        [axis("every", (7, 9), "probes.validation.every"), record("series")],
        "the cells' validation_accuracy differ in shape",
    ),
    "no cell": ([axis("rate", (-1.0,), "optimizer.learning_rate")], "learning_rate must be positive"),
    "wrong type": ([axis("rate", ("fast",), "optimizer.learning_rate")], "optimizer.learning_rate='fast'"),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_mistake_in_a_declaration_is_explained(tmp_path, name):
    declared, message = DECLARATIONS[name]
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        config = tiny.get_config()
        config.float64 = False
        with config.unlocked():
            config.probes = dict(validation=dict(every=7))
        fill.run(make_sweep(config, "main", declared), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_list_of_overrides_is_a_sweep_too(tmp_path):
    cells = [{"schedule.amplitude": 2.0, "schedule.period": 5}, {"loss.name": "dmse1"}]
    config = tiny.get_config()
    config.update(float64=False, num_steps=60, stop_after=60)
    with config.unlocked():
        config.probes = {}
    fill.run(make_sweep(config, "main", cells), tmp_path)
    found = load(tmp_path)
    assert dict(found.sizes) == {"cell": 2, "class": 3} and (found["status"] == DONE).all()


@pytest.fixture
def config_file(tmp_path):
    """A file as a person writes it."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import tiny\nfrom experiments.sweep.axes import axis, record\n\n"
        "def get_config(scale):\n    config = tiny.get_config()\n    config.float64 = False\n"
        "    config.model.hidden_widths = (6,)\n"
        "    config.num_steps = {'smoke': 40, 'small': 40_000}[scale]\n"
        "    with config.unlocked():\n        config.probes = dict()\n    return config\n\n"
        "def sweep(scale):\n    yield axis('amplitude', (1.0, 5.0), 'schedule.amplitude')\n"
        "    yield axis('seed', range(40), 'seed')\n    yield record('final', 'loss')\n\n"
        "def sweep_few():\n    yield axis('seed', range(2), 'seed')\n\n"
        "def sweep_broken(scale):\n    yield axis('seed', range({'small': 3}[scale]), 'seed')\n"
    )
    return path


def test_the_command_runs_one_of_the_declared_sweeps_and_is_listed(command, tmp_path, config_file):
    workdir = tmp_path / "results" / "few"
    options = (f"--config={config_file}", f"--workdir={workdir}", "--scale=smoke", "--sweep=few")
    status, out, _ = command(cli.main, *options, "--dry-run")
    assert status == 0 and "seed 2 = 2" in out and "core-hours" in out and "MiB" in out
    assert not workdir.exists()
    status, _, err = command(cli.main, *options, "--config.schedule.period=20")
    assert status == 0 and "2/2 cells" in err and "done in" in err
    assert json.loads(load(workdir).attrs["config"])["schedule"]["period"] == 20
    status, _, err = command(cli.main, *options)
    assert status == 2 and "config.schedule.period was 20, now 100" in err and err.count("\n") == 1
    status, out, _ = command(listing.main, tmp_path / "results")
    assert status == 0 and "sweep" in out and "done" in out and "2 of 2 cells" in out


def test_a_config_without_scales_can_be_swept_and_is_not_mistaken_for_another(command, tmp_path):
    path, workdir = tmp_path / "plain.py", tmp_path / "run"
    path.write_text(
        "from experiments.configs import tiny\nfrom experiments.sweep.axes import axis, record\n\n"
        "def get_config():\n    config = tiny.get_config()\n    config.float64 = False\n"
        "    config.num_steps = 40\n    with config.unlocked():\n        config.probes = dict()\n"
        "    return config\n\ndef sweep():\n    yield axis('seed', range(2), 'seed')\n"
    )
    options = (f"--config={path}", f"--workdir={workdir}")
    assert command(cli.main, *options)[0] == 0
    meta = workdir / "meta.json"
    # as a start leaves it that was killed, of another version of the code
    write_json(meta, read_json(meta) | {"seconds": 0.0, "commit": "other"}, signed=True)
    store = Store(workdir)
    store.forget(store.blocks()[0])
    store.write(store.blocks()[0], {}, np.array([DONE, NOT_RUN], np.int8))
    status, _, err = command(cli.main, *options)
    assert status == 0 and "resumed with another commit" in err
    assert len(json.loads(meta.read_text())["resumed"]) == 1
    status, _, err = command(cli.main, *options, "--config.num_steps=50", "--dry-run")
    assert status == 2 and "config.num_steps was 40, now 50" in err
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"block_bytes": "many"}))
    for more in ([], ["--dry-run"]):
        status, _, err = command(cli.main, *options, *more)
        assert status == 2 and f"{meta} is damaged" in err and err.count("\n") == 1
    status, _, err = command(cli.main, f"--config={path}", f"--workdir={path}", "--dry-run")
    assert status == 2 and f"{path} is no folder" in err and err.count("\n") == 1


MISTAKES = {
    "--sweep=many": "unknown sweep 'many': one of main, few, broken",
    "--sweep=broken": "sweep_broken with scale 'smoke': KeyError: 'smoke'",
    "--config=README.md": "README.md is no file of Python code",
    "--launcher=cloud": "invalid choice: 'cloud'",
    "--launcher=slurm": "--launcher=slurm needs --jobs=N",
    "--jobs=0": "--jobs must be at least 1",
    "--memory=0": "--memory must be positive",
    "--memory=0.001": "--memory=0.001 is too small",
    "--slurm=partition": "--slurm=partition: give a parameter and its value",
    "--scale=huge": "invalid choice: 'huge'",
    "--config.num_step=3": "did you mean 'num_steps'",
    "--config=experiments/configs/tiny.py": "declares no sweep",
    "--config=nowhere.py": "No such file",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_a_mistake_on_the_command_line_gets_one_line(command, tmp_path, config_file, option):
    options = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--scale=smoke"]
    status, _, err = command(cli.main, *options, option)
    assert status == 2 and MISTAKES[option] in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def start(config_file, workdir, *options, limit="unlimited"):
    command = [sys.executable, "-m", "experiments.sweep", f"--config={config_file}", f"--workdir={workdir}"]
    shell = ["bash", "-c", f'ulimit -f {limit} && exec "$@"', "bash", *command, *options]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(shell, cwd=ROOT, start_new_session=True, **pipes)


@pytest.mark.parametrize("launcher", ["here", "local"])
def test_an_interrupt_ends_a_sweep_after_its_block(tmp_path, config_file, launcher):
    workdir = tmp_path / "run"
    process = start(config_file, workdir, "--scale=small", f"--launcher={launcher}", "--jobs=2")
    deadline = time.monotonic() + 120
    while not ((workdir / STORE).exists() and (Store(workdir).status() == DONE).any()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate()  # until all processes have left, the workers too
    done = int((Store(workdir).status() == DONE).sum())
    assert process.returncode == 130 and 0 < done < 80
    assert f"interrupted, {80 - done} not run, {done} done: the same command goes on" in err
    assert "Traceback" not in err and err.count("error:") == 1


def test_a_second_interrupt_leaves_at_once_and_workers_after_their_blocks(tmp_path, config_file):
    workdir = tmp_path / "run"
    process = start(config_file, workdir, "--scale=small", "--launcher=local", "--jobs=2")
    deadline = time.monotonic() + 120
    while not ((workdir / STORE).exists() and (Store(workdir).status() == DONE).any()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)  # until all processes have left, the workers too
    assert process.returncode == 130 and "error: interrupted" in err
    assert 0 < (Store(workdir).status() == DONE).sum() < 80


def test_a_failing_write_gets_one_line(tmp_path, config_file):
    process = start(config_file, tmp_path / "run", "--scale=smoke", limit=0)
    _, err = process.communicate()
    assert process.returncode == 2 and "error: cannot write to" in err and "Traceback" not in err


def test_without_submitit_one_line_says_what_is_missing(command, tmp_path, config_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    options = (f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--scale=smoke", "--sweep=few")
    status, _, err = command(cli.main, *options, "--launcher=local")
    assert status == 2 and "--launcher=local needs submitit: pip install submitit" in err


def test_workers_that_an_interrupt_of_all_ends_while_they_start_have_not_failed(tmp_path, monkeypatch):
    def killed(*of):
        signal.raise_signal(signal.SIGTERM)
        return ["a log"]

    monkeypatch.setattr(fill, "submit", lambda *of: [])
    monkeypatch.setattr(fill, "_wait", killed)
    config = tiny.get_config()
    config.float64, config.num_steps = False, 20
    sweep = make_sweep(config, "main", [axis("seed", (0, 1), "seed"), record("final", "loss")])
    meta = fill.run(sweep, tmp_path, fill.Settings(launcher="local"))
    assert meta["status"] == "interrupted" and meta["failed"] == []


def test_what_is_started_in_silence_says_nothing(capfd):
    with fill._silence():
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'moon')"], check=True)
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
