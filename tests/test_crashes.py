"""A run and a sweep, killed or failing at every change that they make to their files, end with the same bits.

A library that is loaded before all others (changes.c) counts these changes, and at the n-th one kills the
process before it, after it, or after half of a write, or lets it fail as a full or broken disk does. Then the
same command goes on. For Linux with a C compiler.

    make soak          every change; make test takes a sample
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dlf import store

_COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and _COMPILER), reason="needs Linux, cc"
)


@pytest.fixture(scope="module")
def go_on(tmp_path_factory):
    """Return (kind, folder, **settings) -> how a process ended, see changes.py."""
    folder, here = tmp_path_factory.mktemp("changes"), Path(__file__).parent
    library = folder / "changes.so"
    command = [_COMPILER, "-w", "-shared", "-fPIC", "-o", library, here / "changes.c", "-ldl"]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(here.parent)}
    # compiled once: all processes whose bits are compared, the undisturbed one too, read the same program
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    servers = {}
    with contextlib.ExitStack() as ends:
        errors = ends.enter_context((folder / "err.txt").open("w"))
        for how in ("fork", "here"):
            command = [sys.executable, here / "changes.py", how]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            servers[how] = subprocess.Popen(command, cwd=here.parent, env=environment, text=True, **pipes)
            ends.enter_context(servers[how])
            ends.callback(servers[how].stdin.close)

        def go_on(kind, folder, size=3, **settings):
            is_killed = settings.get("CHANGES_HOW") in ("before", "half")
            server = servers["fork" if is_killed or "CHANGES_LOG" in settings else "here"]
            print(json.dumps([kind, str(folder), size, settings]), file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield go_on


def attack(kind, go_on, tmp_path, hows, num_points, chance):
    """Attack at so many changes in each of these ways; return how often which came of it."""
    log, whole = tmp_path / "log", tmp_path / "whole"
    assert go_on(kind, tmp_path / "compiles") == 0
    assert go_on(kind, whole, CHANGES_BELOW=str(whole), CHANGES_LOG=str(log)) == 0
    num_changes, expected, counts = len(log.read_text().splitlines()), store.load(whole), {}
    for how in hows:
        for at in sorted(chance.sample(range(1, num_changes + 1), min(num_points, num_changes))):
            folder = tmp_path / f"{how}-{at}"
            settings = {"CHANGES_BELOW": str(folder), "CHANGES_AT": str(at), "CHANGES_HOW": how}
            status = go_on(kind, folder, **settings)
            assert status in ((3, 0) if how.startswith("E") else (-9, 0)), f"{how} {at}: status {status}"
            assert go_on(kind, folder) == 0, f"{how} {at}: does not go on"
            found = store.load(folder)
            found.attrs = expected.attrs
            assert found.identical(expected), f"{how} {at}: other bits"
            left = [
                path
                for path in folder.rglob("*")
                if path.suffix in (".partial", ".old") or "tmp" in path.name
            ]
            assert not left, f"{how} {at} left {left}"
            shutil.rmtree(folder)
            counts[f"{how}, status {status}"] = counts.get(f"{how}, status {status}", 0) + 1
    return counts | {"changes": num_changes}


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_file_system_without_locks_is_used_all_the_same(kind, go_on, tmp_path):
    whole = tmp_path / "whole"
    assert go_on(kind, whole, CHANGES_BELOW=str(whole), CHANGES_HOW="ENOLCK") == 0
    assert store.load(whole).attrs["status"] == "done"


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_stopped_at_some_changes_of_its_files_it_ends_with_the_same_bits(kind, go_on, tmp_path):
    counts = attack(kind, go_on, tmp_path, ("half", "ENOSPC"), 2, random.Random(5))
    assert counts["changes"] > 50 and counts.get("half, status -9", 0) == 2


def read_beside(kind, go_on, tmp_path, num_reads, num_kills, chance):
    """Load a folder again and again while its writer is killed so often, and all that is read is right."""
    size, counts, ended = 30, {"reads": 0, "kills": 0, "completed": 0}, []
    whole, log = tmp_path / "whole", tmp_path / "log"
    assert go_on(kind, tmp_path / "compiles", size) == 0
    assert go_on(kind, whole, size, CHANGES_BELOW=str(whole), CHANGES_LOG=str(log)) == 0
    num_changes, expected = len(log.read_text().splitlines()), store.load(whole)
    folders = [tmp_path / "0"]

    def write():
        while counts["kills"] < num_kills or counts["reads"] < num_reads:
            settings = {"CHANGES_BELOW": str(folders[-1]), "CHANGES_HOW": chance.choice(["before", "half"])}
            at = str(chance.randrange(1, num_changes))
            ended.append(go_on(kind, folders[-1], size, CHANGES_AT=at, **settings))
            counts["kills"] += ended[-1] == -9
            if ended[-1] == 0:
                counts["completed"] += 1
                folders.append(tmp_path / str(len(folders)))

    writer = threading.Thread(target=write)
    writer.start()
    before = {}
    while writer.is_alive():
        folder = folders[-1]
        if (folder / "meta.json").exists():
            found, last = store.load(folder), before.get(folder)
            for name, variable in expected.data_vars.items():
                values = found[name].values
                if kind == "run":
                    is_there = ~np.isnan(values)
                else:
                    is_there = np.broadcast_to(found["status"].values != 0, values.shape)
                is_float = values.dtype.kind == "f"
                assert np.array_equal(values[is_there], variable.values[is_there], is_float), name
                if last is not None:
                    assert (is_there | ~last[name]).all(), f"{name} was there and is not"
                before.setdefault(folder, {})[name] = is_there
            counts["reads"] += 1
    writer.join()
    assert set(ended) <= {0, -9}
    return counts


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_what_is_read_beside_a_writer_that_is_killed_is_right(kind, go_on, tmp_path):
    counts = read_beside(kind, go_on, tmp_path, 20, 2, random.Random(7))
    assert counts["kills"] >= 2 and counts["reads"] >= 20


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_thousand_reads_beside_a_writer_that_is_killed_are_right(kind, go_on, tmp_path, record_property):
    record_property("counts", read_beside(kind, go_on, tmp_path, 1_000, 87, random.Random(8)))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["run", "sweep"])
@pytest.mark.parametrize("how", ["before", "half", "ENOSPC", "EIO"])
def test_stopped_at_any_change_of_its_files_it_ends_with_the_same_bits(
    kind, how, go_on, tmp_path, record_property
):
    record_property("counts", attack(kind, go_on, tmp_path, (how,), 10**6, random.Random(6)))
