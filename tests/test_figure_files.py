"""The files of a figure: whose they are, where they cannot be written, and what a dry run leaves."""

import shutil

import pytest

from experiments import figure


def test_data_of_others_are_not_written_over(command, tmp_path):
    (tmp_path / "tiny.nc").write_text("precious")
    status, _, err = command(figure.main, "tiny", f"--workdir={tmp_path}")
    assert status == 2 and "is of no figure of this kind: name another folder" in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.nc"]
    assert (tmp_path / "tiny.nc").read_text() == "precious"


def test_a_dry_run_says_what_is_left_and_how_long_and_runs_nothing(command, tmp_path, smoke):
    asked = "phase_amplitude_period", "--scale=smoke", "--dry-run", f"--workdir={tmp_path / 'new'}"
    status, out, _ = command(figure.main, *asked)
    assert status == 0 and out.count("core-hours") == 3 and "about" in out.splitlines()[-1]
    assert not (tmp_path / "new").exists()
    for folder, left in ((tmp_path / "new", "600 steps"), (smoke("tiny"), "0 steps, 0 min")):
        status, out, _ = command(figure.main, "tiny", "--dry-run", f"--workdir={folder}")
        assert status == 0 and left in out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments", [["phase_static", "--shipped"], ["phase_static", "--scale=smoke"], ["tiny"]]
)
def test_a_folder_that_cannot_be_written_is_named(command, tmp_path, arguments):
    (tmp_path / "file").write_text("")
    status, _, err = command(figure.main, *arguments, f"--workdir={tmp_path / 'file'}")
    assert status == 2 and "Traceback" not in err
    assert "cannot" in err.splitlines()[-1] and str(tmp_path / "file") in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["tiny.partial", "tiny.png", "tiny.pdf"])
def test_a_link_in_place_of_a_file_of_a_figure_is_not_followed(command, tmp_path, smoke, name):
    folder = shutil.copytree(smoke("tiny"), tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_text("mine")
    status, _, err = command(figure.main, "tiny", f"--workdir={folder}")
    assert status == 2 and f"{name} is a link" in err and err.count("\n") == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_figure_that_cannot_be_written_is_named(command, tmp_path, smoke):
    folder = shutil.copytree(smoke("tiny"), tmp_path / "run")
    (folder / "tiny.png").unlink()
    (folder / "tiny.png").mkdir()
    status, _, err = command(figure.main, "tiny", f"--workdir={folder}")
    assert status == 2 and "cannot use" in err and err.count("\n") == 1
