"""Hundreds of bad inputs: each gets one line, the documented status, and nothing is written."""

import sys

import pytest
import submitit as submitit  # here: its import closes absl's handler, and with that a test's captured stream

from experiments import train
from experiments.sweep import __main__ as sweep

CONFIG = """
import numpy as np
import jax
import jax.numpy as jnp
from experiments.configs import tiny


def get_config():
    config = tiny.get_config()
    {line}
    return config
"""

# what a setting of each kind does not take
BAD = {
    "number": ["'1.0'", "None", "[1.0, 2.0]", "np.ones(3)", "lambda step: 1.0", "float('nan')",
               "float('inf')",
               "1 + 2j", "b'1'", "dict(a=1)", "object()", "True", "jnp.ones(2)", "int"],
    "count": ["'10'", "None", "(10, 20)", "1.5", "10.0", "-1", "10**30", "np.arange(3)", "lambda: 10",
              "float('nan')", "dict(a=1)", "object()", "True", "2**70"],
    "word": ["1", "None", "('mlp', 'relu')", "'moon'", "''", "b'mlp'", "lambda: 1", "dict(a=1)", "True",
               "1.5"],
    "switch": ["'True'", "None", "2", "(True,)", "1.0", "np.ones(2)", "dict(a=True)"],
    "counts": ["'100'", "None", "(1.5,)", "('a',)", "(0,)", "(-3,)", "(None,)", "np.array([1.5])",
               "(10**12,)",
               "((1, 2),)", "dict(a=1)", "(True,)"],
    "section": ["'sgd'", "None", "3", "('sgd',)", "dict()", "dict(name=3)", "dict(name='moon')", "lambda: 1",
                "dict(name='sgd', moon=1)", "[1]"],
}  # fmt: skip
KEYS = {
    "number": ["optimizer.learning_rate", "schedule.amplitude", "dataset.num_turns", "dataset.noise",
               "probes.hessian.tol"],
    "count": ["num_steps", "steps_per_chunk", "checkpoints_kept", "stop_after", "dataset.num_classes",
              "dataset.examples_per_class", "schedule.period", "probes.hessian.every", "probes.hessian.num",
              "probes.ntk.num_examples"],
    "word": ["dataset.name", "model.name", "loss.name", "schedule.name", "optimizer.name", "model.activation",
             "model.initialization"],
    "switch": ["float64", "model.use_bias", "schedule.hold_step"],
    "counts": ["model.hidden_widths"],
    "section": ["dataset", "model", "loss", "schedule", "optimizer", "probes"],
}  # fmt: skip
PAIRS = [(key, value) for kind, keys in KEYS.items() for key in keys for value in BAD[kind]]
LINES = [f"config.{key} = {value}" for key, value in PAIRS if (key, value) != ("probes", "dict()")] + [
    "config.seed = 'a'",
    "config.seed = None",
    "config.seed = -1",
    "config.seed = -(2**40)",
    "config.seed = 2**33",
    "config = type(config)(config.to_dict() | {'seed': jax.random.key(0)})",
    "config.dataset = type(config)({3: 4, 'name': 'spiral'})",
    "config.seed = type('T', (), {'__repr__': lambda self: {}[1]})()",
    "raise type('E', (Exception,), {'__str__': lambda self: {}[1]})",
    "config.dataset.seed = None",
    "config.dataset.seed = 'a'",
    "config.dataset.seed = -1",
    "config.schedule.num_classes = 5",
    "config.model.num_classes = 2",
    "config.optimizer = dict(name='adam', learning_rate=0.1, b1='x')",
    "config.optimizer = dict(name='adam', learning_rate=0.1, b1=2.0)",
    "config.optimizer = dict(name='sgd', learning_rate=0.1, momentum=1.0)",
    "config.optimizer = dict(name='adadelta', learning_rate=0.1, rho=1.5)",
    "config.optimizer = dict(name='adamw', learning_rate=0.1, mask=3)",
    "config.float64 = False; config.optimizer.learning_rate = 1e39",
    "config.float64 = False; config.optimizer.learning_rate = 1e-46",
    "config.optimizer = dict(name='sgd', learning_rate=0.1, momentum='x')",
    "config.optimizer = dict(name='sgd', learning_rate=0.1, nesterov=0.5)",
    "config.optimizer = dict(name='adam', learning_rate=0.1, mu_dtype='moon')",
    "config.optimizer = dict(name='adam', learning_rate=0.1, mu_dtype=3)",
    "config.optimizer = dict(name='sgd', learning_rate=0.1, momentum=0.9, accumulator_dtype='int32')",
    "config.optimizer = dict(name='sgd', learning_rate=-0.1)",
    "config.optimizer = dict(name='sgd')",
    "config.optimizer.momentun = 0.9",
    "config.probes = dict(hessian=3)",
    "config.probes = dict(moon=dict(every=1))",
    "config.probes.hessian.every = 2**31",
    "config.dataset.num_classes = 100_000",
    "config.model.hidden_widths = (10**9,)",
    "config.model.hidden_widths = (16,) * 100_000",
    "config.dataset.num_turns = 1e308",
    "config.dataset.noise = 1e308",
    "config.num_steps = 2**31 - 1",
    "config.moon = 1",
    "config.model.moon = 1",
    "del config.num_steps",
    "del config.model",
    "del config.schedule.period",
    "raise ValueError('')",
    "raise KeyError('moon')",
    "1 / 0",
    "config = None",
    "config = 3",
    "return 3",
    "config = dict(config)",
]
# what stands for a number is taken as one
GOOD = [
    "config.optimizer = dict(name='optimistic_gradient_descent', learning_rate=0.1, beta=1.0)",
    "config.num_steps = np.int64(3)",
    "config.num_steps = jnp.asarray(3)",
    "config.optimizer.learning_rate = np.float32(0.5)",
    "config.optimizer.learning_rate = jnp.asarray(0.5)",
    "config.optimizer.learning_rate = 1",
    "config.schedule.period = np.int32(50)",
    "config.float64 = np.bool_(True)",
    "config.model.hidden_widths = [4]",
    "config.model.hidden_widths = (np.int64(4),)",
]


