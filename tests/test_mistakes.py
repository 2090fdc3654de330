"""What a person can get wrong, by flag or in a config file: one line each, and nothing is lost."""

import gc
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import jax
import pytest

from experiments import command_line, figure, train
from experiments.configs import tiny

TINY = Path(tiny.__file__)

RATE = "del config.optimizer.learning_rate; config.optimizer.learning_rate"
CONFIG_FILES = {
    "config.lerning_rate = 3": "has unknown lerning_rate",
    "del config.seed": "lacks seed",
    "config.loss = dict()": "config.loss must be dict(name=",
    "config.loss = dict(name='dmse1', foo=1)": "loss dmse1: got an unexpected keyword argument 'foo'",
    "del config.dataset.name": "config.dataset must be dict(name=",
    "config.model.depth = 3": "depth",
    "config.probes.hessian = dict(every=-2, num=1, tol=0.1)": "every must be at least 1",
    # here the shape checks of the tests speak first, and name the argument too
    "config.probes.hessian = dict(every=2.5, num=1, tol=0.1)": "every",
    "config.probes.spectrum = dict(every=2)": "unknown probe 'spectrum': one of answers, batch_sharpness",
    "1 / 0": "ZeroDivisionError",
    "config.seed = 1.5": "seed",
    "config.num_steps = None": "config.num_steps must be a whole number, got None",
    "del config.stop_after; config.stop_after = 'x'": "config.stop_after must be a whole number",
    "del config.num_steps; config.num_steps = 60.5": "config.num_steps must be a whole number",
    "del config.probes; config.probes = 5": "config.probes must be dict(",
    # what is traced goes by its name, whichever function takes it
    "del config.schedule.amplitude; config.schedule.amplitude = 'big'": "schedule.amplitude must be a number",
    "del config.schedule.period; config.schedule.period = 3.5": "schedule.period must be a whole number",
    "config.schedule = dict(name='constant', period='x')": "give a setting of another kind another name",
    "del config.optimizer.learning_rate; config.optimizer.learning_rate = True": "rate must be a number",
    # schedules of the rate, transformations before it, batches, functions of one's own
    f"{RATE} = dict(name='moon')": "unknown schedule of the learning rate 'moon': one of constant_schedule",
    f"{RATE} = dict(value=1.0)": "unknown schedule of the learning rate None",
    f"{RATE} = dict(name='constant_schedule', values=1.0)": "got an unexpected keyword argument 'values'",
    "config.optimizer.before = (dict(name='moon'),)": "before: 'moon' is no transformation of optax",
    "config.batches = 3": "config.batches must be dict(",
    "config.batches = dict(batch_size=3)": "config.batches must be dict(name=",
    "config.batches = dict(name='moon')": "unknown batches 'moon': one of ",
    "config.batches = dict(name='minibatches', batch_size=61)": "batch_size must be an int from 1 to",
    "config.loss.name = 'moon.py:loss'": "moon.py: there is no such file",
    "config.loss = dict(name='builtins:dict')": "loss builtins:dict: no signature found",
    "config.loss = dict(name='math:sqrt')": "optimizer: math.sqrt() takes exactly one argument",
    "config.schedule = dict(name='moon:moon')": "moon: No module named 'moon'",
    "config.schedule = dict(name='dlf.data:spiral')": "schedule dlf.data:spiral: ",
    "config.model = dict(name='math:moon')": "math has no function 'moon'",
    "config.optimizer.name = 'optax:constant_schedule'": "optimizer: constant_schedule() got an unexpected",
    "config.probes.mine = dict(name='builtins:dict')": "probes.mine: no signature found",
    "config.model.normalization = 'moon'": "unknown normalization 'moon': one of none, batch, ",
    "config.model.dropout = 1.0": "dropout must be at least 0 and below 1",
    "config.model.update(linearized=True, normalization='batch')": "a network with statistics has no tangent",
}


