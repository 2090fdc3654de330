"""PyTorch from the same weights: training in eager mode and with torch.func, top Hessian eigenpairs.

Packages run as their documentation does, at their defaults, eager, all examples in one batch, on the
threads of `torch.set_num_threads`. PyTorch and they (`dlf[bench]`) are imported where they are used.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from experiments.benchmark.solvers import NUM, TOL, Case, Found, arpack
from experiments.build import Experiment


def tensors(arrays: Any) -> Any:
    """Return the arrays of a pytree as tensors."""
    import torch

    return jax.tree.map(lambda array: torch.tensor(np.array(array)), arrays)


def logits(params: Mapping[str, Mapping[str, Any]], hidden: Any, activation: str = "relu") -> Any:
    """Apply `mlp` or `myrtle` of `dlf.models`, with biases, to images as [P, channels, height, width].

    Parameters have the names, shapes and order of flax: a vector over them is one of `ravel_pytree`.
    """
    import torch
    from torch.nn.functional import avg_pool2d, conv2d

    for name in sorted(params, key=lambda name: (name.split("_")[0], int(name.split("_")[1]))):
        bias, kernel = params[name]["bias"], params[name]["kernel"]
        if name.startswith("Conv"):
            hidden = getattr(torch, activation)(conv2d(hidden, kernel.permute(3, 2, 0, 1), bias, padding=1))
            if name != "Conv_0" and min(hidden.shape[2:]) > 2:
                hidden = avg_pool2d(hidden, 2)
        elif name == "Dense_0":
            hidden = torch.addmm(bias, hidden.mean((2, 3)) if hidden.ndim == 4 else hidden, kernel)
        else:
            hidden = torch.addmm(bias, getattr(torch, activation)(hidden), kernel)
    return hidden


def _training(experiment: Experiment) -> tuple[Any, ...]:
    """Return first parameters, inputs, labels and learning rate as PyTorch has them."""
    inputs, labels = tensors(tuple(experiment.replica.train))
    rate = float(experiment.replica.settings["optimizer.learning_rate"])
    return tensors(experiment.state.params), inputs, labels.long(), rate


def _loss(params, inputs, labels, weights):
    from torch.nn.functional import cross_entropy

    found = logits(params, inputs)
    return cross_entropy(found, labels, weight=weights, reduction="sum") / len(labels), found


def eager(
    experiment: Experiment, weights: np.ndarray, num_threads: int = 1, is_recorded: bool = False
) -> Callable[[], Any]:
    """Train one run in eager mode, the fastest way that PyTorch has for it; return what it recorded.

    The class weights [steps, classes] are given: PyTorch spends no time on the schedule.
    """
    import torch
    from torch.nn.functional import cross_entropy

    start, inputs, labels, rate = _training(experiment)
    weights = torch.tensor(weights, dtype=inputs.dtype)

    def run():
        torch.set_num_threads(num_threads)
        params = jax.tree.map(lambda array: array.clone().requires_grad_(), start)
        leaves = jax.tree.leaves(params)
        series = {"loss": [], "static_loss": [], "accuracy": []}
        for gamma in weights:
            loss, found = _loss(params, inputs, labels, gamma)
            grads = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                for array, grad in zip(leaves, grads, strict=True):
                    array.sub_(grad, alpha=rate)
                if is_recorded:
                    series["loss"].append(loss.item())
                    series["static_loss"].append(cross_entropy(found, labels).item())
                    series["accuracy"].append((found.argmax(1) == labels).double().mean().item())
        return series

    return run


def vectorized(
    experiment: Experiment, weights: tuple, num_replicas: int, num_steps: int
) -> Callable[[], Any]:
    """Train many runs at once on one thread, by `torch.func.vmap` of `torch.func.grad`."""
    import torch
    from torch.func import grad, vmap

    start, inputs, labels, rate = _training(experiment)
    data = inputs, labels, torch.tensor(weights, dtype=inputs.dtype)
    stacked = jax.tree.map(lambda array: torch.stack([array] * num_replicas), start)
    grads_of = vmap(grad(lambda *args: _loss(*args)[0]), in_dims=(0, None, None, None))

    @torch.no_grad()
    def run():
        torch.set_num_threads(1)  # this network gains nothing from a second one
        params = stacked
        for _ in range(num_steps):
            params = jax.tree.map(lambda array, g: array - rate * g, params, grads_of(params, *data))

    return run


def _prepare(case: Case) -> tuple[Any, Any, Any]:
    """Return a case's module, its loss function and the only batch."""
    import torch

    class Network(torch.nn.ModuleDict):
        def forward(self, inputs):
            return logits(self, inputs, case.activation)

    layers = {name: torch.nn.ParameterDict(tensors(layer)) for name, layer in sorted(case.params.items())}
    inputs, labels = tensors(tuple(case.batch))
    inputs = inputs.movedim(-1, 1).contiguous() if inputs.ndim == 4 else inputs
    # reduction="mean" would divide by the sum of the weights, not by the number of examples
    criterion = torch.nn.CrossEntropyLoss(tensors(case.weights / len(labels)), reduction="sum")
    return Network(layers), criterion, (inputs, labels.long())


