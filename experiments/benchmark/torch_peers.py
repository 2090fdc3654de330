"""Top Hessian eigenpairs of one network, as PyTorch packages find them from the same weights.

Each function of `PEERS` runs a package as its documentation does, at its defaults for what is not an
argument here: eager, all examples in one batch, on the threads of `torch.set_num_threads`. PyTorch and
the packages (`dlf[bench]`) are imported where they are used.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Layers(NamedTuple):
    """A network of `dlf.models` with biases: `mlp`, or `myrtle` where `params` has convolutions.

    `params` is flax's {"Conv_0": {"bias": [out], "kernel": [3, 3, in, out]}, ..., "Dense_0":
    {"bias": [out], "kernel": [in, out]}, ...}; its dtype is that of all products with the Hessian.
    """

    params: Mapping[str, Mapping[str, np.ndarray]]
    activation: str  # "relu" or "tanh"


class Problem(NamedTuple):
    """The Hessian of sum_j w_j cross_entropy_j / P in the parameters of `layers`."""

    layers: Layers
    inputs: np.ndarray  # [P, ...], images as [P, height, width, channels]
    labels: np.ndarray  # [P]
    example_weights: np.ndarray  # w [P], Gamma of each label: equal for examples of one class


class Answer(NamedTuple):
    """What a peer returns, and what it took."""

    vectors: np.ndarray  # [num, n], each in the order of jax.flatten_util.ravel_pytree(params)
    values: np.ndarray  # [num], descending
    num_matvecs: int  # products of the Hessian with one vector
    converged: bool | None  # by the peer's own rule; None: the peer does not tell


class Peer(NamedTuple):
    """A solver, the module that it needs beside torch, the meaning of its third argument."""

    solve: Callable[[Problem, int, Any], Answer]
    module: str
    argument: str


def _by_depth(params):
    """Return the layers' names, convolutions first, in the order of their numbers (9 before 10)."""
    return sorted(params, key=lambda name: (name.split("_")[0], int(name.split("_")[1])))


def flax_order(params: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """Return the indices [n] that put a vector over `build_torch(...).parameters()` in JAX's order.

    >>> flax_order({"Dense_0": {"bias": np.zeros(2), "kernel": np.zeros((3, 2))}}).tolist()
    [6, 7, 0, 3, 1, 4, 2, 5]
    """
    places, start = {}, 0
    for name in _by_depth(params):
        *window, fan_in, fan_out = (kernel := params[name]["kernel"]).shape
        weight = np.arange(start, start := start + kernel.size).reshape(fan_out, fan_in, *window)
        places[name, "kernel"] = np.moveaxis(weight, (0, 1), (-1, -2)).ravel()
        places[name, "bias"] = np.arange(start, start := start + fan_out)
    return np.concatenate([places[key] for key in sorted(places)])


def build_torch(layers: Layers):
    """Build the torch.nn.Module of `layers` for inputs [P, features] or [P, channels, height, width]."""
    import torch
    from torch import nn

    activation = {"relu": torch.relu, "tanh": torch.tanh}[layers.activation]

    def build(kernel, bias):
        *window, fan_in, fan_out = kernel.shape
        layer = nn.Conv2d(fan_in, fan_out, window, padding=1) if window else nn.Linear(fan_in, fan_out)
        layer.weight = nn.Parameter(torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()))
        layer.bias = nn.Parameter(torch.tensor(bias))
        return layer

    class Network(nn.ModuleDict):
        def forward(self, hidden):
            for name, layer in self.items():
                kind, depth = name.split("_")
                if kind == "Conv":
                    hidden = activation(layer(hidden))
                    if depth != "0" and min(hidden.shape[2:]) > 2:
                        hidden = nn.functional.avg_pool2d(hidden, 2)
                elif depth == "0":
                    hidden = layer(hidden.mean((2, 3)) if hidden.ndim == 4 else hidden)
                else:
                    hidden = layer(activation(hidden))
            return hidden

    return Network({name: build(**layers.params[name]) for name in _by_depth(layers.params)})


def _prepare(problem):
    """Return the module, its loss function and the only batch."""
    import torch

    (params, _), inputs, labels, weights = problem
    gamma = np.zeros(len(params[_by_depth(params)[-1]]["bias"]), inputs.dtype)
    gamma[labels] = weights
    if not np.array_equal(gamma[labels], weights.astype(gamma.dtype)):
        raise ValueError("example_weights must be equal for examples of one class")
    # reduction="mean" would divide by the sum of the weights, not by the number of examples.
    criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor(gamma / len(labels)), reduction="sum")
    inputs = np.moveaxis(inputs, -1, 1).copy() if "Conv_0" in params else inputs.reshape(len(inputs), -1)
    return build_torch(problem.layers), criterion, (torch.tensor(inputs), torch.tensor(labels).long())


