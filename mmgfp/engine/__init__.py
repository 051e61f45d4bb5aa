"""Pruning inside a runner of MMEngine, and what the commands share."""
