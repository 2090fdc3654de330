"""Results on disk: one training run, or one sweep of thousands, each loaded as one labelled data set."""

from pathlib import Path

import xarray as xr

from dlf.store import cells, run
from dlf.store.checkpoints import check_path
from dlf.store.files import StoreError as StoreError
from dlf.store.files import exclusive
from dlf.store.run import checkpoint_before, commit, committed, create, damage, restore, write_meta


def load(workdir: str | Path) -> xr.Dataset:
    """Load a run or a sweep as one labelled data set, also while it is going on.

    What is not measured or not yet committed is NaN. A run has a step coordinate for every series; a
    sweep has its axes as dimensions and a `status` for every cell (see `dlf.store.cells`). Attributes
    hold the configuration (a JSON string), the commit, and all of meta.json.

    Raises StoreError that names the file if the folder holds neither, or something damaged.
    """
    workdir = Path(workdir)
    try:
        return cells.load(workdir) if (workdir / cells.STORE).exists() else run.load(workdir)
    except OSError as error:
        raise StoreError(f"cannot read {error.filename}: {error.strerror}") from error
