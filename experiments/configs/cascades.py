"""The run of Fig. 4 with all that tells when it becomes unstable, why, and when that ends.

`experiments.figure cascades`, 9 minutes on a busy machine. The training is that of fig4.py, to the bit; its
probes and their settings are [ours]. `static` is the same under the static loss, A = 1; a second pass from
the checkpoints measures each onset at every step.
"""

import sys

from analysis.findings import onsets
from experiments.configs import fig4, tiny
from experiments.second_pass import estimate_cost, measure_windows

FIGURE = "cascades", "bifurcation", "static_dynamic"
CSV = "instabilities", "instability"  # file, dimension
reduce, in_words = onsets.reduce, onsets.in_words
EXPECTED = (
    ("instability_onset", {"instability": 0}, 4_088, 4_000, 4_200, "[ours]"),
    ("reference_accuracy", 69_999, 0.477, 0.0, 0.8, "[ours], P1 [text]"),
    ("num_instabilities", {}, 9, 7, 11, "[ours], P1 [fig]"),
)


def get_config(scale="small"):
    """Return the run of Fig. 4 with tracker, stability ratio, exponent, NTK and forecasts."""
    config = tiny.get_config() if scale == "smoke" else fig4.get_config()
    config.schedule.amplitude, period = 70.0, config.schedule.period
    config.steps_per_chunk = 2 * period // 5
    config.checkpoints_kept = config.num_steps // config.steps_per_chunk  # all: for the second pass
    config.probes = dict(
        tracker=dict(every=32, num=3, tol=1e-3),  # a multiple of all periods: all lie on one branch
        stability=dict(every=max(period // 100, 10), tol=1e-3),
        lyapunov=dict(num=1),
        ntk=dict(every=5, num=1, num_examples=50),
        forecast=dict(every=period // 10, num=2, tol=1e-3),
    )
    return config


def static(scale="small"):
    """Return the same under the static loss."""
    config = get_config(scale)
    config.schedule.amplitude = 1.0
    del config.probes.ntk, config.probes.forecast
    return config


RUNS = {"run": get_config, "static": static}


def measure(config, results, folder):
    """Follow the eigenvalues about every onset of the run once more, at every step, from its checkpoints."""
    run, spans = results["run"], onsets.spans(results["run"])
    estimate = estimate_cost(config)._replace(num_measurements=sum(stop - start for start, stop in spans))
    print(f"second pass, the onsets at every step: {estimate}", file=sys.stderr)
    found = measure_windows(config, folder / "run", spans)
    if spans and not (found["loss"].values == run["loss"].sel(step=found["step"]).values).all():
        print(
            "the second pass does not follow the run to the bit: it was made on another machine or version, "
            "and its sharpness at onsets may be that of another trajectory",
            file=sys.stderr,
        )
    return found
