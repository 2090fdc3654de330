"""Config files as modules: what each part of a user's own must be, and where the scale goes."""

import shutil

import pytest

from experiments import figure

# a figure of one's own: one tiny run, drawn as Fig. 4
MINE = """
from experiments.configs import tiny

FIGURE, EXPECTED, reduce, get_config = "fig4", (), tiny.reduce, tiny.get_config
"""


LINES = {
    "del FIGURE": "has no FIGURE",
    "del EXPECTED": "has no EXPECTED",
    "del reduce": "has no reduce",
    "del get_config": "has no get_config",
    "FIGURE = 'fig5'": "FIGURE 'fig5' is not in analysis.figures",
    "EXPECTED = (('moon', 1),)": "EXPECTED holds rows (variable, step or {dimension: label}, expected",
    "EXPECTED = 3": "EXPECTED holds rows",
    "EXPECTED = ('loss', 5, 1, 1, 1, 'x')": "got 'loss'",
    "FIGURE = ()": "FIGURE () is not in analysis.figures",
    "raise SystemExit(3)": "SystemExit: 3",
    "FIGURE = 3": "FIGURE 3 is not in analysis.figures",
    "FIGURE = [['fig4']]": "FIGURE [['fig4']] is not in analysis.figures",
    "FIGURE = ('fig4', 3)": "FIGURE ('fig4', 3) is not in analysis.figures",
    "EXPECTED = [('loss', 50, 'x', 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, 1, None, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, 1, 0, 1, None)]": "EXPECTED holds rows",
    "EXPECTED = [(3, 50, 1, 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 'x', 1, 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, 1, 2, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, 1, float('nan'), 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', {1: 2}, 1, 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', {'step': [1, 2]}, 1, 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, 2, 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', 50, float('nan'), 0, 1, 's')]": "EXPECTED holds rows",
    "EXPECTED = [('loss', True, 1, 0, 1, 's')]": "EXPECTED holds rows",
    "CSV = ('../x', 'step')": "CSV must be (file, dimension)",
    "CSV = 'x'": "CSV must be (file, dimension), got 'x'",
    "CSV = ('x', 3)": "CSV must be (file, dimension)",
    "RUNS = {'../x': get_config}": "RUNS must map names to functions",
    "RUNS = {'': get_config}": "RUNS must map names to functions",
    "RUNS = {'measured': get_config}": "RUNS has 'measured', which is the name of other results",
    "def sweep(): ...\ndef sweep_main(): ...": "sweep_main has the name of other results, 'main'",
    "def sweep_measured(): ...": "sweep_measured has the name of other results, 'measured'",
    "RUNS, sweep = {'main': get_config}, print": "RUNS has 'main', which is the name of other results",
    "RUNS = ['a']": "RUNS must map names to functions, got ['a']",
    "RUNS = {'a': get_config, 'b': 3}": "RUNS must map names to functions",
    "RUNS = {'a': get_config, 'b': lambda: {}}": "get_config must return a ConfigDict, got dict",
    "RUNS = {'a': get_config, 'b': lambda: exit(0)}": "b: SystemExit: 0",
    "sweep = 3": "sweep must be a function",
    "get_config = lambda: exit(0)": "SystemExit: 0",
    "get_config, RUNS = (lambda: exit(0)), {}": "SystemExit: 0",
    "reduce = 5": "reduce must be a function",
    "measure = 5": "measure must be a function",
    "in_words = 5": "in_words must be a function",
    "1 / 0": "ZeroDivisionError",
    "get_config = lambda scale: {}[scale]; RUNS = {}": "scale 'small': KeyError: 'small'",
    "get_config, RUNS = (lambda: {}), {}": "get_config must return a ConfigDict, got dict",
    "get_config = 3": "get_config must be a function",
    "class E(Exception):\n    def __str__(self): return {}[1]\ndef reduce(_): ...\nraise E": "mine.py: E",
    "class E(BaseException): ...\nraise E('moon')": "mine.py: E: moon",
    "class E(BaseException): ...\ndef get_config(): raise E('moon')\nRUNS = {}": "E: moon",
    "get_config = dict": "must be a function, of the scale or of nothing",
}


@pytest.mark.parametrize("name", ["config", "meta", "ledger", "measured"])
def test_a_figure_does_not_lie_on_its_run(command, tmp_path, name):
    path = tmp_path / f"{name}.py"
    path.write_text(MINE)
    status, _, err = command(figure.main, path, f"--workdir={tmp_path / 'run'}")
    assert status == 2 and "give the file another name" in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", LINES)
def test_a_config_module_that_lacks_a_part_gets_one_line(command, tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(MINE + line + "\n")
    status, _, err = command(figure.main, path, f"--workdir={tmp_path / 'run'}")
    assert status == 2 and LINES[line] in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_figure_of_sweeps_with_names_alone_is_one_of_sweeps(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"{MINE}\nfrom experiments.sweep.axes import axis\n"
        "def sweep_wide():\n    yield axis('seed', (1, 2), 'seed')\n"
        "def reduce(results): raise ValueError(f'{[*results]}')\nFIGURE = 'fig4'\n"
        "def get_config():\n    config = tiny.get_config()\n    config.num_steps = 20\n    return config\n"
    )
    status, _, err = command(figure.main, path, f"--workdir={tmp_path / 'run'}")
    assert status == 2 and "mine could not be made: ValueError: ['wide']" in err
    assert (tmp_path / "run" / "wide" / "cells.zarr").exists()


SCALED = {  # where the scale goes to, and what is recorded with it
    "get_config = lambda scale: small(STEPS[scale])": "run",
    "get_config = lambda turns=3, scale='paper': small(STEPS[scale])": "run",
    "def get_config(*, scale): return small(STEPS[scale])": "run",
    "import functools; get_config = functools.partial(lambda n, scale: small(STEPS[scale]), 3)": "run",
    "get_config = small; RUNS = {'run': lambda scale: small(STEPS[scale]), 'b': lambda turns=6: small()}":
        "run",
    "get_config = lambda scale: small(STEPS[scale]); RUNS = {'run': get_config, 'b': small}": "run",
    "get_config = small\ndef sweep(scale): yield axis('n', range(STEPS[scale]), 'seed')": "main",
}  # fmt: skip


@pytest.mark.parametrize("lines", SCALED)
def test_every_function_that_takes_the_scale_gets_it_by_name(command, tmp_path, lines):
    path = tmp_path / "mine.py"
    path.write_text(
        f"{MINE}\nfrom experiments.sweep.axes import axis\nSTEPS = {{'smoke': 7, 'small': 8}}\n"
        "def small(num_steps=9):\n    config = tiny.get_config()\n    config.num_steps = num_steps\n"
        "    config.probes = dict()\n    return config\n"
        f"def reduce(results): raise ValueError(str(results[{SCALED[lines]!r}]['loss'].size))\n{lines}\n"
    )
    for options, size in ([], 8), (["--scale=smoke"], 7):
        folder = tmp_path / "".join(options)
        status, _, err = command(figure.main, path, f"--workdir={folder / 'run'}", *options)
        assert status == 2 and f"mine could not be made: ValueError: {size};" in err


@pytest.mark.parametrize(
    "lines",
    [
        "sweep_seeds = 5",
        "import dataclasses\n@dataclasses.dataclass\nclass Setting:\n    number: int = 3\n",
    ],
)
def test_what_else_a_module_holds_is_its_own(command, tmp_path, smoke, lines):
    path, folder = tmp_path / "mine.py", shutil.copytree(smoke("tiny"), tmp_path / "run")
    path.write_text(f"from __future__ import annotations\n{MINE}\n{lines}")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 0, err
