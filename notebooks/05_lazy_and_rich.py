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
# # Lazy and rich
#
# A very wide network, trained with a learning rate that falls as its width grows, stays *lazy*: it is linear
# in its parameters, $f(\theta_0) + J (\theta - \theta_0)$, and its neural tangent kernel $J J^T$ stands
# still. How much of what a dynamical loss does can such a network show? neural-tangents holds both limits:
# the kernel of infinite width, and the linearised network. dlf makes it import on today's JAX.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from analysis import neural_tangents_import
from analysis.infinite_width import infinite_ntk, squared_loss_flow
from analysis.ntk import empirical_ntk, full_ntk, relative_distance
from dlf import data, losses, models, optimizers, schedules, store, train
from experiments.configs import lazy_rich
from experiments.train import train as train_config

jax.config.update("jax_enable_x64", True)
nt = neural_tangents_import.load()  # the whole library, for your own models: nt.stax, nt.predict, ...
scale = "small"  # "smoke" runs through in a minute
dataset = data.spiral()
print(f"neural-tangents {nt.__version__} on jax {jax.__version__}")

# %% [markdown]
# ## The kernel of infinite width
#
# In standard parametrisation the kernel grows as the width N, so each width is held against its own limit.
# The distance falls as N^(-1/2), from where the part that grows is the larger one.

# %%
inputs, num_draws = dataset.train.inputs[::3], 10
widths = np.array({"small": [30, 100, 300, 1000, 3000], "smoke": [8, 16]}[scale])
distances = []
for width in widths:
    network = dict(hidden_widths=(int(width),), activation="relu", initialization="original", use_bias=True)
    model, reference = models.mlp(3, **network), infinite_ntk(**network)(inputs)

    def distance(key, model=model, reference=reference):
        params, _ = model.init(key, inputs)
        kernel = empirical_ntk(models.apply_fn(model), params, inputs)
        return relative_distance(kernel, reference)

    distances.append(jax.lax.map(distance, jax.random.split(jax.random.key(0), num_draws)))
distances = np.array(distances)
figure, axes = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
axes.errorbar(
    widths, distances.mean(1), distances.std(1, ddof=1), marker="o", capsize=2, label="spiral network"
)
axes.plot(widths, distances[-1].mean() * (widths[-1] / widths) ** 0.5, "k:", label="slope $-1/2$")
axes.set(
    xscale="log",
    yscale="log",
    xlabel="width $N$",
    ylabel="relative distance from\nthe kernel of infinite width",
)
legend = axes.legend(frameon=False)

# %% [markdown]
# The default that cost the paper's authors their figure: `stax.Dense` has no bias unless it is asked for one,
# and 0.0 means one that starts at zero and is trained. The kernel of an input near the origin tells.

# %%
near = jnp.asarray([[0.1, 0.0]])
for b_std in (None, 0.0):
    first, last = (nt.stax.Dense(width, b_std=b_std, parameterization="standard") for width in (100, 3))
    *_, kernel_fn = nt.stax.serial(first, nt.stax.Relu(), last)
    print(f"b_std={b_std}: {float(kernel_fn(near, None, 'ntk')[0, 0]):.3f}")

# %% [markdown]
# ## Training in closed form
#
# Under the static squared loss the linearised network has an exact solution for an infinitely small learning
# rate. Our training loop follows it, the more closely the smaller the rate: the difference halves.

# %%
model = models.mlp(3, (100,), activation="relu", initialization="original", use_bias=True)
params, _ = model.init(jax.random.key(0), dataset.train.inputs)
linear = nt.linearize(models.apply_fn(model), params)
start = linear(params, dataset.train.inputs)
flow = squared_loss_flow(full_ntk(linear, params, dataset.train.inputs), dataset.train.labels, start)
loss_fn = losses.make_loss(linear, losses.dmse1, schedules.constant(3))
for rate in (0.04, 0.02, 0.01):
    optimizer = optimizers.make_optimizer("sgd", rate)
    loop = train.make_loop(train.make_step(loss_fn, data.full_batch(dataset.train), optimizer))
    state, _, _ = loop(train.init_state(params, optimizer), {}, round(20 / rate))
    apart = jnp.max(jnp.abs(linear(state.params, dataset.train.inputs) - flow(jnp.asarray(20.0))))
    print(f"η = {rate}: largest difference of a logit at η·step = 20: {float(apart):.1e}")

# %% [markdown]
# ## Four turns of the run of Fig. 4, real and linearised
#
# `model.linearized` is a key of the configuration: loop, probes and store are the same.

# %%
runs = {}
for linearized in (False, True):
    config = lazy_rich.get_config(scale)
    config.num_steps = {"small": 20_004, "smoke": 404}[scale]
    config.model.linearized = linearized
    workdir = Path(tempfile.mkdtemp())
    train_config(config, workdir)
    runs[linearized] = store.load(workdir)

# %%
figure, grid = plt.subplots(4, 2, figsize=(6.5, 5.6), sharex=True, sharey="row", layout="constrained")
for column, (linearized, run) in zip(grid.T, runs.items(), strict=True):
    column[0].semilogy(run["step"], run["loss"], ",")
    column[1].plot(run["step"], run["accuracy"], ",")
    column[2].semilogy(run["stability_step"], run["sharpness"])
    column[2].axhline(2, color="#D55E00", linestyle="--")
    ntk = run["ntk_eigenvalues"].sel(rank=0)
    column[3].semilogy(run["ntk_step"], ntk / ntk[0])
    column[0].set_title("linearised" if linearized else "real")
    column[3].set_xlabel("step")
labels = "loss F (nat)", "training\naccuracy", "Hessian λmax\n(nat) and 2/η", "NTK λmax(t)\n/ λmax(0)"
for axes, label in zip(grid[:, 0], labels, strict=True):
    axes.set_ylabel(label)

# %% [markdown]
# The real network sharpens, crosses 2/η at the ends of the turns, and its kernel grows from turn to turn. In
# the linearised one the sharpness falls in each turn and comes back at each switch of class, where all class
# weights are one, to about what it is under the static loss; it stays below 2/η, and little is learned.
#
# `make lazy` does this for ten seeds, two learning rates and the static twins:
#
# ![real and linearised networks over ten seeds](lazy_rich.png)
#
# At a rate of 2 the linearised network is above 2/η under the static loss, in a two-cycle most of the time.
# The dynamical loss takes it below in every turn and lets it become unstable around each switch: period
# doublings survive linearisation. The gain in accuracy, the sharpening and the wider valleys do not.
