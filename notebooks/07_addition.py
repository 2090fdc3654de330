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
# # Addition without forgetting
#
# In 1989 McCloskey and Cohen taught a network the seventeen additions of one, then those of two, and found
# that it forgot the first while it learned the second. A network whose architecture holds *conditional
# clauses* does not (Ruiz-Garcia 2022; of that paper only abstract and introduction could be read, so all
# details of our network are ours). Tasks in sequence and a loss that moves are one thing here: what a step
# sees is a function of the step.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from analysis.findings import adders
from dlf import data, outputs
from experiments import build
from experiments.configs import addition

scale = "small"  # "smoke" runs through in seconds

# %% [markdown]
# ## Ones, then twos
#
# Number n switches on three of twelve units, so that neighbours share two of them: the facts of one list
# are near those of the other, their answers are not the same.

# %%
dataset = data.facts((1, 2))
print("3 + 1 switches on the inputs", np.flatnonzero(dataset.train.inputs[2]).tolist())


def followed(config):
    loop, arguments = build.ready_loop(build.build(config), config.probes)
    return loop(*arguments, config.num_steps)


figure, grid = plt.subplots(1, 2, figsize=(6.5, 2.6), sharey=True, layout="constrained")
networks = (
    (addition.get_config, "best_match", "classical: nearest answer"),
    (addition.clauses, "right_side", "clauses: every digit"),
)
for axes, (get_config, criterion, title) in zip(grid, networks, strict=True):
    config = get_config(scale)
    series = followed(config)[2]
    trials = np.arange(0, config.num_steps, addition.FACTS)
    for name in ("ones", "twos"):
        shares = series[f"{name}_{criterion}"][trials].mean(axis=1)
        axes.plot(trials // addition.FACTS - config.batches.num_epochs[0], 100 * shares, label=name)
    axes.axvline(0, color="0.6", linewidth=0.6)
    axes.set(xlabel="trials of twos (before 0: of ones)", title=title)
    axes.legend()
_ = grid[0].set_ylabel("right (%)")

# %% [markdown]
# Within three trials of twos the classical network has lost most of the ones; its wrong answers are those of
# the twos. The clauses lose nothing, and are right on twos before they have seen one: both lists need the
# same clauses.
#
# ## What the clauses have learned
#
# A clause is the probability of a digit, and of a carry that nobody ever supervised, for one condition
# (carry, a, b). After random additions, one at a time, the table is that of binary addition, and it adds
# numbers of any length.

# %%
config = addition.pairs(scale)
state, _, series = followed(config)
for name, table in state.params.items():
    values = np.asarray(jax.nn.sigmoid(table)).reshape(2, 4).round(2)
    print(f"{name}, rows: carry 0 and 1; columns: a, b = 00, 01, 10, 11\n{values}")
model = build.build(config).problem.model
longer = adders.longer_numbers(model, [state.params], (5, 10, 20))
for bits, share in zip((5, 10, 20), longer["longer_share"].values.ravel(), strict=True):
    print(f"numbers of {bits} bits: {share:.0%} right")

# %% [markdown]
# The two lists alone cannot teach it: 1 + 1 with a carry is in none of them, and 29 % of all pairs of five
# bits need it.

# %%
print(f"pairs that do without: {adders.bound():.3f}")

# %% [markdown]
# ## An answer of your own
#
# Three plus two as the network of clauses sees it, least bit first:

# %%
bits = jnp.asarray([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
digits = model.apply(state.params, (), bits)
right = outputs.right_side(digits, jnp.asarray([[0.0, 1, 0, 1, 0]]))  # a list, then a target for each digit
print(np.asarray(digits).round(2), "right" if right[0] else "wrong")

# %% [markdown]
# `make addition` does this for a hundred seeds, with the published numbers of 1989 beside it, sharpness and
# kernels along the way, and the bridge to dynamical losses: both lists at once, under a loss that tilts to
# one and then to the other.
#
# ![ones, twos and all pairs over a hundred seeds](addition_lists.png)
