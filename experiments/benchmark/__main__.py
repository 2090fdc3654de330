"""The command line of the benchmarks."""

from pathlib import Path

import jax
from rich.console import Console

from dlf.store import files
from experiments import command_line
from experiments.benchmark import curvature, fig4, soak, spread, stability, sweep
from experiments.benchmark.report import tables
from experiments.configs import fig4 as config_fig4


def main() -> None:
    """Run `python -m experiments.benchmark`."""
    command_line.run(_main)


def _main() -> int:
    parser = command_line.Parser(prog="python -m experiments.benchmark", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("fig4", help="speed, memory and compile time")
    speed.add_argument("--json", type=Path, default="results/benchmark_fig4.json")
    speed.add_argument("--repeats", type=int, default=5)
    speed.add_argument("--steps", type=int, default=2_000)
    solvers = commands.add_parser("curvature", help="solvers of the largest eigenvalues, and the NTK")
    solvers.add_argument("--json", type=Path, default="results/benchmark_curvature.json")
    solvers.add_argument("--repeats", type=int, default=3)
    chaos = commands.add_parser("spread", help="mid-period loss over perturbed runs")
    chaos.add_argument("--json", type=Path, default="results/spread_fig4.json")
    chaos.add_argument("--num-runs", type=int, default=12)
    grids = commands.add_parser("sweep", help="ensembles: replica-steps a second, overhead, memory")
    grids.add_argument("--json", type=Path, default="results/benchmark_sweep.json")
    grids.add_argument("--repeats", type=int, default=5)
    cascades = commands.add_parser("stability", help="cost of tracker, exponent and period labels")
    cascades.add_argument("--json", type=Path, default="results/benchmark_stability.json")
    cascades.add_argument("--repeats", type=int, default=3)
    kills = commands.add_parser("soak", help="kill a sweep at random moments and compare the end result")
    kills.add_argument("--kills", type=int, default=50)
    kills.add_argument("--workdir", type=Path, default="results/soak")
    arguments = parser.parse_args()
    for name, least in {"repeats": 3, "steps": 1, "num_runs": 2, "kills": 1}.items():
        if vars(arguments).get(name, least) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.command == "soak":
        Console().print(soak.soak(arguments.workdir, arguments.kills))
        return 0
    try:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.open("a").close()  # fails now, not after minutes
    except OSError as error:
        parser.error(f"cannot write {arguments.json}: {error.strerror}")
    if arguments.command == "fig4":
        Console().print(*tables(fig4.benchmark(arguments.json, arguments.repeats, arguments.steps)))
    elif arguments.command == "sweep":
        Console().print(*tables(sweep.benchmark(arguments.json, arguments.repeats)))
    elif arguments.command == "stability":
        Console().print(*tables(stability.benchmark(arguments.json, arguments.repeats)))
    elif arguments.command == "curvature":
        jax.config.update("jax_enable_x64", True)  # for the true residuals; all solvers get float32
        results, rows = curvature.benchmark(arguments.json, arguments.repeats)
        Console().print(curvature.table(results), *tables(rows))
    else:
        config = config_fig4.get_config()
        command_line.use_precision(config)
        found = spread.spread(config, config_fig4.EXPECTED, arguments.num_runs)
        files.write_json(arguments.json, {"num_runs": arguments.num_runs, "rows": found})
        Console().print(spread.table(found))
    return 0


if __name__ == "__main__":
    main()