def _pyhessian(case: Case, tol: float) -> Found:
    """Find eigenvalues of largest magnitude: that one changes little is no bound on the residual."""
    import torch
    from pyhessian import hessian

    with warnings.catch_warnings():  # of a cycle that its own zero_grad() breaks
        warnings.filterwarnings("ignore", message="Using backward")
        model, criterion, batch = _prepare(case)
        solver = hessian(model, criterion, data=batch, cuda=False)
    products = []
    solver.gradsH[0].register_hook(lambda _: products.append(1))  # each product passes through here
    values, vectors = solver.eigenvalues(maxIter=100, tol=tol, top_n=NUM)
    rows = [torch.cat([part.ravel() for part in vector]).numpy() for vector in vectors]
    return Found(np.asarray(values), np.asarray(rows), len(products), "no")


def _curvlinops(case: Case, tol: float) -> Found:
    from curvlinops import HessianLinearOperator

    model, criterion, batch = _prepare(case)
    params = list(model.parameters())
    # the check of determinism would cost two products
    operator = HessianLinearOperator(model, criterion, params, [batch], check_deterministic=False).to_scipy()
    return arpack(operator.matvec, operator.shape[0], operator.dtype, tol)


def _eigenthings(algorithm: str, case: Case, **settings: Any) -> Found:
    import hessian_eigenthings as package

    model, criterion, batch = _prepare(case)
    operator = package.HessianOperator(model, [batch], package.supervised_loss(criterion))
    found = getattr(package, algorithm)(operator, k=NUM, **settings)  # a product each iteration
    return Found(np.asarray(found.eigenvalues), np.asarray(found.eigenvectors), found.iterations, "yes")


def _lanczos(case: Case, num_steps: int) -> Found:
    # without restarts: beyond 50 steps it may return copies of one eigenpair as converged
    return _eigenthings("lanczos", case, max_iter=num_steps, which="LA")


def _power(case: Case, tol: float) -> Found:
    return _eigenthings("deflated_power_iteration", case, max_iter=100, tol=tol)


# (case, setting) -> Found, the module that it needs beside torch, settings from cheap to expensive
PEERS = {
    "PyHessian": (_pyhessian, "pyhessian", (TOL, TOL / 100)),
    "curvlinops + eigsh": (_curvlinops, "curvlinops", (TOL, TOL / 100)),
    "eigenthings, Lanczos": (_lanczos, "hessian_eigenthings", (15, 20, 30, 40, 50)),
    "eigenthings, power": (_power, "hessian_eigenthings", (TOL, TOL / 100)),
}


def installed() -> dict[str, tuple[Callable, tuple]]:
    """Return the solvers in PyTorch that are installed, as `solvers.SOLVERS` has those in JAX."""
    return {
        name: (partial(partial, solve), settings)  # (case, setting) -> run
        for name, (solve, module, settings) in PEERS.items()
        if find_spec("torch") and find_spec(module)
    }
