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
# # Curvature, with its proof
#
# The Hessian of a loss $F(\theta, t)$ at frozen time splits into the curvature of the loss seen
# through the logits and the curvature of the network itself,
#
# $$H = \underbrace{J^\top \frac{\partial^2 F}{\partial f^2} J}_{\text{GGN}}
# + \underbrace{\sum_{jc} \frac{\partial F}{\partial f_c(x_j)} \nabla^2 f_c(x_j)}_{\text{residual}},$$
#
# and, since $F$ is linear in the class weights, into classes: $H(t) = \sum_c \Gamma_c(t) H_c$. None of
# these is ever stored: each is a function that multiplies it with a vector.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import xarray as xr

from analysis import figures, operators
from analysis.composition import of_images
from analysis.density import spectral_density, trace
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import check_operator
from analysis.ntk import empirical_ntk, spectrum
from dlf.train import frozen, loss_of
from experiments.build import build
from experiments.configs import curvature, tiny

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Products over a data set, in batches of any size
#
# The loss is a mean over 60 examples; batches of 7 are ragged, and the products are the same. The
# network has tanh units here: at the kink of a ReLU, differences of the gradient are no derivative, and
# the self-check would say so.

# %%
config = tiny.get_config()
config.model.activation = "tanh"
experiment = build(config)
problem, state = experiment.problem, experiment.state
params, batch, step = state.params, problem.train, state.step
loss_fn = loss_of(problem, state)
matvec = operators.hessian(loss_fn, params, batch, step, batch_size=7)
check_operator(matvec, params, key=jax.random.key(0), loss=lambda p: loss_fn(p, batch, step))

# %% [markdown]
# The self-check measured, relative to a product: how much two equal products differ, how far the
# operator is from symmetric, and how far from differences of the gradient.
#
# ## Top eigenpairs
#
# Thick-restart Lanczos. Residuals $\lVert Hu - \lambda u\rVert$ come from the measured products, at no
# further cost. The second call starts from the vectors of the first.

# %%
pairs = top_eigenpairs(matvec, params, num=3, tol=1e-4, key=jax.random.key(1))
moved = jax.tree.map(lambda p: 1.001 * p, params)
nearby = operators.hessian(loss_fn, moved, batch, step, batch_size=7)
warm = top_eigenpairs(nearby, moved, num=3, tol=1e-4, start=pairs.vectors, key=jax.random.key(2))
for name, found in (("cold", pairs), ("warm", warm)):
    print(name, found.values.round(4), "residuals", found.residuals.max(), "products", found.num_matvecs)

# %% [markdown]
# ## Density and trace
#
# Stochastic Lanczos quadrature sees the whole spectrum through a few random vectors; the spread over
# these gives the standard error. The trace is estimated with its dominant part summed exactly.

# %%
density = spectral_density(matvec, params, num_probes=8, order=32, key=jax.random.key(3))
plt.figure(figsize=(6, 2.5))
plt.semilogy(density.values, density.density)
plt.fill_between(
    density.values,
    jnp.maximum(density.density - density.standard_error, 1e-6),
    density.density + density.standard_error,
    alpha=0.3,
)
plt.ylim(bottom=1e-4)
plt.xlabel(r"eigenvalue $\lambda$ (nat)")
plt.ylabel("density (1/nat)")
trace(matvec, params, num_matvecs=60, key=jax.random.key(4))

# %% [markdown]
# ## The neural tangent kernel
#
# Its spectrum, on all training examples, traced over the logits and divided by their number.

# %%
spectrum(empirical_ntk(frozen(problem, state), params, batch.inputs))[:5]

# %% [markdown]
# ## All of it on one figure
#
# The same functions that `make curvature` calls on the run of Fig. 4 and on a network with more than
# 100,000 parameters, here on small ones. Along a period the sharpness is carried by the class that is
# emphasised.

# %%
run = curvature.along(tiny.get_config(), num_points=20, num_probes=4, order=32)
images = of_images(widths=(8, 8), num_examples=100, num_steps=30, num_probes=2, order=16)
figures.curvature(xr.merge([run, images], combine_attrs="no_conflicts"))
