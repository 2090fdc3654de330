"""The same training run, written three ways: this project's, the notebook's, PyTorch's."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dlf import losses, schedules
from dlf.train import init_carries
from experiments.build import Experiment, make_loop

COMPILED = "compiled program"
NOTEBOOK = "notebook loop"
PYTORCH = {n: f"PyTorch, {n} thread{'s' * (n > 1)}" for n in sorted({1, 2, os.cpu_count() or 1})}
_FEW_STEPS = 20  # long before the first instability, where any rounding would grow

Run = Callable[[], Any]  # trains from the first step and returns the series


def program(experiment: Experiment, probe_names: Iterable[str] = ()) -> tuple[Callable, dict[str, Any]]:
    """Return the loop of `experiments.train` with some of the probes, and its first carries."""
    probes = {name: experiment.run.probes[name] for name in probe_names}
    return make_loop(experiment, probe_names), init_carries(probes, experiment.state)


def compiled_run(experiment: Experiment, probe_names: Iterable[str], num_steps: int) -> Run:
    """Train as `experiments.train` does, without the store."""
    loop, carries = program(experiment, probe_names)
    return lambda: jax.block_until_ready(loop(experiment.replica, experiment.state, carries, num_steps))[2]


def notebook_run(experiment: Experiment, config: ConfigDict, num_steps: int) -> Run:
    """Train as the authors' notebook does: a jitted function for each quantity, a list for each.

    The class weights that it logs are computed without jit, and nothing waits for the device.
    """
    apply_fn, loss_fn = experiment.problem.apply_fn, experiment.problem.loss_fn
    batch, num_classes = experiment.problem.batch_fn(experiment.state.step), config.dataset.num_classes
    moving = schedules.triangular(
        num_classes, config.schedule.amplitude, config.schedule.period, config.schedule.hold_step
    )
    schedule = schedules.stop_after(moving, config.stop_after)
    weighted_loss = jax.jit(loss_fn)
    static_loss = jax.jit(losses.make_loss(apply_fn, losses.cross_entropy, schedules.constant(num_classes)))
    accuracy = jax.jit(lambda params: losses.accuracy(apply_fn(params, batch.inputs), batch.labels))

    @jax.jit
    def advance(params, step):
        grads = jax.grad(loss_fn)(params, batch, step)
        return jax.tree.map(lambda p, g: p - config.optimizer.learning_rate * g, params, grads), step + 1

    def run():
        params, step = experiment.state.params, experiment.state.step
        series = {"loss": [], "static_loss": [], "accuracy": [], "class_weights": []}
        for _ in range(num_steps):
            series["loss"].append(weighted_loss(params, batch, step))
            series["static_loss"].append(static_loss(params, batch, step))
            series["accuracy"].append(accuracy(params))
            series["class_weights"].append(schedule(step))
            params, step = advance(params, step)
        return jax.block_until_ready(series)

    return run


def pytorch_run(experiment: Experiment, config: ConfigDict, weights: np.ndarray, num_threads: int) -> Run:
    """Train in PyTorch eager from the same parameters, with one forward pass a step.

    The class weights [steps, classes] are given: PyTorch spends no time on the schedule.
    """
    import torch
    from torch.nn.functional import cross_entropy, linear, relu

    batch = experiment.problem.batch_fn(experiment.state.step)
    inputs, labels = torch.tensor(np.asarray(batch.inputs)), torch.tensor(np.asarray(batch.labels)).long()
    layers = [experiment.state.params[name] for name in ("Dense_0", "Dense_1")]
    start = [np.asarray(array) for layer in layers for array in (layer["kernel"].T, layer["bias"])]

    def run():
        torch.set_num_threads(num_threads)
        w_0, b_0, w_1, b_1 = params = [torch.tensor(array, requires_grad=True) for array in start]
        optimizer = torch.optim.SGD(params, lr=config.optimizer.learning_rate)
        series = {"loss": [], "static_loss": [], "accuracy": []}
        for gamma in torch.tensor(weights):
            logits = linear(relu(linear(inputs, w_0, b_0)), w_1, b_1)
            loss = cross_entropy(logits, labels, weight=gamma, reduction="sum") / len(labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                series["loss"].append(loss.item())
                series["static_loss"].append(cross_entropy(logits, labels).item())
                series["accuracy"].append((logits.argmax(1) == labels).double().mean().item())
        return series

    return run


def check_agreement(series_of: Mapping[str, Mapping[str, Any]], rtol: float) -> None:
    """Raise AssertionError unless all implementations recorded the same first steps."""
    num_steps = min(_FEW_STEPS, *(len(series["loss"]) for series in series_of.values()))
    for name, series in series_of.items():
        for variable in ("loss", "static_loss", "accuracy"):
            found, reference = (np.asarray(s[variable][:num_steps]) for s in (series, series_of[COMPILED]))
            np.testing.assert_allclose(found, reference, rtol, err_msg=f"{variable}: {name}")
