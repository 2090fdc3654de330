"""The training step of the phase diagrams in PyTorch: one run in eager mode, many with torch.func."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.build import Experiment


def _arrays(experiment: Experiment) -> tuple[Any, Any, list[Any], Any, float]:
    """Return inputs, labels, first parameters, class weights and learning rate as PyTorch has them."""
    import torch

    torch.set_num_threads(1)  # this network gains nothing from a second one
    batch = experiment.replica.train
    layers = [experiment.state.params[name] for name in ("Dense_0", "Dense_1")]
    start = [
        torch.tensor(np.array(array)) for layer in layers for array in (layer["kernel"].T, layer["bias"])
    ]
    inputs, labels = torch.tensor(np.array(batch.inputs)), torch.tensor(np.array(batch.labels)).long()
    weights = torch.tensor([1.5, 0.75, 0.75], dtype=inputs.dtype)  # PyTorch spends no time on a schedule
    return inputs, labels, start, weights, float(experiment.replica.settings["optimizer.learning_rate"])


def _loss(params, inputs, labels, weights):
    from torch.nn.functional import cross_entropy, linear, relu

    w_0, b_0, w_1, b_1 = params
    logits = linear(relu(linear(inputs, w_0, b_0)), w_1, b_1)
    return cross_entropy(logits, labels, weight=weights, reduction="sum") / len(labels)


def eager(experiment: Experiment, num_steps: int) -> Callable[[], Any]:
    """Return a function that trains one run in eager mode, the fastest way that PyTorch has for it."""
    import torch

    inputs, labels, start, weights, rate = _arrays(experiment)

    def run():
        params = [array.clone().requires_grad_() for array in start]
        for _ in range(num_steps):
            grads = torch.autograd.grad(_loss(params, inputs, labels, weights), params)
            with torch.no_grad():
                for array, grad in zip(params, grads, strict=True):
                    array.sub_(grad, alpha=rate)
        return params

    return run


def vectorized(experiment: Experiment, num_replicas: int, num_steps: int) -> Callable[[], Any]:
    """Return a function that trains many runs at once, by `torch.func.vmap` of `torch.func.grad`."""
    import torch
    from torch.func import grad, vmap

    inputs, labels, start, weights, rate = _arrays(experiment)
    stacked = tuple(torch.stack([array] * num_replicas) for array in start)
    grads_of = vmap(grad(_loss), in_dims=(0, None, None, None))

    @torch.no_grad()
    def run():
        params = stacked
        for _ in range(num_steps):
            grads = grads_of(params, inputs, labels, weights)
            params = tuple(array - rate * g for array, g in zip(params, grads, strict=True))
        return params

    return run
