"""The command of all figures: what it makes, compares and says to mistakes."""

import importlib
import json
import os
import re
import shutil

import pytest

from analysis import figures
from experiments import figure, records

# a figure of one's own: one tiny run, drawn as Fig. 4
MINE = """
from experiments.configs import tiny

FIGURE, EXPECTED, reduce, get_config = "fig4", (), tiny.reduce, tiny.get_config
"""


UNRUN = {  # data or time were lacking
    "cifar10", "cifar10_myrtle5", "cifar10_wrn", "large_rates", "learning_rate_shift",
    "open_questions", "rate_rules",
}  # fmt: skip


@pytest.mark.parametrize("name", figure.NAMES)
def test_every_config_says_what_draws_it_what_reduces_it_and_what_to_expect(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    assert figure.find(name) is module
    drawn = (module.FIGURE,) if isinstance(module.FIGURE, str) else module.FIGURE
    assert set(drawn) <= set(figures.__all__)
    assert bool(module.EXPECTED) == (name not in UNRUN)
    assert all(least <= number <= most for _, _, number, least, most, _ in module.EXPECTED)
    assert "experiments.figure" in module.__doc__ or "`make " in module.__doc__  # a run card
    assert re.search("nobody has run it yet" if name in UNRUN else "minute|seconds", module.__doc__)
    told = {float(number) for number in re.findall(r"(?<![\w.])\.\d+", module.__doc__)}
    assert told <= {number for row in module.EXPECTED for number in row[2:5]}


def test_it_trains_draws_and_compares_and_then_only_draws(smoke, command, tmp_path):
    folder = smoke("tiny")
    out = (folder / "out.txt").read_text()
    assert "OFF" not in out and out.count(" ok ") == 3
    assert (folder / "tiny.png").stat().st_size > 10_000
    assert (folder / "tiny.pdf").read_bytes().startswith(b"%PDF")
    copy = shutil.copytree(folder, tmp_path / "copy")
    rows = (copy / "metrics.zarr/loss/c/0").stat().st_mtime_ns
    os.remove(copy / "tiny.png")
    status, again, _ = command(figure.main, "tiny", f"--workdir={copy}")  # does not train again
    assert status == 0 and (copy / "tiny.png").exists()
    assert (copy / "metrics.zarr/loss/c/0").stat().st_mtime_ns == rows
    assert again.splitlines()[:-1] == out.splitlines()[:-1]


def test_it_exits_with_one_if_a_number_is_off(command, tmp_path):
    status, out, _ = command(figure.main, "tiny", f"--workdir={tmp_path}", "--config.seed=3")
    assert status == 1 and "OFF" in out
    # the run in a folder is not overwritten
    status, _, err = command(figure.main, "tiny", f"--workdir={tmp_path}")
    assert status == 2 and "seed was 3, now 0" in err and err.count("\n") == 1


def test_the_numbers_of_another_scale_are_shown_without_a_verdict(smoke):
    for name in ("phase_losses", "kernel_width"):
        out = (smoke(name) / "out.txt").read_text()
        assert "numbers to expect at scale small" in out and "OFF" not in out and " ok" not in out


@pytest.mark.parametrize(
    "told",
    [
        "None",
        "'moon'",
        "{'a': []}",
        "{'a': [('b', 'c'), ('d',)]}",
        "{'a': ['bc', 'de']}",
        "{'a': None}",
        "{'a': [(1,)]}",
    ],
)
def test_words_that_are_no_tables_are_told(command, tmp_path, smoke, told):
    path, folder = tmp_path / "mine.py", shutil.copytree(smoke("tiny"), tmp_path / "run")
    path.write_text(f"{MINE}\ndef in_words(found):\n    return {told}\n")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 2 and "in_words must return {title: [header, row, ...]}, rows alike" in err


@pytest.mark.parametrize("function", ["reduce", "measure"])
def test_a_part_that_returns_no_data_is_told(command, tmp_path, smoke, function):
    path, folder = tmp_path / "mine.py", shutil.copytree(smoke("tiny"), tmp_path / "run")
    path.write_text(f"{MINE}\ndef {function}(*of):\n    pass\n")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 2 and f"{function} must return an xarray.Dataset, got NoneType" in err


def test_a_number_is_looked_up_by_step_or_labels_and_one_that_is_not_there_is_off(smoke):
    found = records.load(smoke("tiny"))
    loss = float(found["loss"][50])
    ntk = {"ntk_step": 7, "rank": 1}
    value = float(found["ntk_eigenvalues"].sel(ntk))
    expected = (
        ("loss", 50, loss, loss, loss, "source"),
        ("ntk_eigenvalues", ntk, value, value, value, "source"),
    )
    rows, ok = figure.compare(found, expected)
    assert ok and [row[-2] for row in rows[1:]] == ["ok", "ok"]
    assert [row[1] for row in rows[1:]] == ["step 50", "ntk_step 7, rank 1"]
    accuracy = found["loss"].rename(step="test_step").rename("test_loss")
    rows, ok = figure.compare(found.merge(accuracy), (("test_loss", 50, loss, loss, loss, "source"),))
    assert ok and rows[1][1] == "test_step 50"
    wrong = ("loss", 600), ("ntk_eigenvalues", {"rank": 9}), ("loss", {"width": 3}), ("loss", {"step": "a"})
    for absent in wrong:
        rows, ok = figure.compare(found, ((*absent, 0.0, -1.0, 1.0, "source"),))
        assert not ok and rows[1][-3:-1] == ("no such place", "OFF")
    rows, ok = figure.compare(found, (("los", 50, 0.0, -1.0, 1.0, "source"),))
    assert not ok and rows[1][-3:-1] == ("no such variable", "OFF")


def test_a_file_of_ones_own_is_a_figure_and_several_lie_beside_one_another(command, tmp_path, smoke):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    shutil.copytree(smoke("tiny"), tmp_path / "out" / "mine")
    arguments = (path, "phase_losses", f"--workdir={tmp_path / 'out'}")
    status, _, err = command(figure.main, *arguments, "--shipped")
    assert status == 2 and "no data of mine come with dlf, only of addition, branches, cascade_rates" in err
    status, _, err = command(figure.main, path, f"--workdir={tmp_path / 'out' / 'mine'}")
    assert status == 0, err
    assert (tmp_path / "out" / "mine" / "mine.png").exists()
    status, _, err = command(
        figure.main, "phase_losses", "phase_static", "--shipped", f"--workdir={tmp_path}"
    )
    assert status == 0 and (tmp_path / "phase_static" / "shipped" / "phase_static.png").exists()


MISTAKES = {
    "tiny --config=mine.py": "unrecognized arguments: --config=mine.py",
    "tiny --noresume": "unrecognized arguments: --noresume",
    "tiny --config.num_steps=1e3": "--config.num_steps=1e3: invalid literal for int()",
    "phase_moon": "unknown figure 'phase_moon': one of addition, branches, cascade_rates, cascades, ",
    "tiny --scale=small": "tiny has no scales: leave --scale out",
    "phase_static --scale=large": "invalid choice: 'large'",
    "cascades --shipped": "no data of cascades come with dlf, only of addition, branches, cascade_rates",
    "fig4 tiny --shipped": "no data of fig4 come with dlf",
    "phase_static --unknown": "unrecognized arguments: --unknown",
    "phase_static --config.seed=1": "unrecognized arguments: --config.seed=1: phase_static takes no settings",
    "tiny --unknown": "unknown",
    "tiny --config.num_step=5": "unknown config key 'num_step': did you mean 'num_steps'?",
    "phase_static --launcher=slurm": "--launcher=slurm needs --jobs=N",
    "tiny --launcher=local": "no sweep is to be filled: leave --launcher, --jobs and --slurm out",
    "phase_static --shipped --jobs=2": "no sweep is to be filled",
    "phase_static --shipped --scale=smoke": "--shipped draws what comes with dlf, of one scale",
    "phase_static --shipped --dry-run": "--shipped runs nothing: leave --dry-run out",
    "phase_static --jobs=0": "--jobs must be at least 1, got 0",
    "": "required: NAME",
    "nowhere.py": "nowhere.py",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_no_folder(command, tmp_path, arguments):
    status, out, err = command(figure.main, *arguments.split(), f"--workdir={tmp_path / 'run'}")
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: ")
    assert MISTAKES[arguments] in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "body",
    [
        "results['moon']",
        "1 / 0",
        "{'loss': 1}",
        "results['run'].assign_attrs(x={})",
        "[]",
        "results['run'].drop_vars('loss')",
        "exit(0)",
        "exit(1)",
        "exit('moon')",
        "open('/nowhere/moon')",
        "(_ for _ in ()).throw(MemoryError)",
        "(_ for _ in ()).throw(BaseException)",
    ],
)
def test_a_reduction_that_fails_gets_one_line_and_keeps_the_run(command, tmp_path, smoke, body):
    path, folder = tmp_path / "mine.py", shutil.copytree(smoke("tiny"), tmp_path / "run")
    path.write_text(f"{MINE}\ndef reduce(results):\n    return {body}\n")
    before = {at: at.read_bytes() for at in folder.rglob("*") if at.is_file()}
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err
    assert "mine could not be made" in err and f"its runs are kept in {folder}" in err
    assert before.items() <= {at: at.read_bytes() for at in folder.rglob("*") if at.is_file()}.items()


@pytest.mark.parametrize("name", ["measured.partial", "table.csv"])
def test_a_link_in_place_of_what_a_figure_of_ones_own_writes_is_not_followed(command, tmp_path, smoke, name):
    more = "CSV = 'table', 'step'\ndef measure(config, results, folder): return results['run'][['loss']]\n"
    (tmp_path / "mine.py").write_text(MINE + more)
    folder = shutil.copytree(smoke("tiny"), tmp_path / "mine")
    (folder / name).symlink_to(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_text("mine")
    status, _, err = command(figure.main, tmp_path / "mine.py", f"--workdir={folder}")
    assert status == 2 and f"{name} is a link" in err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        "def in_words(found): raise KeyError('moon')",
        "def measure(*_): raise ValueError('moon')",
        "FIGURE = 'width_rate'",
    ],
)
def test_any_other_part_that_fails_gets_one_line_and_keeps_the_run(command, tmp_path, smoke, line):
    path = tmp_path / "mine.py"
    path.write_text(MINE + line + "\n")
    folder = shutil.copytree(smoke("tiny"), tmp_path / "mine")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 2 and f"its runs are kept in {folder}" in err
    assert err.strip().splitlines()[-1].startswith("error: mine could not be") and "Traceback" not in err
    assert (folder / "metrics.zarr").exists()


