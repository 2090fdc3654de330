"""Every file of a finished run and sweep, damaged in every way: `load` names it, or reads what was written.

make soak          every file and thousands of single changes; make test takes a sample of each kind
"""

import contextlib
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

from dlf import store
from dlf.store.files import StoreError
from experiments import train
from experiments.configs import tiny
from experiments.listing import _results, entry
from experiments.sweep import fill
from experiments.sweep.axes import axis, make_sweep, record

# every kind of file that dlf writes: a file of another kind needs a rule, whether `load` reads it or not
READ = (
    r"(config|meta|ledger)\.json",
    r"(metrics|cells)\.zarr/zarr\.json",
    r"(metrics|cells)\.zarr/\w+/zarr\.json",
    r"(metrics|cells)\.zarr/\w+/c(/\d+)*",
)
NOT_READ = (
    r"checkpoints/.*",  # of which a resume reads the newest
    r"blocks\.lock",  # what workers lock
    r"(tiny|phase_losses)\.(png|pdf|nc|json)",  # of the figure, made anew from the results
    r"(out|err)\.txt",  # of the tests
)


def removed(file, sibling, twin):
    file.unlink()


def truncated(file, sibling, twin):
    os.truncate(file, file.stat().st_size // 2)


def emptied(file, sibling, twin):
    os.truncate(file, 0)


def zeroed(file, sibling, twin):
    file.write_bytes(bytes(file.stat().st_size))


def a_folder(file, sibling, twin):
    file.unlink()
    file.mkdir()


def a_dangling_link(file, sibling, twin):
    file.unlink()
    file.symlink_to("moon")


def a_link_to_itself(file, sibling, twin):
    file.unlink()
    file.symlink_to(file)


def swapped(file, sibling, twin):
    """Put another file of its kind in its place."""
    if sibling:
        shutil.copyfile(sibling, file)


def of_another_seed(file, sibling, twin):
    if twin.is_file():
        shutil.copyfile(twin, file)


def unreadable(file, sibling, twin):
    file.chmod(0)


DAMAGES = (
    removed, truncated, emptied, zeroed, a_folder, a_dangling_link, a_link_to_itself, swapped,
    of_another_seed, unreadable,
)  # fmt: skip


def small(seed):
    config = tiny.get_config()
    config.update(num_steps=60, steps_per_chunk=20, stop_after=60, seed=seed)
    config.dataset.update(examples_per_class=8, seed=seed)
    config.probes = dict(hessian=dict(every=9, num=2, tol=1e-3), validation=dict(every=5))
    return config


def make_run(folder, seed):
    """Train sixty steps in three chunks, with series at every step and at some."""
    with jax.enable_x64(True):
        train.train(small(seed), folder)


def make_sweep_of(kind, folder, seed):
    """Run four cells, two a block."""
    config = small(seed)
    config.float64, config.probes = False, dict(validation=dict(every=5))
    axes = (
        axis("width", (3, 4), lambda width: {"model.hidden_widths": (width,)}),
        axis("word", ("a", "b"), lambda word: {"schedule.amplitude": {"a": 1.0, "b": 1e39}[word]}),
    )
    with jax.enable_x64(False):
        fill.run(make_sweep(config, "main", (*axes, record(kind, "loss", "validation_accuracy"))), folder)


@pytest.fixture(scope="module", params=["run", "final", "series"])
def results(request, tmp_path_factory):
    """Return the folders of a finished run or sweep and of its twin of another seed."""
    folders = [tmp_path_factory.mktemp(request.param) / name for name in ("results", "twin")]
    for seed, folder in enumerate(folders):
        make_run(folder, seed) if request.param == "run" else make_sweep_of(request.param, folder, seed)
    return folders


@pytest.fixture
def copy():
    """Return a path that other users, too, can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "copy"


@contextlib.contextmanager
def without_privileges():
    """Be a user for whom permissions count."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def files(folder):
    """Return the files of a folder by kind: the rule that reads them, in the order of their names."""
    kinds = {rule: [] for rule in (*READ, *NOT_READ)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        rules = [rule for rule in kinds if re.fullmatch(rule, name)]
        assert len(rules) == 1, f"{name} has {len(rules)} rules"
        kinds[rules[0]].append(name)
    return kinds


def check(folder, expected, name):
    """Load a damaged folder: either it names a file of it, in one line, or all is as it was."""
    try:
        with without_privileges():
            found = store.load(folder)
    except StoreError as error:
        message = str(error)
        assert str(folder) in message and "\n" not in message, message
        return "named"
    assert found.identical(expected), f"{name} was changed, and numbers, labels or units with it"
    return "the same"


def damage_files(folder, twin, copy, per_kind, chance):
    """Damage so many files of each kind in every way; return how often which came of it."""
    expected, counts = store.load(folder), {}
    for rule, names in files(folder).items():
        for name in chance.sample(names, min(per_kind, len(names))):
            siblings = [path for path in names if path != name]
            for harm in DAMAGES:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder, copy)
                harm(copy / name, siblings and folder / chance.choice(siblings), twin / name)
                outcome = check(copy, expected, f"{name}, {harm.__name__}")
                assert outcome == "the same" or rule in READ, f"{name}, {harm.__name__}: {outcome}"
                counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def change_bytes(folder, copy, num_changes, chance):
    """Change one byte of a file that is read, so often; return how often which came of it."""
    expected, counts = store.load(folder), {}
    shutil.copytree(folder, copy)
    kinds = files(folder)
    for i in range(num_changes):
        name = chance.choice(kinds[READ[i % len(READ)]])
        content = (folder / name).read_bytes()
        at = chance.randrange(len(content))
        old = content[at : at + 1]
        like = next((kind for kind in (b"0123456789", b"abcdefgxyz") if old in kind), bytes(range(256)))
        new = bytes([chance.choice([byte for byte in like if byte != content[at]])])
        (copy / name).write_bytes(content[:at] + new + content[at + 1 :])
        outcome = check(copy, expected, f"{name}, byte {at}: {old} -> {new}")
        (copy / name).write_bytes(content)
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


@pytest.mark.parametrize("name", ["tiny", "phase_losses"])
def test_every_file_that_a_figure_makes_has_a_rule(smoke, name):
    assert files(smoke(name) / ("main" if name == "phase_losses" else ""))


def test_a_damaged_file_of_any_kind_is_named_or_not_read(results, copy):
    counts = damage_files(*results, copy, 1, random.Random(1))
    assert counts["named"] >= 20 and counts["the same"] >= 5


def test_a_single_change_of_any_byte_changes_no_number(results, copy):
    assert change_bytes(results[0], copy, 30, random.Random(2))["named"] >= 20


def test_a_folder_that_may_not_be_read_is_named_and_listed(results, copy):
    expected, seen = store.load(results[0]), set()
    for folder in [path for path in results[0].rglob("*") if path.is_dir()]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(results[0], copy)
        name = folder.relative_to(results[0])
        (copy / name).chmod(0)
        seen.add(check(copy, expected, name))
        with without_privileges():
            kind = entry(copy)[1:3]
        assert kind in (("run", "done"), ("sweep", "done"), ("?", "unreadable")), f"{name}: {kind}"
        (copy / name).chmod(0o755)
    assert "named" in seen
    copy.chmod(0)
    with without_privileges():
        assert entry(copy)[1:3] == ("?", "unreadable") and _results(copy.parent) == [copy]
    copy.chmod(0o755)


@pytest.mark.soak
def test_every_damaged_file_is_named_or_not_read(results, copy, record_property):
    record_property("counts", damage_files(*results, copy, 10**6, random.Random(3)))


@pytest.mark.soak
def test_thousands_of_single_changes_change_no_number(results, copy, record_property):
    record_property("counts", change_bytes(results[0], copy, 5_000, random.Random(4)))
