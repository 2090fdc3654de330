"""Speed, memory and solvers beside those of others: `python -m experiments.benchmark --help`."""
