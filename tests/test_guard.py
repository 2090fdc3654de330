"""The guard of the house tells what differs, and that nothing was compared."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

GUARD = Path(__file__).parent / "guard.py"


def kept(folder, value=1.0):
    group = zarr.create_group(folder / "run" / "metrics.zarr", zarr_format=3)
    group.create_array("loss", data=np.array([0.5, value]), dimension_names=["step"])
    (folder / "run" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "values, told",
    [
        (((1.0,), (1.0,)), "the same, to the bit"),
        (((1.0,), (1.0 + 2**-52,)), "loss differs, by at most 2.2e-16, first at [1]"),
        (((1.0,), ()), "run/metrics.zarr is in one only"),
        (((), (1.0,)), "run/metrics.zarr is in one only"),
        (((), ()), "holds nothing that was kept"),
    ],
)
def test_it_tells_what_differs(tmp_path, values, told):
    for name, value in zip(("old", "new"), values, strict=True):
        if value:
            kept(tmp_path / name, *value)
    command = [sys.executable, str(GUARD), "compare", str(tmp_path / "old"), str(tmp_path / "new")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told in ended.stdout and ended.returncode == (told != "the same, to the bit")
