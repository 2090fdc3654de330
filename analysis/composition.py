"""What makes up the curvature: by class, by Gauss-Newton part and residual, along a run and of images."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from analysis import operators
from analysis.density import spectral_density, trace
from analysis.lanczos import top_eigenpairs
from analysis.linear_maps import dense
from analysis.ntk import empirical_ntk, spectrum
from dlf import data, losses, models, optimizers, schedules, train
from dlf.types import Matvec, Params, Problem, TrainState

PARTS = ("Hessian", "GGN", "residual")
STAGES = ("initial", "trained")


def along(
    problem: Problem,
    state: TrainState,
    advance: Callable[[TrainState], TrainState],
    num_points: int = 100,
    num_probes: int = 8,
    order: int = 64,
) -> xr.Dataset:
    """Measure the curvature by class at points along a run, and all spectra at the first of them.

    `advance` trains from one point to the next. `spectrum` are all eigenvalues of Hessian, GGN and residual
    from the dense matrices, `density` the stochastic estimate of the same, `trace_deviation` the estimated
    trace minus the dense one in standard errors; along the run the top eigenvector u of the Hessian, found
    warm from the point before, gives `class_curvature` Gamma_c u.H_c u, which sums to the sharpness.
    """
    logits_loss = losses.make_loss(lambda logits, inputs: logits, problem.weighted_loss, problem.schedule)
    params, batch, step = state.params, problem.train, state.step
    network = train.frozen(problem, state), logits_loss, params, batch, step
    hessian = operators.hessian(train.loss_of(problem, state), params, batch, step)
    matvecs = hessian, operators.ggn(*network), operators.residual(*network)
    maps = {name: (matvec, params) for name, matvec in zip(PARTS, matvecs, strict=True)}
    rows, start = [], None

    @jax.jit
    def by_class(state, vectors):
        top = jax.tree.map(lambda leaf: leaf[0], vectors)
        weights = problem.schedule(state.step)
        class_losses = losses.make_class_losses(
            train.frozen(problem, state), problem.weighted_loss, len(weights)
        )
        return weights * operators.class_curvatures(class_losses, state.params, batch, top)

    for _ in range(num_points + 1):
        matvec = operators.hessian(train.loss_of(problem, state), state.params, batch, state.step)
        pairs = top_eigenpairs(matvec, state.params, num=3, tol=1e-4, start=start, key=problem.key)
        start = pairs.vectors
        row = state.step, pairs.values[0], pairs.residuals[0], by_class(state, start), pairs.num_matvecs
        rows.append(jax.tree.map(np.asarray, row))
        state = advance(state)
    steps, sharpness, residuals, class_curvature, num_matvecs = map(np.array, zip(*rows, strict=True))
    eigenvalues = np.stack([np.linalg.eigvalsh(dense(*of))[::-1] for of in maps.values()])
    ntk = spectrum(empirical_ntk(network[0], params, batch.inputs))
    found = xr.Dataset(
        {
            "sharpness": ("step", sharpness, {"units": "nat"}),
            "sharpness_residual": ("step", residuals, {"units": "nat"}),
            "class_curvature": (("step", "class"), class_curvature, {"units": "nat"}),
            "num_matvecs": ("step", num_matvecs),
            "spectrum": (("part", "rank"), eigenvalues, {"units": "nat"}),
            "ntk_spectrum": ("ntk_rank", np.asarray(ntk)),
        },
        {"step": steps, "part": list(PARTS), "class": np.arange(class_curvature.shape[1])},
        {"first": int(step)},
    )
    found = found.merge(_densities("", "part", maps, num_probes, order, problem.key))
    found["trace_deviation"] = (found["trace"] - found["spectrum"].sum("rank")) / found["trace_error"]
    return found


def of_images(
    widths: tuple[int, ...] = (16, 16, 128, 80),
    num_examples: int = 300,
    num_steps: int = 200,
    num_probes: int = 3,
    order: int = 40,
) -> xr.Dataset:
    """Measure the Hessian's density of a convolutional network on digits, before and after training."""
    dataset = data.digits(num_train=num_examples)
    model = models.myrtle(dataset.num_classes, widths, activation="relu")
    key, schedule = jax.random.key(0), schedules.constant(dataset.num_classes)
    loss_fn = losses.make_loss(models.apply_fn(model), losses.cross_entropy, schedule)
    optimizer = optimizers.make_optimizer("sgd", learning_rate=0.1)
    state = train.init_state(model.init(key, dataset.train.inputs[:1])[0], optimizer)
    step_fn = train.make_step(loss_fn, data.full_batch(dataset.train), optimizer)
    trained, _, _ = train.make_loop(step_fn)(state, {}, num_steps)
    size = min(128, num_examples)
    maps = {
        stage: (operators.hessian(loss_fn, at.params, dataset.train, at.step, batch_size=size), at.params)
        for stage, at in zip(STAGES, (state, trained), strict=True)
    }
    found = _densities("image_", "stage", maps, num_probes, order, key)
    logits = models.apply_fn(model)(trained.params, dataset.test.inputs)
    found.attrs["num_parameters"] = ravel_pytree(state.params)[0].size
    found.attrs["test_accuracy"] = float(losses.accuracy(logits, dataset.test.labels))
    return found


