"""PyTorch from the same weights: training in eager mode and with torch.func, top Hessian eigenpairs.

To be imported only where PyTorch is installed (`dlf[bench]`). Packages run as their documentation does, at
their defaults, eager, all examples in one batch, on the threads of `torch.set_num_threads`.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from dlf.data import cifar
from dlf.types import Batch, Params
from experiments.benchmark.eigenpairs import NUM, TOL, Case, arpack
from experiments.build import Experiment

if find_spec("torch"):
    import torch
    from torch.nn import functional


def logits(params: Mapping[str, Mapping[str, Any]], hidden: Any, activation: str = "relu") -> Any:
    """Apply `mlp` or `myrtle` of `dlf.models`, with biases, to images as [P, channels, height, width].

    Parameters have the names, shapes and order of flax: a vector over them is one of `ravel_pytree`.
    """
    for name in sorted(params):
        bias, kernel, act = params[name]["bias"], params[name]["kernel"], getattr(torch, activation)
        if name.startswith("Conv"):
            hidden = act(functional.conv2d(hidden, kernel.permute(3, 2, 0, 1), bias, padding=1))
            if name != "Conv_0" and min(hidden.shape[2:]) > 2:
                hidden = functional.avg_pool2d(hidden, 2)
        elif name == "Dense_0":
            hidden = torch.addmm(bias, hidden.mean((2, 3)) if hidden.ndim == 4 else hidden, kernel)
        else:
            hidden = torch.addmm(bias, act(hidden), kernel)
    return hidden


def _tensors(params: Params, batch: Batch) -> tuple[Any, Any, Any]:
    """Return parameters, inputs as the first layer takes them, and labels as PyTorch has them."""
    params, inputs, labels = jax.tree.map(lambda array: torch.tensor(np.array(array)), (params, *batch))
    inputs = inputs.movedim(-1, 1).contiguous() if "Conv_0" in params else inputs.flatten(1)
    return params, inputs, labels.long()


def training(experiment: Experiment, weights, num_threads=1, num_replicas=0, is_recorded=False) -> Callable:
    """Train one run in eager mode, the fastest way that PyTorch has for it, or replicas with torch.func.

    The class weights [steps, classes] are given: PyTorch spends no time on the schedule.
    """
    start, inputs, labels = _tensors(experiment.state.params, experiment.replica.train)
    rate = float(experiment.replica.settings["optimizer.learning_rate"])
    # reduction="mean" would divide by the sum of the weights, not by the number of examples
    weights = torch.tensor(weights, dtype=inputs.dtype) / len(labels)
    if num_replicas:
        start = jax.tree.map(lambda array: torch.stack([array] * num_replicas), start)

    def loss_fn(params, gamma):
        found = logits(params, inputs)
        return functional.cross_entropy(found, labels, weight=gamma, reduction="sum"), found

    grads_of = torch.func.vmap(torch.func.grad(loss_fn, has_aux=True), in_dims=(0, None))

    def run():
        torch.set_num_threads(num_threads)
        params = jax.tree.map(lambda array: array.clone().requires_grad_(not num_replicas), start)
        leaves, series = jax.tree.leaves(params), {"loss": [], "static_loss": [], "accuracy": []}
        for gamma in weights:
            if num_replicas:
                grads = jax.tree.leaves(grads_of(params, gamma)[0])
            else:
                loss, found = loss_fn(params, gamma)
                grads = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                for array, grad in zip(leaves, grads, strict=True):
                    array.sub_(grad, alpha=rate)
                if is_recorded:
                    series["loss"].append(loss.item())
                    series["static_loss"].append(functional.cross_entropy(found, labels).item())
                    series["accuracy"].append((found.argmax(1) == labels).double().mean().item())
        return series

    return run


def image_training(
    name: str, images: Batch, batch_size: int, rate: float, num_threads: int
) -> Callable[[], Any]:
    """Return a step of momentum, on augmented batches of images as bytes, in eager mode, channels last."""
    torch.set_num_threads(num_threads)
    channels_last = dict(memory_format=torch.channels_last)
    inputs, labels = (torch.tensor(np.array(of)) for of in images)
    padded = functional.pad(inputs.movedim(-1, 1), (4, 4, 4, 4)).contiguous(**channels_last)
    network, side = _network(name).to(**channels_last), inputs.shape[1]
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (cifar.MEAN, cifar.STD))

    def step():
        chosen = torch.randperm(len(labels))[:batch_size]
        top, left = (torch.randint(0, 9, (batch_size, 1)) + torch.arange(side) for _ in range(2))
        left = torch.where(torch.rand(batch_size, 1) < 0.5, left, left.flip(1))
        batch = padded.movedim(1, -1)[chosen[:, None, None], top[:, :, None], left[:, None]]
        scaled = (batch.movedim(-1, 1).float() / 255 - mean) / std
        optimizer.zero_grad()
        functional.cross_entropy(network(scaled), labels[chosen].long()).backward()
        optimizer.step()

    return step


def _network(name: str) -> Any:
    """Return a network of `experiments.benchmark.image_training` in PyTorch's layers."""
    nn = torch.nn
    if name.startswith("Myrtle5"):
        width, layers = int(name.partition("-")[2]), []
        for number in range(4):
            layers += [nn.Conv2d(width if number else 3, width, 3, padding=1), nn.ReLU()]
            layers += [nn.AvgPool2d(2)] if number in (1, 2) else []
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(before), nn.BatchNorm2d(width)])
            self.convs = nn.ModuleList(
                [
                    nn.Conv2d(before, width, 3, stride, 1, bias=False),
                    nn.Conv2d(width, width, 3, 1, 1, bias=False),
                ]
            )
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 else None

        def forward(self, hidden):
            active = functional.relu(self.norms[0](hidden))
            kept = self.shortcut(active) if self.shortcut else hidden
            return kept + self.convs[1](functional.relu(self.norms[1](self.convs[0](active))))

    blocks = Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)
    first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    last = nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(first, *blocks, *last)


