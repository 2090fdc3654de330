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
# # What a dynamical loss is
#
# A network learns to tell $C$ classes apart. In a dynamical loss each class's share of the loss
# rises and falls in turn while the network trains:
#
# $$F(\theta, t) = \frac1P \sum_{j=1}^P \Gamma_{y_j}(t)\, \ell\big(f(x_j; \theta), y_j\big),
# \qquad \sum_i \Gamma_i(t) = C.$$
#
# The weights $\Gamma_i > 0$ tilt the landscape without moving its global minima: where every
# example is fitted, every weighted sum is zero, too. Valleys grow narrow and wide again as the
# landscape tilts. Where the largest eigenvalue of the Hessian passes $2/\eta$, gradient descent
# with learning rate $\eta$ is unstable there: it goes through period doublings into chaos, and
# comes out in another, wider valley.
#
# Source: Ruiz-Garcia et al., "Tilting the playing field", ICML 2021, arXiv 2102.03793.

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from analysis import figures
from dlf import data, schedules
from experiments import records
from experiments.configs import tiny
from experiments.train import train

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The weights
#
# One class after the other is emphasised by a triangle from 1 up to the amplitude $A$ and back,
# over a period of $T$ steps; then the weights are scaled so that they sum to $C$.

# %%
steps = jnp.arange(300, dtype=jnp.int32)
weights = jax.vmap(schedules.triangular(num_classes=3, amplitude=70.0, period=100))(steps)
plt.figure(figsize=(7, 2))
plt.plot(steps, weights, label=[f"class {i}" for i in range(3)])
plt.xlabel("step")
plt.ylabel(r"class weight $\Gamma_i$")
plt.legend(loc="upper right")
# %% [markdown]
# ## The data
#
# Three arms of a spiral: the first paper's example, on which gradient descent on the static loss
# fails with the learning rate that a dynamical loss succeeds with.

# %%
train_set = data.spiral().train
plt.figure(figsize=(3, 3))
plt.scatter(*train_set.inputs.T, c=train_set.labels, s=6, cmap="viridis")
plt.xlabel("$x_1$")
plt.ylabel("$x_2$")
plt.gca().set_aspect("equal")

# %% [markdown]
# ## A short run
#
# `experiments/configs/tiny.py` is the whole path of Fig. 4 in a few seconds: a smaller network,
# shorter periods. A configuration is turned into a work folder, and a work folder into one
# labelled data set. Every series carries its own step numbers; `rank` 0 is the largest eigenvalue.

# %%
# %%capture
workdir = tempfile.mkdtemp()
train(tiny.get_config(), workdir)

# %%
run = records.load(workdir)
{name: dict(series.sizes) for name, series in run.data_vars.items()}

# %%
figures.fig4(run)

# %% [markdown]
# The eigenvalues carry a proof: a residual $\lVert Hu - \lambda u \rVert$ bounds the distance from
# each value to an eigenvalue of the Hessian.

# %%
run["hessian_residuals"].max().item()

# %% [markdown]
# ## The figure of the paper
#
# `make fig4` trains the full 70,000 steps and leaves the same kind of folder in `results/fig4`:
# `figures.fig4(records.load("../results/fig4"))` draws it here.
