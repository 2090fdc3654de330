"""Measure the run of Fig. 4: its speed and memory, and how far its chaotic trajectories spread.

python -m experiments.benchmark fig4 [--json=PATH] [--repeats=N] [--steps=N]
python -m experiments.benchmark spread [--json=PATH] [--num-runs=N]
"""
