"""Run a configuration over a grid of settings, and fill what is missing of it.

    python -m experiments.sweep --config=experiments/configs/phase_amplitude_period.py --workdir=DIR \\
        [--scale=smoke|small|paper] [--sweep=NAME] [--memory=MiB] [--config.key=value ...] \\
        [--launcher=here|local|slurm] [--jobs=N] [--slurm=partition=NAME ...] [--dry-run]

--sweep       one of the sweeps that the file declares: "main" is `def sweep`, "x" is `def sweep_x`
--memory      most memory for the arrays of one block; it decides the blocks when a sweep is created
--launcher    run in this process, in --jobs processes of this machine, or as --jobs Slurm jobs
--slurm       a parameter of submitit's, such as partition=NAME or timeout_min=240; may be repeated
--dry-run     print cells, blocks, estimated time and memory, and run nothing
"""

import sys
from math import prod
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dlf.store.cells import NOT_RUN, Store
from experiments import command_line, threads
from experiments.build import build
from experiments.command_line import ConfigError
from experiments.config_files import SCALES, config_of, configuration, declare, load_config_file, named_sweeps
from experiments.second_pass import loop_seconds
from experiments.sweep import fill
from experiments.sweep.axes import Sweep, make_sweep
from experiments.sweep.blocks import plan

_TIMED_STEPS = 500


def dry_run(sweep: Sweep, workdir: Path, settings: fill.Settings) -> None:
    """Print cells, blocks, estimated time and memory of a sweep; each program is timed for some steps."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir} is no folder: name another one")
    meta = fill.existing(sweep, workdir, settings.memory) if workdir.exists() else None
    planned = plan(sweep, settings.memory)
    num_cells = missing = prod(sweep.shape)
    cells_per_block = prod(planned.cells_per_block)
    num_blocks = prod(-(-n // k) for n, k in zip(sweep.shape, planned.cells_per_block, strict=True))
    if meta:
        store = Store(workdir)
        missing = int(np.sum(store.status() == NOT_RUN))
        num_blocks, cells_per_block = len(store.blocks()), store.cells_per_block
    taken = []
    for config in planned.programs:
        experiment, num_steps = build(config), min(_TIMED_STEPS, config.num_steps)
        seconds = loop_seconds(experiment, experiment.run.probes, num_steps)
        taken.append(seconds / num_steps * config.num_steps)
    per_cell, num_jobs = np.mean(taken), 1 if settings.launcher == "here" else settings.num_jobs
    hours, minutes = missing * per_cell / 3600, missing * per_cell / 60 / num_jobs
    of_block, most = (meta["block_bytes"] if meta else planned.block_bytes) / 2**20, settings.memory / 2**20
    stored = num_cells * sum(prod(x.shape) * np.dtype(x.dtype).itemsize for x in planned.series.values())
    axes = " x ".join(f"{axis.name} {len(axis.labels)}" for axis in sweep.axes)
    timed = f"as timed over {_TIMED_STEPS} steps, without its last probes"
    table = Table("", f"sweep {sweep.name!r}, {'float64' if sweep.config.float64 else 'float32'}")
    table.add_row("cells", f"{axes} = {num_cells:,}")
    table.add_row("still to run", f"{missing:,}")
    table.add_row("blocks", f"{num_blocks:,} of up to {cells_per_block} cells")
    table.add_row("programs to compile", f"{len(planned.programs)}")
    table.add_row("time of a cell", f"{per_cell:.3g} s, {timed}")
    table.add_row("time in all", f"{hours:.3g} core-hours, {num_jobs} at a time: {minutes:.3g} min")
    table.add_row("memory of a block", f"{of_block:.3g} of {most:.3g} MiB")
    table.add_row("results", f"{stored / 2**20:.3g} MiB uncompressed")
    Console().print(table)


def main() -> None:
    """Run `python -m experiments.sweep`, also installed as `dlf-sweep`."""
    command_line.run(_main)


def _main() -> int:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__.strip())
        return 0
    parser = command_line.Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--sweep", default="main")
    parser.add_argument("--dry-run", action="store_true")
    fill.add_options(parser)
    options, others = parser.parse_known_args()
    path, module = options.config, load_config_file(options.config)
    declared = named_sweeps(module)
    if options.sweep not in declared:
        raise ConfigError(f"unknown sweep {options.sweep!r}: one of {', '.join(declared)}")
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config")
    config = configuration(str(path), config_of(module, options.sweep), options.scale)
    asked = command_line.parse([sys.argv[0], *others], __doc__, config=config)
    sweep = make_sweep(asked.config, options.sweep, declare(declared[options.sweep], options.scale))
    command_line.use_precision(sweep.config)
    threads.choose([sweep])
    workdir, settings = Path(asked.workdir), fill.settings(options)
    if options.dry_run:
        dry_run(sweep, workdir, settings)
        return 0
    return command_line.report(fill.run(sweep, workdir, settings), workdir)


if __name__ == "__main__":
    main()