@pytest.fixture(autouse=True)
def without_the_last_config(monkeypatch):
    """Forget the file that ml_collections loaded before: what it defined would still be there."""
    monkeypatch.delitem(sys.modules, "config_config", raising=False)


def test_there_are_hundreds():
    assert len(set(LINES)) == len(LINES) >= 300


@pytest.mark.parametrize("line", LINES)
def test_a_bad_setting_in_a_file_gets_one_line_and_leaves_nothing(command, tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(line=line))
    status, out, err = command(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert status == 2 and out == "" and "Traceback" not in err, err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 720, err
    assert not (tmp_path / "run").exists()
    if line.startswith("config.") and " = " in line:  # the key is named, or the section that it is in
        key = line.split("config.")[-1].split(" = ")[0]
        assert any(part.rstrip("s") in err for part in key.split(".")), err


@pytest.mark.parametrize("line", GOOD)
def test_what_stands_for_a_number_is_taken_as_one(command, tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(line=f"config.num_steps = 3; config.probes = dict(); {line}"))
    status, _, err = command(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert status == 0, err


SWEEP = """
import numpy as np
import jax.numpy as jnp
from experiments.configs import tiny
from experiments.sweep.axes import axis, record


def get_config():
    return tiny.get_config()


def sweep(scale):
    {line}
"""
AXES = [
    *(f"yield axis({name}, (1, 2), 'seed')"
      for name in ("None", "3", "'a b'", "''", "'\\ud800'", "'status'", "'digest'", "'loss'", "'a/b'",
                   "b'a'", "('a',)", "'..'")),
    *(f"yield axis('width', {labels}, 'schedule.amplitude')"
      for labels in ("()", "(1.0, 1.0)", "(None, 2.0)", "(1.0, 'a')", "(np.ones(2), 1.0)", "(len, max)",
                     "((1,), (2,))", "(float('nan'),)", "(float('inf'),)", "(2**70,)", "(1j,)", "3", "None",
                     "({{}}, {{}})", "('\\ud800', 'a')", "(True, False)", "('a', 'b')", "(jnp.ones(2),)")),
    *(f"yield axis('period', {labels}, 'schedule.period')"
      for labels in ("(1.5, 2.0)", "('a',)", "(-1, -2)", "range(10**9)", "range(2**70)", "(10**12, 1)",
                     "iter(int, 1)", "range(-100_000, 0)", "(1.0, float('nan'))")),
    "yield axis('width', range(1, 100_000), lambda width: {{'model.hidden_widths': (width,)}})",
    "while True: yield {{'seed': 1}}",
    *(f"yield axis('a', (1, 2), {keys})"
      for keys in ("'moon'", "'schedule.moon'", "'schedule'", "3", "None", "lambda a: 3", "lambda a: None",
                   "lambda a: {{3: a}}", "lambda: {{}}", "lambda a: 1 / 0", "'seed', 'moon'", "''", "'.'")),
    "yield axis('a', (1, 2), 'seed'); yield axis('a', (1, 2), 'dataset.seed')",
    "yield axis('a', (1, 2), 'seed'); yield axis('b', (1, 2), 'seed')",
    "yield axis('a', (1, 2))",
    "yield axis('a', range(1000), 'seed'); yield axis('b', range(1000), 'dataset.seed'); "
    "yield axis('c', [1 + i / 1000 for i in range(1000)], 'schedule.amplitude')",
    "yield [('seed', 1)]",
    "yield {{'moon': 1}}",
    "yield {{}}",
    "yield {{'seed': 'a'}}",
    "yield {{3: 1}}",
    "yield 3",
    "yield None",
    "yield 'seed'",
    "yield record('final', 'loss')",
    "yield axis('a', (1, 2), 'seed'); yield record('moon')",
    "yield axis('a', (1, 2), 'seed'); yield record('final', 'moon')",
    "yield axis('a', (1, 2), 'seed'); yield record('final', 3)",
    "yield axis('a', (1, 2), 'seed'); yield record(None)",
    "return 3",
    "return None",
    "return {{'seed': 1}}",
    "raise SystemExit(0)",
    "raise ValueError('')",
    "import sys; sys.exit(0)",
    "1 / 0",
]  # fmt: skip
OPTIONS = ["--memory=inf", "--memory=1e400", "--memory=0", "--memory=-1", "--memory=nan", "--memory=a",
           "--memory=1e-9", "--memory=", "--jobs=0", "--jobs=-1", "--jobs=1.5", "--jobs=a", "--jobs=",
           "--jobs",
           "--launcher=moon", "--launcher=slurm", "--launcher=slurm --jobs=2",
           "--launcher=slurm --jobs=2 --slurm=timeout_min=x", "--launcher=slurm --jobs=2 --slurm=moon=3",
           "--launcher=slurm --jobs=2 --slurm=moon", "--launcher=local --slurm=moon=3", "--slurm=moon",
           "--scale=moon", "--sweep=moon", "--moon", "moon", "--config.moon=1", "--config.seed=a",
           "--config.num_steps=1.5", "--config.schedule=3", "--config.optimizer.learning_rate=nan",
           "--dry-run=3"]  # fmt: skip


def refused(result, folder):
    """Check that a command ended with one line and left nothing."""
    status, out, err = result
    assert status == 2 and out == "" and "Traceback" not in err, err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 720, err
    assert not folder.exists()


def sweep_file(tmp_path, line):
    """Write a file that declares a sweep."""
    path = tmp_path / "mine.py"
    path.write_text(SWEEP.format(line=line).replace("{{", "{").replace("}}", "}"), errors="surrogatepass")
    return path


@pytest.mark.parametrize("line", AXES)
def test_a_bad_sweep_gets_one_line_and_leaves_nothing(command, tmp_path, line):
    options = f"--config={sweep_file(tmp_path, line)}", f"--workdir={tmp_path / 'sweep'}"
    refused(command(sweep.main, *options), tmp_path / "sweep")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bad_option_of_a_sweep_gets_one_line_and_leaves_nothing(command, tmp_path, options):
    path = sweep_file(tmp_path, "yield axis('seed', (1, 2), 'seed')")
    asked = f"--config={path}", f"--workdir={tmp_path / 'sweep'}", *options.split()
    refused(command(sweep.main, *asked), tmp_path / "sweep")


FILES = {
    "empty": "",
    "no function": "config = 3",
    "no callable": "get_config = 3",
    "two arguments": "def get_config(a, b): return 3",
    "a keyword": "def get_config(*, a): return 3",
    "syntax": "def get_config(:",
    "a null": "x = '\\0'\n\0",
    "not text": "\udcff\udcfe",
    "no module": "import moon",
    "recursion": "def get_config(): return get_config()",
    "a function": "def get_config(): return get_config",
    "a generator": "def get_config():\n    yield 3",
    "exit": "import sys\nsys.exit(0)",
    "exit of the system": "raise SystemExit('moon')",
    "an interrupt of its own": "def get_config(): raise OSError(2, 'moon')",
    "an assertion": "def get_config(): assert False",
    "not implemented": "def get_config(): raise NotImplementedError",
    "stop": "def get_config(): raise StopIteration",
    "a long error": "def get_config(): raise ValueError('moon ' * 1000)",
    "a cycle": "from ml_collections import ConfigDict\n"
    "def get_config():\n    c = ConfigDict()\n    c.a = c\n    return c",
    "nothing in it": "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
    "a tuple": "def get_config(): return ()",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_file_that_is_no_config_gets_one_line_and_leaves_nothing(command, tmp_path, main, name):
    path = tmp_path / "mine.py"
    path.write_text(FILES[name], errors="surrogateescape")
    refused(command(main, f"--config={path}", f"--workdir={tmp_path / 'run'}"), tmp_path / "run")


@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_config_that_is_no_file_gets_one_line_and_leaves_nothing(command, tmp_path, main):
    for path in (tmp_path, tmp_path / "moon.py", tmp_path / "moon", "/dev/null", "", "\0"):
        sys.modules.pop("config_config", None)
        refused(command(main, f"--config={path}", f"--workdir={tmp_path / 'run'}"), tmp_path / "run")


@pytest.mark.parametrize("main", [train.main, sweep.main])
@pytest.mark.parametrize("name", ["a" * 300, "loop", "file", "file/below", "dangling/below", "a[1]", ""])
def test_a_folder_that_cannot_be_gets_one_line_and_leaves_nothing(command, tmp_path, main, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("moon/moon")
    (tmp_path / "file").write_text("mine")
    config = sweep_file(tmp_path, "yield axis('seed', (1, 2), 'seed')")
    before = sorted(tmp_path.iterdir())
    if main is sweep.main and name == "a[1]":
        return  # a sweep has no checkpoints: it can be there
    status, out, err = command(main, f"--config={config}", f"--workdir={name and tmp_path / name}")
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "mine"
