"""Measure the curvature of the run of Fig. 4 and of an image network, and draw it.

    python -m experiments.curvature [--workdir=results/curvature]

A work folder that holds measurements already is only drawn again.
"""

import os
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from analysis import figures, operators
from analysis.density import spectral_density, trace
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import dense
from analysis.ntk import empirical_ntk, spectrum
from dlf import data, losses, models, optimizers, schedules, train
from dlf.store import files
from experiments import command_line
from experiments.build import build, make_loop
from experiments.configs import fig4

PARTS = ("Hessian", "GGN", "residual")
STAGES = ("initial", "trained")


def measure_run(
    config: ConfigDict, num_points: int = 100, num_probes: int = 8, order: int = 64
) -> xr.Dataset:
    """Measure one full period of a run, the second: its curvature by class, and all spectra at its start.

    `spectrum` are all eigenvalues of Hessian, GGN and residual from the dense matrices, `density` the
    stochastic estimate of the same; along the period the top eigenvector u of the Hessian, found warm from
    the point before, gives `class_curvature` Gamma_c u.H_c u, which sums to the sharpness.
    """
    experiment = build(config)
    problem, state, period = experiment.problem, experiment.state, config.schedule.period
    weighted_loss = getattr(losses, config.loss.name)
    schedule = getattr(schedules, config.schedule.name)(
        num_classes=config.dataset.num_classes, **{k: v for k, v in config.schedule.items() if k != "name"}
    )
    class_losses = losses.make_class_losses(problem.apply_fn, weighted_loss)
    logits_loss = losses.make_loss(lambda logits, inputs: logits, weighted_loss, schedule)
    loop, along, start = make_loop(experiment, probe_names=()), [], None

    @jax.jit
    def by_class(state, vectors):
        top = jax.tree.map(lambda leaf: leaf[0], vectors)
        curvatures = operators.class_curvatures(class_losses, state.params, problem.batch_fn(state.step), top)
        return schedule(state.step) * curvatures

    state, _, _ = loop(experiment.replica, state, {}, period)
    first = state
    for _ in range(num_points + 1):
        matvec = operators.hessian(problem.loss_fn, state.params, problem.batch_fn(state.step), state.step)
        pairs = top_eigenpairs(matvec, state.params, num=3, tol=1e-4, start=start, key=problem.key)
        start = pairs.vectors
        row = state.step, pairs.values[0], pairs.residuals[0], by_class(state, start), pairs.num_matvecs
        along.append(jax.tree.map(np.asarray, row))
        state, _, _ = loop(experiment.replica, state, {}, period // num_points)
    params, batch = first.params, problem.batch_fn(first.step)
    maps = {
        "Hessian": operators.hessian(problem.loss_fn, params, batch, first.step),
        "GGN": operators.ggn(problem.apply_fn, logits_loss, params, batch, first.step),
        "residual": operators.residual(problem.apply_fn, logits_loss, params, batch, first.step),
    }
    eigenvalues = [np.linalg.eigvalsh(dense(maps[part], params))[::-1] for part in PARTS]
    ntk = spectrum(empirical_ntk(problem.apply_fn, params, batch.inputs))
    settings = dict(num_probes=num_probes, order=order, key=problem.key)
    steps, sharpness, residuals, class_curvature, num_matvecs = map(np.array, zip(*along, strict=True))
    found = xr.Dataset(
        {
            "sharpness": ("step", sharpness, {"units": "nat"}),
            "sharpness_residual": ("step", residuals, {"units": "nat"}),
            "class_curvature": (("step", "class"), class_curvature, {"units": "nat"}),
            "num_matvecs": ("step", num_matvecs),
            "spectrum": (("part", "rank"), np.stack(eigenvalues), {"units": "nat"}),
            "ntk_spectrum": ("ntk_rank", np.asarray(ntk)),
        },
        {"step": steps, "part": list(PARTS), "class": np.arange(config.dataset.num_classes)},
        {"first": int(first.step), "threshold": 2 / config.optimizer.learning_rate},
    )
    return found.merge(_densities("", "part", {part: (maps[part], params) for part in PARTS}, **settings))


def measure_images(
    widths: tuple[int, ...] = (16, 16, 128, 80),
    num_examples: int = 300,
    num_steps: int = 200,
    num_probes: int = 3,
    order: int = 40,
) -> xr.Dataset:
    """Measure the Hessian's density of a convolutional network on digits, before and after training."""
    dataset = data.digits(num_train=num_examples)
    model = models.myrtle(dataset.num_classes, widths, activation="relu")
    key, batch_fn = jax.random.key(0), data.full_batch(dataset.train)
    loss_fn = losses.make_loss(model.apply, losses.cross_entropy, schedules.constant(dataset.num_classes))
    optimizer = optimizers.make_optimizer("sgd", learning_rate=0.1)
    state = train.init_state(model.init(key, dataset.train.inputs[:1]), optimizer)
    step_fn = train.make_step(loss_fn, batch_fn, optimizer)
    trained, _, _ = train.make_loop(step_fn)(state, {}, num_steps)
    size = min(128, num_examples)
    maps = {
        stage: (operators.hessian(loss_fn, at.params, dataset.train, at.step, batch_size=size), at.params)
        for stage, at in zip(STAGES, (state, trained), strict=True)
    }
    settings = dict(num_probes=num_probes, order=order, key=key)
    found = _densities("image_", "stage", maps, **settings)
    logits = model.apply(trained.params, dataset.test.inputs)
    found.attrs["num_parameters"] = ravel_pytree(state.params)[0].size
    found.attrs["test_accuracy"] = float(losses.accuracy(logits, dataset.test.labels))
    return found


def _densities(prefix, dim, maps, num_probes, order, key):
    """Return density and trace of each map, labelled by its name along `dim`."""
    densities, traces = zip(
        *(
            (
                spectral_density(*of, num_probes=num_probes, order=order, width=0.005, key=key),
                trace(*of, num_matvecs=max(6, num_probes * order // 4), key=key),
            )
            for of in maps.values()
        ),
        strict=True,
    )
    on_grid, per_value = (dim, f"{prefix}point"), {"units": "1/nat"}
    return xr.Dataset(
        {
            f"{prefix}eigenvalue": (on_grid, np.stack([d.values for d in densities]), {"units": "nat"}),
            f"{prefix}density": (on_grid, np.stack([d.density for d in densities]), per_value),
            f"{prefix}density_error": (on_grid, np.stack([d.standard_error for d in densities]), per_value),
            f"{prefix}trace": (dim, np.stack([t.value for t in traces]), {"units": "nat"}),
            f"{prefix}trace_error": (dim, np.stack([t.standard_error for t in traces]), {"units": "nat"}),
        },
        {dim: list(maps)},
    )


def table(found: xr.Dataset) -> Table:
    """Lay out what was found, with its errors."""
    layout = Table("quantity", "value", "standard error or residual")
    first = found.sel(step=found.first)
    layout.add_row(
        f"sharpness at step {found.first:,}", f"{first.sharpness:.4g}", f"{first.sharpness_residual:.1e}"
    )
    layout.add_row("sum of its classes", f"{first.class_curvature.sum():.4g}", "")
    for part in PARTS:
        row = found.sel(part=part)
        layout.add_row(f"trace of the {part}, estimated", f"{row.trace:.4g}", f"{row.trace_error:.1g}")
        layout.add_row(f"trace of the {part}, dense", f"{row.spectrum.sum():.4g}", "")
    for stage in STAGES:
        row = found.sel(stage=stage)
        layout.add_row(
            f"image network, {stage}: trace", f"{row.image_trace:.4g}", f"{row.image_trace_error:.1g}"
        )
    warm = found.num_matvecs
    layout.add_row("products a point, first and median after", f"{warm[0]:.0f}, {warm[1:].median():.0f}", "")
    return layout


def main() -> None:
    """Run `python -m experiments.curvature`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(
        prog="python -m experiments.curvature", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--workdir", type=Path, default="results/curvature")
    workdir = parser.parse_args().workdir
    config = fig4.get_config()
    command_line.use_precision(config)
    store = workdir / "curvature.nc"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not store.exists():
            with Console(stderr=True).status("measuring: takes about two minutes"):
                found = xr.merge([measure_run(config), measure_images()], combine_attrs="no_conflicts")
            found.to_netcdf(workdir / "unfinished.nc", engine="scipy")
            os.replace(workdir / "unfinished.nc", store)
        found = xr.load_dataset(store, engine="scipy")
        figure = figures.curvature(found)
        for suffix in ("png", "pdf"):
            figure.savefig(workdir / f"curvature.{suffix}", dpi=300)
    except (OSError, TypeError) as error:  # SciPy's word for a file of another kind
        raise files.StoreError(f"cannot use {workdir}: {error}") from error
    Console().print(table(found))
    print(f"{workdir / 'curvature'}.png and .pdf")
    return 0


if __name__ == "__main__":
    main()
