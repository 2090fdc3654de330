"""Measure what of a dynamical loss's effect survives in the linearised network, and how lazy a width is.

    python -m experiments.lazy [--scale=smoke|small|paper] [--workdir=results/lazy] \\
        [--launcher=here|local|slurm] [--jobs=N] [--memory=MiB] [--slurm=PARAMETER=VALUE ...]

Runs what is not there of the sweeps in experiments/configs/lazy_rich.py and kernel_width.py. In the work
folder: lazy_rich and kernel_width as PNG and PDF, and the sweeps.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy import stats

from analysis import cascades, figures, neural_tangents_import
from analysis.findings.diagrams import ACCURACIES
from analysis.findings.statistics import paired_gain
from analysis.infinite_width import infinite_ntk, squared_loss_flow
from analysis.ntk import full_ntk, relative_distance
from analysis.probes.measures import evenly
from dlf import data, losses, optimizers, schedules
from dlf import train as training
from dlf.store import files
from dlf.store.cells import DIVERGED
from experiments import build, command_line
from experiments.command_line import ConfigError
from experiments.configs import kernel_width, lazy_rich
from experiments.phase_diagram import complete
from experiments.sweep.axes import SCALES
from experiments.sweep.launch import Settings, add_options, settings

_EFFECTS = {
    "unstable": "unstable",
    "instabilities": "onsets",
    "peak": "peak ηλ/2",
    "sharpness_change": "λ, change",
    "ntk_change": "NTK, change",
}
_CAPTION = (
    "mean ± standard error over {} seeds; unstable: part of the time in which F has not period 1; "
    "onsets: how often that begins; peak: largest after the first turn; changes: of mid-turn λ from the "
    "first to the last cycle, of the largest NTK eigenvalue over the run"
)
_WIDEST, _WIDE = slice(-2, None), slice(2, None)  # widths between which trained and first slopes are taken
_FLOW_RATES, _FLOW_TIME = (0.02, 0.01), 20.0  # learning rates, and their product with the last step


def kernel_distances(config: ConfigDict, sweeps: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the relative distance of each empirical kernel from that of infinite width, and its slopes.

    `distance` [rate, cycles, width, seed] after so many cycles of the loss, at `learning_rate`
    [rate, width], and `initial_distance` [initial_width, draw]. `slope` and `initial_slope` are those of
    log distance over log width, with the standard error of the regression over all seeds: of trained
    networks between the two widest; at the first parameters over all but the two narrowest, where the part
    of the kernel that does not grow with the width still counts.
    """
    network = {key: value for key, value in config.model.items() if key not in ("name", "hidden_widths")}
    inputs = evenly(build.draw(config).train.inputs, config.probes.kernel.num_examples)
    steps = [cycles * config.probes.kernel.every for cycles in kernel_width.CYCLES]

    def distances(sweep: str, at: list[int]) -> np.ndarray:
        """[step, width, seed]"""
        kernels = sweeps[sweep]["empirical_ntk"].sel(kernel_step=at)
        of_width = [
            relative_distance(
                jnp.asarray(kernels.sel(width=width).transpose("kernel_step", "seed", ...).values),
                infinite_ntk(hidden_widths=(int(width),), **network)(inputs),
            )
            for width in kernels["width"].values
        ]
        return np.stack(of_width, axis=1)

    widths, initial_widths = (sweeps[name]["width"].values for name in ("main", "initial"))
    trained = np.stack([distances(sweep, steps) for sweep in kernel_width.POWERS])
    (initial,) = distances("initial", [0])
    fits = np.array([[_slope(widths[_WIDEST], d[_WIDEST]) for d in of_rate] for of_rate in trained])
    first = _slope(initial_widths[_WIDE], initial[_WIDE])
    rates = [[kernel_width.learning_rate(w, power) for w in widths] for power in kernel_width.POWERS.values()]
    return xr.Dataset(
        {
            "learning_rate": (("rate", "width"), np.array(rates), {"units": "1"}),
            "distance": (("rate", "cycles", "width", "seed"), trained, {"units": "1"}),
            "slope": (("rate", "cycles"), fits[..., 0], {"widths": widths[_WIDEST]}),
            "slope_error": (("rate", "cycles"), fits[..., 1]),
            "initial_distance": (("initial_width", "draw"), initial, {"units": "1"}),
            "initial_slope": ((), first[0], {"widths": initial_widths[_WIDE]}),
            "initial_slope_error": first[1],
        },
        {
            "rate": list(kernel_width.POWERS),
            "cycles": list(kernel_width.CYCLES),
            "width": widths,
            "initial_width": initial_widths,
        },
    )


