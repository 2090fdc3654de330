"""The curvature of Myrtle5-64 and WRN-10-1 at 32x32: eigenvalues, density, split by class, NTK and memory.

`python -m experiments.figure curvature_images`, 4 minutes on two cores. Made images, of a random pattern for
each class under noise, after a few steps of the static loss. All is [ours].
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from analysis import composition
from dlf import data, losses, models, schedules, train
from dlf.types import Batch
from experiments.configs import cifar10_myrtle5

RUNS = {}  # what is trained is measured at its end
FIGURE = "image_curvature"
EXPECTED = (("eigenvalues", {"network": "Myrtle5-64", "rank": 0}, 7.41, 6.5, 8.5, "[ours], nat"),)
# scale: examples, steps, channels, vectors and order of the density, examples of the NTK
_SIZES = {
    "smoke": (20, 2, 4, 2, 4, 5),
    "small": (128, 100, 64, 2, 30, 32),
    "paper": (1_024, 400, 64, 4, 60, 128),
}


def get_config(scale="small"):
    """Return the run whose model is measured, on made images of the given number."""
    config = cifar10_myrtle5.get_config()
    config.dataset.num_train, config.num_steps, width, num_probes, order, num_ntk = _SIZES[scale]
    config.model.widths = (width,) * 4
    config.probes = dict(curvature=dict(num=5, num_probes=num_probes, order=order, num_ntk=num_ntk))
    return config


def made(num_examples):
    """Return images as bytes: a pattern for each of ten classes, under as much noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_examples) % 10
    patterns, noise = rng.random((10, 32, 32, 3)), rng.random((num_examples, 32, 32, 3))
    images = (127 * (patterns[labels] + noise)).astype(np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(labels))


def measure(config, results, folder):
    """Train both networks a little and measure their curvature."""
    scaling, key = dict(mean=config.model.mean, std=config.model.std), jax.random.key(0)
    batch = made(config.dataset.num_train)
    networks = {
        f"Myrtle5-{config.model.widths[0]}": models.myrtle(10, config.model.widths, "relu", **scaling),
        "WRN-10-1": models.wide_resnet(10, depth=10, widen_factor=1, **scaling),
    }
    found = {}
    for name, model in networks.items():
        optimizer = dict(name="sgd", learning_rate=0.02, momentum=0.9)
        problem = train.make_problem(
            model, losses.cross_entropy, schedules.constant(10), optimizer, batch,
            batch_fn=data.minibatches(batch, len(batch.inputs) // 2, key=key), key=key,
        )  # fmt: skip
        params, model_state = model.init(key, batch.inputs[:1])
        state = train.init_state(params, problem.optimizer, model_state)
        state, _, _ = train.make_loop(train.problem_step(problem))(state, {}, config.num_steps)
        found[name] = composition.of_network(problem, state, batch_size=32, **config.probes.curvature)
    return xr.concat([*found.values()], xr.IndexVariable("network", [*found]), join="outer")


def reduce(results):
    """Return what was measured, as it is."""
    return results["measured"]


def in_words(found):
    """Return a table of both networks."""
    names = [str(name) for name in found["network"].values]
    cells = [found.sel(network=name) for name in names]

    def listed(values):
        return ", ".join(f"{value:.3g}" for value in np.atleast_1d(values))

    rows = {
        "parameters": lambda of: f"{int(of['num_parameters']):,}",
        "largest eigenvalues (nat)": lambda of: listed(of["eigenvalues"]),
        "largest residual": lambda of: f"{float(of['residuals'].max()):.1e}",
        "products": lambda of: f"{int(of['matvecs'])}",
        "trace": lambda of: f"{float(of['trace']):.3g} ± {float(of['trace_error']):.2g}",
        "split of the first by class": lambda of: listed(of["class_curvature"]),
        "largest NTK eigenvalues": lambda of: listed(of["ntk_spectrum"].values[:3]),
        "memory of a product (MiB)": lambda of: f"{float(of['memory']) / 2**20:.0f}",
    }
    table = [(words, *map(in_words, cells)) for words, in_words in rows.items()]
    return {"curvature of images, 32x32": [("quantity", *names), *table]}