def test_two_figures_do_not_share_a_folder(command, tmp_path):
    (tmp_path / "tiny.py").write_text(MINE)
    status, _, err = command(figure.main, "tiny", tmp_path / "tiny.py", f"--workdir={tmp_path / 'out'}")
    assert status == 2 and f"two figures would share {tmp_path / 'out' / 'tiny'}" in err
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_system_in_a_part_of_the_module_is_that_of_the_part(command, tmp_path, smoke):
    path, folder = tmp_path / "mine.py", shutil.copytree(smoke("tiny"), tmp_path / "run")
    path.write_text(f"{MINE}\ndef reduce(results):\n    raise OSError('moon')\n")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 2 and err.count("\n") == 1
    assert "mine could not be made: OSError: moon" in err and f"its runs are kept in {folder}" in err


@pytest.mark.parametrize("default", ["", "='small'"])
def test_a_figure_of_one_run_has_scales_if_its_configuration_has(command, tmp_path, default):
    path, steps = tmp_path / "mine.py", {"smoke": 20, "small": 30, "paper": 40}
    path.write_text(
        f"{MINE}\ndef get_config(scale{default}):\n    config = tiny.get_config()\n"
        f"    config.num_steps = {steps}[scale]\n    return config\n"
    )
    for options, scale in (["--scale=smoke"], "smoke"), ([], "small"):
        status, _, err = command(figure.main, path, f"--workdir={tmp_path / scale}", *options)
        assert status == 0, err
        assert json.loads((tmp_path / scale / "config.json").read_text())["num_steps"] == steps[scale]
        assert json.loads((tmp_path / scale / "mine.json").read_text())["scale"] == scale


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_while_it_measures_says_how_to_go_on(command, tmp_path, smoke, name):
    path = tmp_path / "mine.py"
    path.write_text(f"import os, signal\n{MINE}\nmeasure = lambda *_: os.kill(os.getpid(), signal.{name})\n")
    folder = shutil.copytree(smoke("tiny"), tmp_path / "mine")
    status, _, err = command(figure.main, path, f"--workdir={folder}")
    assert status == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == f"error: interrupted: the same command goes on in {folder}"


def test_a_data_set_without_a_number_of_classes_is_drawn(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import tiny\nFIGURE, EXPECTED, reduce = 'fig4', (), tiny.reduce\n"
        "def get_config():\n    config = tiny.get_config()\n    config.num_steps = 20\n"
        "    with config.unlocked():\n"
        "        config.dataset = dict(name='digits', num_train=60, num_test=20)\n"
        "        config.probes = dict()\n    return config\n"
    )
    status, _, err = command(figure.main, path, f"--workdir={tmp_path / 'run'}")
    assert status == 0 and (tmp_path / "run" / "mine.png").exists(), err