@pytest.mark.parametrize("line", CONFIG_FILES)
def test_a_mistake_in_a_config_file_gets_one_line(command, tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import tiny\n\ndef get_config():\n"
        f"    config = tiny.get_config()\n    config.unlock()\n    {line}\n    return config\n"
    )
    status, _, err = command(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert status == 2 and CONFIG_FILES[line] in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


CONFIG_MODULES = {
    "def get_config():\n    return {}['moon']": "line 2, `return {}['moon']`: KeyError: 'moon'",
    "def get_config(): return [][3]": "IndexError: list index out of range",
    "import math\nmath.moon": "module 'math' has no attribute 'moon'",
    "{}['moon']": "KeyError: 'moon'",
    "from experiments.configs import tiny\ndef get_config():\n    return tiny.get_config().optimizr":
        "unknown config key 'optimizr': did you mean 'optimizer'?",
    "config = 3": "the file has no function get_config",
    "def get_config(scale): return 3": "argument: 'scale': it takes none, or one by position, which is"
        " --config=FILE:argument",
    "def get_config(a, b): return 3": "arguments: 'a' and 'b': it takes none, or one by position, which is"
        " --config=FILE:argument",
    "def get_config(): pass": "get_config must return a ConfigDict, got NoneType",
}  # fmt: skip


@pytest.mark.parametrize("file", CONFIG_MODULES)
def test_a_mistake_in_a_config_file_is_not_told_as_an_unknown_option(command, tmp_path, file, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the file of the test before
    (tmp_path / "mine.py").write_text(file)
    result = command(train.main, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert result[0] == 2 and result[2].count("\n") == 1 and not (tmp_path / "run").exists()
    assert result[2].startswith("error: --config: ") and result[2].endswith(CONFIG_MODULES[file] + "\n")


@pytest.mark.parametrize("main", [train.main, figure.main])
def test_help_is_help(command, main):
    status, out, _ = command(main, "--help")
    assert status == 0 and "python -m experiments." in out


MISTAKES = {
    "--config.num_step=5": "unknown config key 'num_step': did you mean 'num_steps'?",
    "--config.schedule.amplitud=5": "did you mean 'amplitude'?",
    "--config.foo.bar=5": "unknown config key 'foo'",
    "--config.num_steps=many": "num_steps=many",
    "--config.schedule.period=3.5": "period=3.5",
    "--config.model.hidden_widths=(3.5,)": "hidden_widths",
    "--config.schedule.name=triangle": "unknown schedule 'triangle': one of constant, triangular",
    "--config.loss.name=mse": "unknown loss 'mse': one of cross_entropy, dmse1, dmse2",
    "--config.dataset.name=spirals": "unknown dataset 'spirals': one of binary_addition, cifar10, ",
    "--config.model.name=cnn": "unknown model 'cnn': one of clauses, logistic_mlp, mlp",
    "--config.model.activation=rellu": "unknown activation 'rellu'",
    "--config.model.initialization=xavier": "unknown initialization 'xavier'",
    "--config.optimizer.name=sdg": "unknown optimizer 'sdg': one of",
    "--config.schedule.amplitude=0.5": "amplitude must be at least 1",
    "--config.schedule.period=1": "period must be at least 2",
    "--config.optimizer.learning_rate=0": "learning_rate must be positive",
    "--config.optimizer.learning_rate=-1": "learning_rate must be positive",
    "--config.num_steps=0": "num_steps must be at least 1",
    "--config.num_steps=3000000000": "at most 2147483647",
    "--config.seed=1000000000000000000000": "seed",
    "--config.schedule.amplitude=inf": "amplitude must be a finite number",
    "--config.schedule.period=100000000000": "period must be",
    "--config.optimizer.learning_rate=inf": "learning_rate must be a finite number",
    "--config.dataset.noise=nan": "noise must be a finite number",
    "--config.stop_after=-3": "stop_after must be at least 0",
    "--config.probes.hessian.tol=nan": "tol must be a finite number",
    "--config.probes.hessian.num=999": "fewer eigenpairs wanted than the dimension",
    "--config.probes.ntk.num_examples=100000": "num_examples must be at most 60",
    "--config.steps_per_chunk=0": "steps_per_chunk must be at least 1",
    "--config.probes.hessian.every=0": "probes.hessian.every must be at least 1",
    "--config.probes.ntk.num_examples=0": "num_examples",
    "--config.probes.hessian.num=0": "num",
    "--config.dataset.examples_per_class=0": "examples_per_class=0",
    "--config.dataset.seed=-1": "Seed must be",
    "--wrkdir=x": "workdir",
    "more": "unexpected argument 'more'",
    "--config=/dev/null": "--config is given twice",
    "--config.model=x": "--config.model=x: Failed to parse 'x' as a ConfigDict\n",
    "--resume=maybe": "--resume=maybe: Non-boolean argument to boolean flag\n",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_no_folder(command, tmp_path, argument):
    workdir = tmp_path / "run"
    status, out, err = command(train.main, f"--config={TINY}", f"--workdir={workdir}", argument)
    assert status == 2
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    assert MISTAKES[argument] in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "--config is missing"),
        ([f"--config={TINY}"], "--workdir is missing"),
        (["--config=nowhere.py", "--workdir=x"], "nowhere.py"),
        ([f"--config={TINY}", "--workdir=/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_a_command_line_that_lacks_something_says_what(command, arguments, message):
    status, _, err = command(train.main, *arguments)
    assert status == 2 and message in err and err.count("\n") == 1


def test_another_run_is_never_overwritten(command, reference):
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    arguments = (f"--config={TINY}", f"--workdir={reference}")
    status, _, err = command(train.main, *arguments)
    assert status == 2 and "add --resume" in err and err.count("\n") == 1
    status, _, err = command(
        train.main, *arguments, "--resume", "--config.schedule.amplitude=6", "--config.seed=1"
    )
    assert status == 2 and "schedule.amplitude was 5.0, now 6.0" in err and "seed was 0, now 1" in err
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_files_is_left_alone(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for extra in ([], ["--resume"]):
        status, _, err = command(train.main, f"--config={TINY}", f"--workdir={tmp_path}", *extra)
        assert status == 2 and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_precision_of_jax_must_match_the_config(tmp_path):
    with jax.enable_x64(False), pytest.raises(train.ConfigError, match="jax_enable_x64"):
        train.train(tiny.get_config(), tmp_path)


def test_an_unknown_figure_lists_the_choices(command):
    status, _, err = command(figure.main, "fig5")
    assert status == 2 and err.count("\n") == 1
    assert "unknown figure 'fig5': one of addition, branches, cascade_rates, cascades, " in err


def _in_the_open(interrupt):
    interrupt()


def _in_a_callback_of_the_collector(interrupt):
    def callback(phase, info):
        gc.callbacks.remove(callback)  # once
        interrupt()

    gc.callbacks.append(callback)
    gc.collect()


def _in_the_callback_of_a_weak_reference(interrupt):
    dying = {1}
    reference = weakref.ref(dying, lambda _: interrupt())
    del dying
    assert reference() is None


def _in_a_finalizer(interrupt):
    type("Dying", (), {"__del__": lambda self: interrupt()})()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "fall",
    [
        _in_the_open,
        _in_a_callback_of_the_collector,
        _in_the_callback_of_a_weak_reference,
        _in_a_finalizer,
    ],
)
def test_an_interrupt_is_heard_wherever_it_falls(capfd, fall, number):
    hook = sys.unraisablehook
    for heard in (signal.SIGINT, signal.SIGTERM):  # as a shell starts its background jobs
        signal.signal(heard, signal.SIG_IGN)

    def main():
        fall(lambda: signal.raise_signal(number))
        time.sleep(60)

    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == 130 and capfd.readouterr().err == "error: interrupted\n"
    assert sys.unraisablehook is hook


def test_an_interrupt_that_is_asked_for_again_too_early_is_heard(capfd, monkeypatch):
    timer, started = threading.Timer, []

    class Early(timer):
        def start(self):
            started.append(self)
            signal.raise_signal(signal.SIGINT) if len(started) < 4 else super().start()

    def main():
        _in_a_finalizer(lambda: signal.raise_signal(signal.SIGINT))
        time.sleep(60)

    monkeypatch.setattr(command_line.threading, "Timer", Early)
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == 130 and capfd.readouterr().err == "error: interrupted\n"
    assert len(started) >= 4  # on a busy machine the one that is heard may be asked for once more


def test_a_second_interrupt_while_the_first_is_told_adds_nothing(capfd, monkeypatch):
    fail = command_line.fail

    def fail_interrupted(*words):
        signal.raise_signal(signal.SIGINT)
        fail(*words)

    monkeypatch.setattr(command_line, "fail", fail_interrupted)
    with pytest.raises(SystemExit) as stop:
        command_line.run(lambda: signal.raise_signal(signal.SIGINT))
    assert stop.value.code == 130 and capfd.readouterr().err == "error: interrupted\n"


def test_a_warning_is_one_line_and_said_once():
    def main():
        said = [warnings.formatwarning("the moon\nis \033[1mfull", UserWarning, "file", 3) for _ in range(2)]
        assert said == ["warning: the moon is ?[1mfull\n", ""]
        return 0

    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == 0
