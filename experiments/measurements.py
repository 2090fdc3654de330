"""What a figure needs beside runs and sweeps, measured once: (config, results, folder) -> labelled data."""

import sys
from collections.abc import Mapping
from pathlib import Path

import xarray as xr
from ml_collections import ConfigDict

from analysis import composition
from analysis.findings import kernel_limits, onsets
from analysis.infinite_width import flow_differences, infinite_ntk
from analysis.probes.measures import evenly
from experiments import cost
from experiments.build import build, draw, make_loop
from experiments.second_pass import measure_windows


def onsets_at_every_step(config: ConfigDict, results: Mapping[str, xr.Dataset], folder: Path) -> xr.Dataset:
    """Follow the eigenvalues about every onset of the run once more, at every step, from its checkpoints."""
    run, spans = results["run"], onsets.spans(results["run"])
    estimate = cost.estimate(config)._replace(num_measurements=sum(stop - start for start, stop in spans))
    print(f"second pass, the onsets at every step: {estimate}", file=sys.stderr)
    found = measure_windows(config, folder / "run", spans)
    if spans and not (found["loss"].values == run["loss"].sel(step=found["step"]).values).all():
        print(
            "the second pass does not follow the run to the bit: it was made on another machine or version, "
            "and its sharpness at onsets may be that of another trajectory",
            file=sys.stderr,
        )
    return found


def kernels_of_infinite_width(
    config: ConfigDict, results: Mapping[str, xr.Dataset], folder: Path
) -> xr.Dataset:
    """Compute the kernel that the network's tends to, at every width of the sweep "initial"."""
    inputs = evenly(draw(config).train.inputs, config.probes.kernel.num_examples)
    network = {key: config.model[key] for key in ("activation", "initialization", "use_bias")}
    widths = results["initial"]["width"].values.tolist()
    return kernel_limits.labelled({width: infinite_ntk((width,), **network)(inputs) for width in widths})


def closed_form(config: ConfigDict, results: Mapping[str, xr.Dataset], folder: Path) -> xr.Dataset:
    """Train the linearised network under the static squared loss, which has a closed form."""
    experiment = build(config)
    apply_fn, params = experiment.problem.apply_fn, experiment.state.params
    return flow_differences(apply_fn, params, experiment.replica.train, config.dataset.num_classes)


def curvature_along(config: ConfigDict, num_points: int = 100, **settings: int) -> xr.Dataset:
    """Train for one period, and measure what makes up the curvature at points of the next one.

    `settings` are those of `analysis.composition.along`.
    """
    experiment, period = build(config), config.schedule.period
    loop = make_loop(experiment, probe_names=())

    def advance(state, num_steps):
        return loop(experiment.replica, state, {}, num_steps)[0]

    first = advance(experiment.state, period)
    found = composition.along(
        experiment.problem, first, lambda state: advance(state, period // num_points), num_points, **settings
    )
    return found.assign_attrs(threshold=2 / config.optimizer.learning_rate)


def curvatures(config: ConfigDict, results: Mapping[str, xr.Dataset], folder: Path) -> xr.Dataset:
    """Measure the curvature of a run and of an image network."""
    return curvature_along(config).merge(composition.of_images(), combine_attrs="no_conflicts")
