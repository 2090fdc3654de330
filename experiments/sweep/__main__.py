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
from pathlib import Path

from experiments import command_line, threads
from experiments.command_line import ConfigError
from experiments.config_files import SCALES, config_of, configuration, declare, load_config_file, named_sweeps
from experiments.sweep import fill
from experiments.sweep.axes import make_sweep
from experiments.sweep.estimates import dry_run


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