def _answer(problem, vectors, values, num_matvecs, converged):
    """Sort the pairs and put the vectors [num, n], which are in PyTorch's order, in JAX's."""
    values = np.asarray(values)
    rows, columns = np.argsort(-values), flax_order(problem.layers.params)
    return Answer(np.asarray(vectors)[rows][:, columns], values[rows], num_matvecs, converged)


def pyhessian_power(problem: Problem, num: int, tol: float, max_iter: int = 100) -> Answer:
    """Run PyHessian's power iteration with deflation, at most `max_iter` products for each pair.

    It takes the eigenvalues of largest magnitude. A small change of the eigenvalue is no bound on
    the residual. The gradient's graph is built once; starts come from PyTorch's global generator.
    """
    import torch
    from pyhessian import hessian

    with warnings.catch_warnings():  # of a cycle that its own zero_grad() breaks
        warnings.filterwarnings("ignore", message="Using backward")
        model, criterion, batch = _prepare(problem)
        solver = hessian(model, criterion, data=batch, cuda=False)
    products = []
    solver.gradsH[0].register_hook(lambda _: products.append(1))  # each product passes through here
    values, vectors = solver.eigenvalues(maxIter=max_iter, tol=tol, top_n=num)
    rows = [torch.cat([part.ravel() for part in vector]).numpy() for vector in vectors]
    return _answer(problem, rows, values, len(products), None)


def curvlinops_eigsh(problem: Problem, num: int, tol: float) -> Answer:
    """Run SciPy's `eigsh` (ARPACK's restarted Lanczos, in float64) on curvlinops' Hessian.

    Raises ArpackNoConvergence after 10 n restarts. Each call has a random start of its own.
    """
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, criterion, batch = _prepare(problem)
    params, products = list(model.parameters()), []
    # The check of determinism would cost two products.
    hessian = HessianLinearOperator(model, criterion, params, [batch], check_deterministic=False).to_scipy()

    def matvec(vector):
        products.append(1)
        return hessian.matvec(vector)

    counted = LinearOperator(hessian.shape, matvec=matvec, dtype=hessian.dtype)
    values, vectors = eigsh(counted, k=num, which="LA", tol=tol)
    return _answer(problem, vectors.T, values, len(products), True)


def _eigenthings(problem, algorithm, num, **arguments):
    import hessian_eigenthings as package

    model, criterion, batch = _prepare(problem)
    operator = package.HessianOperator(model, [batch], package.supervised_loss(criterion))
    found = getattr(package, algorithm)(operator, k=num, **arguments)  # a product each iteration
    converged = bool(found.converged.all())
    return _answer(problem, found.eigenvectors, found.eigenvalues, found.iterations, converged)


def eigenthings_lanczos(problem: Problem, num: int, max_iter: int) -> Answer:
    """Run hessian-eigenthings' Lanczos method for `max_iter` steps, without restarts or early stop.

    `converged` compares with 1e-4 of each eigenvalue. Beyond 50 steps it does not reorthogonalise
    and may return copies of one eigenpair as converged. Each call has the same start.
    """
    return _eigenthings(problem, "lanczos", num, max_iter=max_iter, which="LA")


def eigenthings_power(problem: Problem, num: int, tol: float, max_iter: int = 100) -> Answer:
    """Run hessian-eigenthings' power iteration with deflation, at most `max_iter` products for each pair.

    It takes the eigenvalues of largest magnitude. Each call has the same starts.
    """
    return _eigenthings(problem, "deflated_power_iteration", num, tol=tol, max_iter=max_iter)


PEERS = {
    "PyHessian": Peer(pyhessian_power, "pyhessian", "relative change of the eigenvalue; default 1e-3"),
    "curvlinops + eigsh": Peer(curvlinops_eigsh, "curvlinops", "relative residual; default 0: rounding"),
    "eigenthings, Lanczos": Peer(eigenthings_lanczos, "hessian_eigenthings", "steps; default 2 num"),
    "eigenthings, power": Peer(eigenthings_power, "hessian_eigenthings", "relative residual; default 1e-4"),
}