def _slope(widths: np.ndarray, distance: np.ndarray) -> tuple[float, float]:
    """Return the slope of log distance [widths, seeds] over log width, and its standard error."""
    logs = np.repeat(np.log(widths.astype(float)), distance.shape[1])
    fit = stats.linregress(logs, np.log(distance).ravel())
    return fit.slope, fit.stderr


def surviving(config: ConfigDict, sweep: xr.Dataset) -> xr.Dataset:
    """Return what each network, real or linearised, shows of a dynamical loss's effects.

    Beside `final_accuracies`, per cell: while the loss of the dynamical twin moves, `instabilities`, the
    number of departures of F from period 1, and `unstable`, the part of the time that they take; `peak`,
    the largest sharpness measured after the first turn, in units of 2 / learning rate; over all steps
    `sharpness_change`, the mean mid-turn sharpness of the last cycle over that of the first, and
    `ntk_change`, the largest NTK eigenvalue at the end over that at the start. A diverged run does not
    count.
    """
    turn, num_classes = config.schedule.period + int(config.schedule.hold_step), config.dataset.num_classes
    whole_cycles = config.stop_after // turn // num_classes
    middles = (turn * (np.arange(whole_cycles * num_classes) + 0.5)).astype(int)
    sharpness = sweep["sharpness"].sel(stability_step=middles, method="nearest")
    moving = slice(turn, config.stop_after - 1)
    last, first = (
        sharpness.isel(stability_step=part) for part in (slice(-num_classes, None), slice(num_classes))
    )
    ntk = sweep["ntk_eigenvalues"].isel(rank=0, drop=True)
    dims = sweep["status"].dims
    series = sweep["loss"].sel(step=slice(None, config.stop_after - 1)).transpose(*dims, "step")
    windows = [cascades.label(loss) for loss in series.values.reshape(-1, series.sizes["step"])]
    counts = {
        "instabilities": [len(cascades.find(found)) for found in windows],
        "unstable": [
            float(np.mean((found.labels != 1) & (found.labels != cascades.UNDEFINED))) for found in windows
        ],
    }
    found = xr.Dataset(
        {
            "peak": sweep["stability_ratio"].sel(stability_step=moving).max("stability_step"),
            "sharpness_change": last.mean("stability_step") / first.mean("stability_step"),
            "ntk_change": ntk.isel(ntk_step=-1, drop=True) / ntk.isel(ntk_step=0, drop=True),
            **{
                name: (dims, np.reshape(of_cells, sweep["status"].shape)) for name, of_cells in counts.items()
            },
        }
    )
    return found.where(sweep["status"] != DIVERGED).merge(final_accuracies(config, sweep))


def final_accuracies(config: ConfigDict, sweep: xr.Dataset) -> xr.Dataset:
    """Return `final_accuracy` and `final_validation_accuracy` of every cell, and what the loss gains.

    `<accuracy>_gain`, with `_gain_error`, is that over the static twin, paired over seeds. A diverged run
    counts with the accuracy of guessing.
    """
    found = xr.Dataset()
    for name in ACCURACIES:
        last = {dim: -1 for dim in sweep[name].dims if dim.endswith("step")}
        final = sweep[name].isel(last, drop=True)
        final = final.where(sweep["status"] != DIVERGED, 1 / config.dataset.num_classes)
        gain = paired_gain(final.sel(amplitude=config.schedule.amplitude), final.sel(amplitude=1.0))
        found = found.assign(
            {f"final_{name}": final, f"{name}_gain": gain["gain"], f"{name}_gain_error": gain["gain_error"]}
        )
    return found


def flow_differences(config: ConfigDict) -> dict[float, float]:
    """Return how far training by steps is from the closed form, for two learning rates, the second half.

    The linearised network of a configuration under the static squared loss, up to one time; the largest
    difference of a logit relative to the largest change of one. It must halve with the learning rate.
    """
    experiment = build.build(config)
    apply_fn, batch = experiment.problem.apply_fn, experiment.replica.train
    start = apply_fn(experiment.state.params, batch.inputs)
    kernel = full_ntk(apply_fn, experiment.state.params, batch.inputs)
    logits = squared_loss_flow(kernel, batch.labels, start)(jnp.asarray(_FLOW_TIME, start.dtype))
    loss_fn = losses.make_loss(apply_fn, losses.dmse1, schedules.constant(config.dataset.num_classes))
    found = {}
    for rate in _FLOW_RATES:
        optimizer = optimizers.make_optimizer("sgd", rate)
        loop = training.make_loop(training.make_step(loss_fn, data.full_batch(batch), optimizer))
        state, _, _ = loop(
            training.init_state(experiment.state.params, optimizer), {}, round(_FLOW_TIME / rate)
        )
        apart = jnp.max(jnp.abs(apply_fn(state.params, batch.inputs) - logits))
        found[rate] = float(apart / jnp.max(jnp.abs(logits - start)))
    return found