def of_network(
    problem: Problem, state: TrainState, num: int, num_probes: int, order: int, num_ntk: int, batch_size: int
) -> xr.Dataset:
    """Measure the curvature of one network of images on its training set, in parts of `batch_size`.

    `eigenvalues`, the `num` largest of the Hessian, with `residuals` and the number of `matvecs`;
    `class_curvature` Gamma_c u.H_c u of the first; density and trace (`num_probes` of `order`);
    `ntk_spectrum` on the first `num_ntk` examples; `memory`, the bytes that the compiled product with the
    Hessian needs beside its arguments.
    """
    params, batch, step = state.params, problem.train, state.step
    matvec = operators.hessian(train.loss_of(problem, state), params, batch, step, batch_size=batch_size)
    pairs = top_eigenpairs(matvec, params, num=num, tol=1e-3, key=problem.key)
    top, weights = jax.tree.map(lambda leaf: leaf[0], pairs.vectors), problem.schedule(step)
    apply_fn = train.frozen(problem, state)
    class_losses = losses.make_class_losses(apply_fn, problem.weighted_loss, len(weights))
    by_class = operators.class_curvatures(class_losses, params, batch, top, batch_size=batch_size)
    ntk = empirical_ntk(apply_fn, params, batch.inputs[:num_ntk], batch_size=min(batch_size, num_ntk))
    compiled = jax.jit(lambda vector: matvec(vector)).lower(params).compile()
    found = xr.Dataset(
        {
            "eigenvalues": ("rank", np.asarray(pairs.values), {"units": "nat"}),
            "residuals": ("rank", np.asarray(pairs.residuals), {"units": "nat"}),
            "matvecs": int(pairs.num_matvecs),
            "class_curvature": ("class", np.asarray(weights * by_class), {"units": "nat"}),
            "ntk_spectrum": ("ntk_rank", np.asarray(spectrum(ntk))),
            "memory": ((), compiled.memory_analysis().temp_size_in_bytes, {"units": "bytes"}),
            "num_parameters": ravel_pytree(params)[0].size,
        }
    )
    densities = _densities("", "part", {"Hessian": (matvec, params)}, num_probes, order, problem.key)
    return found.merge(densities.squeeze("part", drop=True))


def _densities(
    prefix: str, dim: str, maps: Mapping[str, tuple[Matvec, Params]], num_probes: int, order: int, key: Array
) -> xr.Dataset:
    """Return density and trace of each map, labelled by its name along `dim`."""
    settings = dict(num_probes=num_probes, order=order, width=0.005, key=key)
    densities = [spectral_density(*of, **settings) for of in maps.values()]
    traces = [trace(*of, num_matvecs=max(6, num_probes * order // 4), key=key) for of in maps.values()]
    variables = {
        "eigenvalue": ("nat", [d.values for d in densities]),
        "density": ("1/nat", [d.density for d in densities]),
        "density_error": ("1/nat", [d.standard_error for d in densities]),
        "trace": ("nat", [t.value for t in traces]),
        "trace_error": ("nat", [t.standard_error for t in traces]),
    }
    found = xr.Dataset(coords={dim: list(maps)})
    for name, (units, values) in variables.items():
        stacked = np.stack(values)
        found[prefix + name] = ((dim, f"{prefix}point")[: stacked.ndim], stacked, {"units": units})
    return found


def in_words(found: xr.Dataset) -> dict[str, list[tuple[str, ...]]]:
    """Return a table of what was found, with its errors."""
    first, warm = found.sel(step=found.first), found["num_matvecs"]
    rows = [
        ("quantity", "value", "standard error or residual"),
        (f"sharpness at step {found.first:,}", f"{first.sharpness:.4g}", f"{first.sharpness_residual:.1e}"),
        ("sum of its classes", f"{first['class_curvature'].sum():.4g}", ""),
    ]
    for part in PARTS:
        row = found.sel(part=part)
        rows.append((f"trace of the {part}, estimated", f"{row['trace']:.4g}", f"{row['trace_error']:.1g}"))
        rows.append((f"trace of the {part}, dense", f"{row['spectrum'].sum():.4g}", ""))
    for stage in STAGES:
        row = found.sel(stage=stage)
        traces = f"{row['image_trace']:.4g}", f"{row['image_trace_error']:.1g}"
        rows.append((f"image network, {stage}: trace", *traces))
    products = f"{warm[0]:.0f}, {warm[1:].median():.0f}"
    return {"curvature": [*rows, ("products a point, first and median after", products, "")]}
