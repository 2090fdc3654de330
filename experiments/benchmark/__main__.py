"""The command line of the benchmarks."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dlf.store import files
from experiments import command_line, records
from experiments.benchmark import eigenpairs, image_training, many_runs, one_run
from experiments.benchmark.timing import words

# what measures, part after part of the tables {name: records}; its options; where the JSON goes
COMMANDS = {
    "fig4": (one_run.speed, {"repeats": 5, "steps": 2_000}, "results/benchmark_fig4.json"),
    "curvature": (eigenpairs.curvature, {"repeats": 3}, "results/benchmark_curvature.json"),
    "images": (image_training.speed, {"repeats": 5}, "results/benchmark_images.json"),
    "spread": (one_run.spread, {"num_runs": 12}, "results/spread_fig4.json"),
    "sweep": (many_runs.speed, {"repeats": 5}, "results/benchmark_sweep.json"),
    "stability": (one_run.tracking, {"repeats": 3}, "results/benchmark_stability.json"),
}
_LEAST = {"repeats": 3, "steps": 1, "num_runs": 2}


def main() -> int:
    """Run `python -m experiments.benchmark`: measure, write JSON, print tables."""
    parser = command_line.Parser(prog="python -m experiments.benchmark", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (benchmark, options, path) in COMMANDS.items():
        command = commands.add_parser(name, help=benchmark.__doc__.partition("\n")[0])
        command.add_argument("--json", type=Path, default=path)
        for option, default in options.items():
            command.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
    arguments = vars(parser.parse_args())
    benchmark, path = COMMANDS[arguments.pop("command")][0], arguments.pop("json")
    for option, value in arguments.items():
        if value < _LEAST[option]:
            parser.error(f"--{option.replace('_', '-')} must be at least {_LEAST[option]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()  # fails now, not after minutes
    except OSError as error:
        parser.error(f"cannot write {path}: {error.strerror}")
    header, tables = records.provenance(), {}
    del header["command"]  # its paths are nobody's business where the JSON ships
    header["versions"] |= {found.name: found.version for found in importlib.metadata.distributions()}
    header["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header |= {"machine": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), **arguments}
    with Console(stderr=True).status("measuring: takes minutes"):
        for part in benchmark(**arguments):
            for name, found in part.items():
                tables.setdefault(name, []).extend(found)
            files.write_json(path, header | tables)  # what was measured outlives an interrupt
    console = Console()
    console.width = max(console.width, 140)  # a line is a row, also in a file
    for found in tables.values():
        names = [name for name in found[0] if name not in ("id", "values")]  # what only documents need
        table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
        for record in found:
            table.add_row(*(words(record[name]) for name in names))
        console.print(table)
    console.print(f"-> {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
