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

import inspect
import sys
from pathlib import Path

from experiments import command_line
from experiments.command_line import ConfigError
from experiments.sweep import fill, report
from experiments.sweep.axes import SCALES, Sweep, declare, load_config_file, make_sweep, named_sweeps
from experiments.sweep.launch import add_options, settings


def load(argv: list[str], path: Path, scale: str, name: str) -> tuple[Sweep, Path]:
    """Return one sweep of a configuration file, with overrides from the command line, and the work folder."""
    module = load_config_file(path)
    declared = named_sweeps(module)
    if name not in declared:
        raise ConfigError(f"unknown sweep {name!r}: one of {', '.join(declared)}")
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{path} has no function get_config")
    file = f"{path}:{scale}" if inspect.signature(get_config).parameters else str(path)
    arguments = command_line.parse([argv[0], f"--config={file}", *argv[1:]], __doc__)
    return make_sweep(arguments.config, name, declare(declared[name], scale)), arguments.workdir


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
    add_options(parser)
    options, others = parser.parse_known_args()
    sweep, workdir = load([sys.argv[0], *others], options.config, options.scale, options.sweep)
    command_line.use_precision(sweep.config)
    if options.dry_run:
        report.dry_run(sweep, workdir, settings(options))
        return 0
    return report.outcome(fill.run(sweep, workdir, settings(options)), workdir)


if __name__ == "__main__":
    main()