def tables(
    found: xr.Dataset, easier: xr.Dataset, kernels: xr.Dataset, differences: Mapping[float, float]
) -> tuple[Table, Table, Table]:
    """Lay out what both losses do, what they do on the easier data, and the slopes with the check."""
    effects = Table("", box=SIMPLE_HEAD, padding=0, caption=_CAPTION.format(found.sizes["seed"]))
    cells = [
        found.sel(learning_rate=rate, linearized=linearized)
        for rate in found["learning_rate"].values
        for linearized in (False, True)
    ]
    for cell in cells:
        network = "linearised" if cell["linearized"] else "real"
        effects.add_column(f"{network}\nη = {float(cell['learning_rate']):g}", justify="right")
    accuracies = dict(zip(ACCURACIES, ("accuracy", "validation"), strict=True))
    for name, words in (accuracies | _EFFECTS).items():
        variable = f"final_{name}" if name in accuracies else name
        for loss, amplitude in ((f"{words}, static", 0), ("  dynamical", -1)):
            effects.add_row(loss, *(_mean(cell[variable].isel(amplitude=amplitude)) for cell in cells))
        if name in accuracies:
            effects.add_row("  gain", *(_gain(cell, name) for cell in cells))
    learnt = Table("linearised, easier spiral", "static", "dynamical", "gain", box=SIMPLE_HEAD)
    for name, words in accuracies.items():
        both = (_mean(easier[f"final_{name}"].isel(amplitude=amplitude)) for amplitude in (0, -1))
        learnt.add_row(words, *both, _gain(easier, name))
    cycles = (f"{n} cycle{'s' * int(n > 1)}" for n in kernels["cycles"].values)
    checks = Table("", "first parameters", *cycles, box=SIMPLE_HEAD)
    initial = f"{float(kernels['initial_slope']):.3f} ± {float(kernels['initial_slope_error']):.3f}"
    for rate in kernels["rate"].values:
        row = kernels.sel(rate=rate)
        slopes = zip(row["slope"].values, row["slope_error"].values, strict=True)
        trained = (f"{slope:.3f} ± {error:.3f}" for slope, error in slopes)
        rates = row["learning_rate"].values
        checks.add_row(f"slope, η {rates[0]:.2g} to {rates[-1]:.2g}", initial, *trained)
    for rate, difference in differences.items():
        checks.add_row(f"closed form, η = {rate:g}", f"{difference:.1e}")
    return effects, learnt, checks


def _mean(values: xr.DataArray) -> str:
    error = float(values.std("seed", ddof=1)) / np.sqrt(int(values.count("seed")))
    return f"{float(values.mean('seed')):.3g} ± {error:.1g}"


def _gain(cell: xr.Dataset, name: str) -> str:
    return f"{float(cell[f'{name}_gain']):+.3f} ± {float(cell[f'{name}_gain_error']):.1g}"


def main() -> None:
    """Run `python -m experiments.lazy`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.lazy", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--workdir", type=Path, default="results/lazy")
    add_options(parser)
    options = parser.parse_args()
    folder, how = options.workdir / options.scale, settings(options)
    try:
        neural_tangents_import.load()
    except ImportError as error:
        raise ConfigError(error) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _all(options.scale, folder, how)
    except OSError as error:
        raise files.StoreError(f"cannot use {folder}: {error}") from error


def _all(scale: str, folder: Path, how: Settings) -> int:
    sweeps = complete("kernel_width", scale, folder / "kernel_width", how)
    if isinstance(sweeps, int):
        return sweeps
    kernels = kernel_distances(kernel_width.get_config(scale), sweeps)
    sweeps = complete("lazy_rich", scale, folder / "lazy_rich", how)
    if isinstance(sweeps, int):
        return sweeps
    config = lazy_rich.get_config(scale)
    found = surviving(config, sweeps["main"])
    easier = final_accuracies(config, sweeps["easier"].squeeze("num_turns"))
    for name, shown in {"kernel_width": kernels, "lazy_rich": sweeps["main"].merge(found)}.items():
        figure = getattr(figures, name)(shown)
        for suffix in ("png", "pdf"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=300)
    Console().print(*tables(found, easier, kernels, flow_differences(config)))
    print(f"{folder}: kernel_width, lazy_rich .png and .pdf")
    return 0


if __name__ == "__main__":
    main()