def _prepare(case: Case) -> tuple[Any, Callable, tuple[Any, Any]]:
    """Return a case's module, its loss function and the only batch."""
    params, *batch = _tensors(case.params, case.batch)

    class Network(torch.nn.ModuleDict):
        def forward(self, inputs):
            return logits(self, inputs, case.activation)

    layers = {name: torch.nn.ParameterDict(layer) for name, layer in sorted(params.items())}
    weights = torch.tensor(case.weights / len(batch[1]))  # as in `training`
    return Network(layers), torch.nn.CrossEntropyLoss(weights, reduction="sum"), tuple(batch)


# Solvers: (case, setting) -> values, vectors as rows, number of products.


def _pyhessian(case, tol):
    """Find eigenvalues of largest magnitude: that one changes little is no bound on the residual."""
    from pyhessian import hessian

    with warnings.catch_warnings():  # of a cycle that its own zero_grad() breaks
        warnings.filterwarnings("ignore", message="Using backward")
        model, criterion, batch = _prepare(case)
        solver = hessian(model, criterion, data=batch, cuda=False)
    products = []
    solver.gradsH[0].register_hook(lambda _: products.append(1))  # each product passes through here
    values, vectors = solver.eigenvalues(maxIter=100, tol=tol, top_n=NUM)
    rows = [torch.cat([part.ravel() for part in vector]).numpy() for vector in vectors]
    return np.asarray(values), np.asarray(rows), len(products)


def _curvlinops(case, tol):
    from curvlinops import HessianLinearOperator

    model, criterion, batch = _prepare(case)
    params, calls = list(model.parameters()), []
    # the check of determinism would cost two products
    operator = HessianLinearOperator(model, criterion, params, [batch], check_deterministic=False).to_scipy()
    start = np.zeros(operator.shape[0], operator.dtype)
    return *arpack(lambda v: calls.append(1) or operator.matvec(v), start, tol), len(calls)


def _eigenthings(algorithm, setting_name, case, setting, **settings):
    import hessian_eigenthings as package

    model, criterion, batch = _prepare(case)
    operator = package.HessianOperator(model, [batch], package.supervised_loss(criterion))
    found = getattr(package, algorithm)(operator, k=NUM, **{setting_name: setting}, **settings)
    return np.asarray(found.eigenvalues), np.asarray(found.eigenvectors), found.iterations  # a product each


# As `eigenpairs.SOLVERS` has those in JAX, with the module that each needs. Lanczos is without restarts:
# beyond 50 steps it may return copies of one eigenpair as converged.
_lanczos = partial(_eigenthings, "lanczos", "max_iter", which="LA")
_power = partial(_eigenthings, "deflated_power_iteration", "tol", max_iter=100)
_PEERS = {
    "PyHessian": ("pyhessian", _pyhessian, "no", (TOL, TOL / 100)),
    "curvlinops + eigsh": ("curvlinops", _curvlinops, "yes", (TOL, TOL / 100)),
    "eigenthings, Lanczos": ("hessian_eigenthings", _lanczos, "yes", (15, 20, 30, 40, 50)),
    "eigenthings, power": ("hessian_eigenthings", _power, "yes", (TOL, TOL / 100)),
}
SOLVERS = {name: (partial(partial, s), *of) for name, (module, s, *of) in _PEERS.items() if find_spec(module)}
