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
# # Cascades: when training becomes unstable, why, and what kind of instability it is
#
# Where the sharpness passes the threshold of the optimizer, 2/η for gradient descent, a training step
# overshoots: the multiplier $1 - \eta\lambda$ passes -1, and a period doubling follows. This notebook
# goes from a map that is solved exactly to two turns of the run of Fig. 4.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import cascades, figures, stability
from analysis.figures.unstable import PERIOD_COLORS
from analysis.findings import onsets
from dlf import optimizers, train
from experiments import records
from experiments.configs import cascades as config_cascades
from experiments.second_pass import measure_windows
from experiments.train import train as train_config

jax.config.update("jax_enable_x64", True)
key = jax.random.key(0)
scale = "small"  # "smoke" runs through in a minute

# %% [markdown]
# ## A loss that is solved exactly
#
# Gradient descent on $x^2/2 - x^3/3$ with rate η is the logistic map with $r = 1 + \eta$: doublings at
# 2, √6 and 2.544, chaos from 2.57 on, a period-3 window at √8, exponent ln 2 at 3. The labels come from
# the series and the growth of a tangent, nothing else.


# %%
@jax.jit
def descend(rate):
    sgd = optimizers.make_optimizer("sgd", rate)
    step_fn = train.make_step(lambda x, batch, step: x**2 / 2 - x**3 / 3, lambda step: None, sgd)

    def advance(state):
        return step_fn(state)[0]

    state = train.init_state(jnp.asarray(0.3), sgd)
    state = jax.lax.fori_loop(0, 5_000, lambda _, s: advance(s), state)
    tangents = stability.first_tangents(state, 1, key=key)

    def body(carry, _):
        state, tangents = carry
        tangents, growth = stability.log_growth(advance, state, tangents)
        return (advance(state), tangents), (state.params, growth[0])

    return jax.lax.scan(body, (state, tangents), length=512)[1]


figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for rate in np.linspace(1.8, 3.0, {"small": 241, "smoke": 13}[scale]):
    series, growth = map(np.asarray, descend(rate))
    # amplitudes are relative to the level of a series: one for x, which has none of its own
    label = int(np.median(cascades.label(1 + series, growth).labels))
    axes.plot(np.full(64, rate), series[:64], ".", markersize=1, color=PERIOD_COLORS[label])
axes.set(xlabel="learning rate η", ylabel="x on the attractor")
for code in (1, 2, 4, 8, 16, cascades.CHAOS, cascades.IRREGULAR):
    axes.plot([], [], "o", markersize=4, color=PERIOD_COLORS[code], label=cascades.name(code))
legend = axes.legend(frameon=False, fontsize=7, loc="upper left")
# %% [markdown]
# ## What follows a flip
#
# A number decides: the flip coefficient. Positive, the steps settle into a two-cycle of an amplitude that
# it predicts; negative, they leave.

# %%
parabolas = {
    "cubic": lambda x: x**2 / 2 - x**3 / 3,
    "hardening quartic": lambda x: x**2 / 2 + x**4 / 4,
}
for name, loss in parabolas.items():
    flip = stability.flip_coefficient(loss, jnp.asarray(0.0), jnp.asarray(1.0), learning_rate=2.02)
    x = 1e-3
    for _ in range(3_000):
        x = x - 2.02 * jax.grad(loss)(x) if abs(x) < 1e3 else float("inf")
    found = abs(float(x - (x - 2.02 * jax.grad(loss)(x)))) / 2 if np.isfinite(x) else float("inf")
    print(f"{name}: c = {flip.coefficient:.2f}, two-cycle predicted {flip.amplitude:.4f}, found {found:.4f}")

# %% [markdown]
# ## Thresholds with and without a formula

# %%
for name, settings in {
    "sgd": {},
    "heavy ball": dict(momentum=0.9),
    "Nesterov": dict(momentum=0.9, nesterov=True),
}.items():
    print(f"{name}: {stability.threshold('sgd', 0.1, **settings):.2f} nat")
try:
    stability.threshold("adamw", 0.1)
except ValueError as error:
    print(error)

# %%
adamw = optimizers.make_optimizer("adamw", 0.1, weight_decay=0.1, eps=1.0)
curvatures = jnp.asarray([420.0, 3.0])
step_fn = train.make_step(lambda x, batch, step: curvatures @ x**2 / 2, lambda step: None, adamw)
state = train.init_state(jnp.full(2, 1e-6), adamw)
for _ in range(40):
    state = step_fn(state)[0]._replace(params=jnp.full(2, 1e-6))
found = stability.step_multipliers(lambda state: step_fn(state)[0], state, key=key)
print(f"the most negative multiplier of AdamW here: {found.flip:.3f}, below -1: it flips")

# %% [markdown]
# ## Two turns of the run of Fig. 4
#
# The tracker follows the three largest eigenvalues, tells the classes' parts and what moved them; the
# exponent is measured at every step. Then a second pass, from the checkpoints, measures the onsets at every
# step: the eigenvalue alternates with the loss, so that only the mean of two consecutive steps says where it
# stands.

# %%
config = config_cascades.get_config(scale)
config.num_steps = {"small": 11_000, "smoke": 600}[scale]
folder = Path(tempfile.mkdtemp())
train_config(config, folder / "run")
run = records.load(folder / "run")
fine = measure_windows(config, folder / "run", onsets.spans(run))
rows = onsets.instabilities(run, fine)
pd.DataFrame(rows).set_index("onset").transpose()

# %%
onset = rows[min(1, len(rows) - 1)].onset
sharpness = fine["tracked_eigenvalues"][:, 0].sel(step=slice(onset - 130, onset + 230))
figure, axes = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
axes.plot(sharpness["step"], sharpness, ".", markersize=2, color="#9a9a9a", label="every step")
axes.plot(
    sharpness["step"][:-1], (sharpness.values[1:] + sharpness.values[:-1]) / 2, color="#0072B2",
    label="mean of two consecutive steps",
)  # fmt: skip
axes.axhline(2, color="#D55E00", linestyle="--", label="threshold 2/η")
axes.axvline(onset, color="#222222", linestyle=":", label="onset")
axes.set(xlabel="step", ylabel=r"Hessian $\lambda_{\max}$ (nat)", ylim=(0.8, 3.2))
legend = axes.legend(frameon=False, ncols=2, fontsize=7)
# %% [markdown]
# Everything is seen at a glance: periods in colour, the threshold, forecasts at frozen parameters, the
# exponent, and who moved the sharpness.

# %%
figures.cascades(onsets.reduce({"run": run, "measured": fine}))
