"""Our layers against those of lax and flax, and the warning about theirs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dlf import layers
from dlf.data import digits


def test_the_convolutional_layer_is_that_of_flax(float64):
    images = digits(num_train=5).train.inputs
    params = jax.jit(layers.Conv(6).init)(jax.random.key(0), images)
    theirs = nn.Conv(6, (3, 3), kernel_init=nn.initializers.he_normal(), param_dtype=images.dtype)
    jax.tree.map(np.testing.assert_array_equal, params, jax.jit(theirs.init)(jax.random.key(0), images))
    params["params"]["bias"] += jnp.arange(6, dtype=images.dtype)
    np.testing.assert_allclose(
        jax.jit(layers.Conv(6).apply)(params, images), theirs.apply(params, images), rtol=1e-4, atol=1e-5
    )
