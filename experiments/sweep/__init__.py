"""Sweeps: one configuration over a grid of settings, as one labelled result."""
