"""What does each moment of a cascade carry? Branches of Fig. 4 from before, inside and after its fourth one.

`python -m experiments.figure branches`, 7 minutes. All values are [ours]; the run is that of
Fig. 4. From 18,000, 19,000 and 20,500 (the cascade of the second turn of class 0 begins at 18,304, is
chaotic, and ends at 20,352) it goes on to the end in four ways: as before; "switched off", all class weights
one from there on; "frozen", with the class weights of that moment; "slower", at half the learning rate. Error
bars are of eight restarts whose parameters were moved by a millionth. Read: the accuracy at the end. What a
later moment has and an earlier one lacks under "switched off", the steps between have earned. Found: of the
training accuracy nothing, since the static loss goes on from before the cascade to the parent's, and from the
start does not; on validation examples it is open (all of one run).
"""

from pathlib import Path

import numpy as np
import xarray as xr

from analysis.findings.diagrams import mean_error
from experiments import records
from experiments.branch import branch
from experiments.configs import fig4

FIGURE = "branches"
EXPECTED = (  # four standard errors of restarts, which end in chaos on every machine
    ("final_accuracy_mean", {"moment": "before", "way": "as before"}, 0.988, 0.96, 1.0, "[ours]"),
    ("final_accuracy_mean", {"moment": "before", "way": "frozen"}, 0.957, 0.90, 1.0, "[ours]"),
    ("final_accuracy_mean", {"moment": "before", "way": "slower"}, 0.993, 0.985, 1.0, "[ours]"),
    ("final_accuracy_mean", {"moment": "inside", "way": "switched off"}, 0.988, 0.96, 1.0, "[ours]"),
    ("final_accuracy_mean", {"moment": "before", "way": "switched off"}, 0.993, 0.985, 1.0, "[ours]"),
)
MOMENTS = {"before": 18_000, "inside": 19_000, "after": 20_500}
_WAYS = ("as before", "switched off", "frozen", "slower")
_ACCURACIES = ("accuracy", "validation_accuracy")
_MOVED, _RESTARTS = 1e-6, 8
_WHOLE = 14 * 5_000  # steps


def get_config(scale="small"):
    """Return the run of Fig. 4 with all its checkpoints, and the validation accuracy at the end."""
    config = fig4.get_config(*((2, 60) if scale == "smoke" else ()))
    if scale == "smoke":
        config.dataset.examples_per_class, config.model.hidden_widths, config.steps_per_chunk = 10, (8,), 20
    config.num_steps += 1  # the last row is measured after all updates
    config.checkpoints_kept = 1 + config.num_steps // config.steps_per_chunk
    config.probes = dict(validation=dict(every=config.num_steps - 1))
    return config


RUNS = {"parent": get_config}


def measure(config, results, folder: Path):
    """Go on from every moment in every way, and keep the accuracies at the end."""
    parent, length = results["parent"], (config.num_steps - 1) / _WHOLE
    shape = len(MOMENTS), len(_WAYS), _RESTARTS if length == 1 else 2
    found = {name: np.full(shape, np.nan) for name in _ACCURACIES}
    for place in np.ndindex(*shape):
        moment, way = list(MOMENTS)[place[0]], _WAYS[place[1]]
        step = max(1, round(MOMENTS[moment] * length))
        weights = tuple(map(float, parent["class_weights"].sel(step=step)))
        overrides = {
            "as before": {},
            "switched off": {"stop_after": step},
            "frozen": {"schedule": {"name": "constant", "weights": weights}},
            "slower": {"optimizer.learning_rate": config.optimizer.learning_rate / 2},
        }
        workdir = folder / "branches" / f"{moment}_{way.replace(' ', '_')}_{place[2]}"
        branch(folder / "parent", step, overrides[way], workdir, perturbation=_MOVED, seed=place[2])
        run = records.load(workdir)
        for name, values in found.items():
            values[place] = run[name][-1]
    dims = "moment", "way", "restart"
    found = {f"final_{name}": (dims, of) for name, of in found.items()}
    found["moment_step"] = "moment", [max(1, round(of * length)) for of in MOMENTS.values()]
    return xr.Dataset(found, {"moment": list(MOMENTS), "way": list(_WAYS)})


def reduce(results):
    """Return the accuracies of all branches and those of the parent, beside its loss."""
    parent, found = results["parent"], results["measured"]
    means = {f"final_{name}_mean": found[f"final_{name}"].mean("restart") for name in _ACCURACIES}
    found = found.assign(means | {f"parent_{name}": float(parent[name][-1]) for name in _ACCURACIES})
    found["moment_accuracy"] = "moment", parent["accuracy"].sel(step=found["moment_step"].values).values
    return found.assign(loss=parent["loss"]).assign_attrs(commit=parent.attrs.get("commit", ""))


def in_words(found):
    """Return the accuracies at the end by moment and way."""
    steps = [f"step {int(of):,}" for of in found["moment_step"]]
    then = [f"{100 * float(of):.1f}" for of in found["moment_accuracy"]]
    tables = {"training accuracy of the parent, %": [("at", *steps), ("", *then)]}
    for name in _ACCURACIES:
        rows = [("from there on", *(f"{of}, step {MOMENTS[of]:,}" for of in found["moment"].values))]
        mean, error = mean_error(100 * found[f"final_{name}"].rename(restart="seed"))
        for way in found["way"].values:
            cells = zip(mean.sel(way=way).values, error.sel(way=way).values, strict=True)
            rows.append((str(way), *(f"{m:.1f} ± {e:.1f}" for m, e in cells)))
        parent = 100 * float(found[f"parent_{name}"])
        tables[f"{name.replace('_', ' ')} at the end, %; parent {parent:.1f}"] = rows
    return tables
