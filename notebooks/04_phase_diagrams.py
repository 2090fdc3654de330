# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Phase diagrams: thousands of runs as one labelled data set
#
# For which amplitude and period does a dynamical loss learn what the static loss cannot? One run says
# nothing about that. A sweep runs a grid of settings and seeds and keeps all of it in one store, which
# opens as one data set, also while it is being filled.

# %%
import tempfile
from pathlib import Path

import xarray as xr

from analysis import figures
from analysis.findings import diagrams
from dlf import store
from experiments.configs import tiny
from experiments.sweep.axes import axis, make_sweep, record
from experiments.sweep.fill import run
from experiments.train import train

# %% [markdown]
# ## Declare and run
#
# A sweep is a configuration, the axes that vary it, and what to keep of each run. The last axis is the
# seed: of the data and of the first parameters. Four times four settings, five seeds, 80 runs.

# %%
config = tiny.get_config()
config.float64 = False
config.model.hidden_widths = (12,)
with config.unlocked():
    config.probes = dict(validation=dict(every=599))
sweep = make_sweep(
    config,
    "main",
    [
        axis("amplitude", (1.0, 3.0, 10.0, 30.0), "schedule.amplitude"),
        axis("period", (20, 50, 100, 150), "schedule.period"),
        axis("seed", range(5), "seed", "dataset.seed"),
        record("final", "loss", "accuracy", "validation_accuracy"),
    ],
)
folder = Path(tempfile.mkdtemp())
meta = run(sweep, folder / "sweep")
meta["status"], meta["cells"]

# %% [markdown]
# ## Open, slice, plot
#
# Every cell has a `status`: 0 not run, 1 done, 2 diverged, 3 invalid, with a reason. Running the same
# sweep again would fill cells with 0 and nothing else.

# %%
cells = store.load(folder / "sweep")
cells.drop_attrs(deep=False)

# %%
mean = cells["validation_accuracy"].mean("seed")
mean.plot(figsize=(4.5, 3.2), xscale="log", yscale="log", cbar_kwargs={"label": "validation accuracy, mean"})
# %% [markdown]
# ## The best cell, once more alone
#
# The numbers of a run are arguments of its compiled program, alone as among others: the bits are the
# same.

# %%
best = {dim: int(index) for dim, index in mean.argmax(...).items()}
print({dim: cells[dim].values[index].item() for dim, index in best.items()})
index = (best["amplitude"], best["period"], 2)  # of seed 2
train(sweep.cell(index), folder / "alone")
alone = store.load(folder / "alone")
among = cells.isel(amplitude=index[0], period=index[1], seed=index[2])
for name in ("loss", "accuracy", "validation_accuracy"):
    print(f"{name}: {alone[name].values[-1]!r} alone, {among[name].values[()]!r} among others")
    assert alone[name].values[-1] == among[name].values

# %% [markdown]
# ## Is it better than the static loss?
#
# The static loss is amplitude 1. Seeds pair the runs: the same data, the same first parameters. Their
# differences are tested by flipping signs, and corrected for the number of cells.

# %%
reduced = diagrams.reduce({"main": cells}, num_classes=3)
reduced[["validation_accuracy_gain", "validation_accuracy_gain_error", "validation_accuracy_p_value"]].sel(
    amplitude=10.0
).to_dataframe().round(3)

# %% [markdown]
# With five seeds no p value is below $2^{-5}$: such a small sweep cannot be significant in any cell
# but by many of them. The sweep behind the figure below has ten.
#
# ## The diagram of the first paper
#
# The reduced data of 1,000 runs of 35,000 steps come with the package
# (`python -m experiments.figure phase_amplitude_period --shipped` draws it).

# %%
shipped = xr.load_dataset("experiments/configs/phase_amplitude_period.nc", engine="scipy")
figures.amplitude_period(shipped)

# %%
for quantity, value in diagrams.in_words(shipped)["diagram"][1:]:
    print(f"{quantity}: {value}")
