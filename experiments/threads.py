"""How many threads XLA has on a CPU: one for small work, before JAX starts.

XLA cuts kernels over the threads of its pool, also those of a microsecond, for which waking another thread
takes longer than it saves. The pool is made with JAX's first array or device, not by its import, and then
stays; its size is the environment's PJRT_NPROC, else NPROC, else the CPUs that the process may use, and at
least the number of virtual devices.

Source: `DefaultThreadPoolSize` in XLA's pjrt/utils.cc and `GetPjRtCpuClient` in pjrt/cpu/cpu_client.cc.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any

import jax
from jax import lax
from ml_collections import ConfigDict

from dlf import data, models
from dlf.convolutions import convolve_p
from experiments.catalogues import call
from experiments.command_line import ConfigError
from experiments.settings import SEEDS
from experiments.sweep.axes import Sweep

# Multiplications of a forward pass up to which a second thread gains nothing: 210,000 are Fig. 4, where one
# is 1.3 to 1.8 times as fast as two in float32, by the machine, and as fast in float64.
SMALL = 300_000
_POOL = ("PJRT_NPROC", "NPROC")  # in the order in which XLA looks at them


def choose(asked: Iterable[ConfigDict | Sweep]) -> None:
    """Have XLA use one thread if all runs and sweeps have small steps; for a `main`, before JAX starts.

    What the user has set stays: PJRT_NPROC, NPROC, OMP_NUM_THREADS, threads or devices in XLA_FLAGS, a
    process bound to some of the CPUs, several virtual devices. So does all else if JAX has started, if it
    may find an accelerator, or for data of one's own, which are not drawn twice.
    """
    is_set = {*_POOL, "OMP_NUM_THREADS"} & set(os.environ) or num_cpus() != os.cpu_count()
    is_set = is_set or re.search("thread|device_count", os.environ.get("XLA_FLAGS", ""))
    if is_set or _num_devices() > 1 or _has_accelerator():
        return
    configs = (config for of in asked for config in (_cells(of) if isinstance(of, Sweep) else [of]))
    if all(multiplications(config) <= SMALL for config in configs) and not _has_started():
        os.environ["PJRT_NPROC"] = "1"


def used(available: int | None = None) -> int:
    """Return the threads of XLA's pool, in a process with so many CPUs (this one's), once JAX has started."""
    words = (os.environ.get(name, "") for name in _POOL)
    asked = (int(word) for word in words if re.fullmatch(r"\s*[+-]?\d+\s*", word))
    virtual = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    fitting = (num for num in asked if num < 2**31)  # what does not fit XLA does not read
    return max(next(fitting, available or num_cpus()), _num_devices(), *map(int, virtual[-1:]))


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cells(sweep: Sweep) -> Iterator[ConfigDict]:
    """Yield the first cell, and those along each axis that changes network or data from there."""
    first = [0] * len(sweep.axes)
    for number, axis in enumerate(sweep.axes):
        is_sized = any(key.startswith(("model.", "dataset.")) for key in axis.keys - {*SEEDS})
        for label in range(len(axis.labels) if is_sized else 1):
            with contextlib.suppress(ConfigError):  # a cell that is invalid
                yield sweep.cell([*first[:number], label, *first[number + 1 :]])


def multiplications(config: ConfigDict) -> float:
    """Return how many numbers a forward pass over the training set multiplies: from shapes, without data.

    Infinite where they cannot be known. JAX is not started, unless by the network.

    >>> from experiments.configs import fig4
    >>> multiplications(fig4.get_config()) / 300  # three inputs with the bias, three outputs made four
    700.0
    """
    network, num_classes = {**config.model}, []
    network.pop("linearized", None)
    try:
        if ":" in config.dataset.name:  # of one's own: not drawn twice
            return math.inf

        def draw():
            train, _, number = call(data, "dataset", config.dataset)
            num_classes.append(number)
            return train.inputs

        inputs = jax.eval_shape(draw)
        model = call(models, "model", network, num_classes=num_classes[0])
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), inputs)
        return _multiplications(jax.make_jaxpr(lambda *args: model.apply(*args))(*variables, inputs))
    except Exception:  # what `build` finds words for
        return math.inf


def _multiplications(jaxpr: Any) -> int:
    found = 0
    for eqn in jaxpr.eqns:
        terms = eqn.primitive is lax.mul_p
        if eqn.primitive is lax.dot_general_p:
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive in (lax.conv_general_dilated_p, convolve_p):
            kernel, order = eqn.invars[1].aval, eqn.params.get("dimension_numbers")
            terms = kernel.size // kernel.shape[order.rhs_spec[0] if order else -1]
        found += terms * eqn.outvars[0].aval.size
        found += sum(_multiplications(of) for of in jax.tree.leaves(eqn.params) if hasattr(of, "eqns"))
    return found


def _has_accelerator() -> bool:
    platforms = jax.config.jax_platforms
    return platforms != "cpu" if platforms else bool(entry_points(group="jax_plugins"))


def _num_devices() -> int:
    """Return the number of virtual devices of the CPU, without those of XLA_FLAGS."""
    return max(1, jax.config.jax_num_cpu_devices)


def _has_started() -> bool:
    number = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", number + 2)  # which JAX refuses once it has started
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False
