"""Pruning inside a runner of MMEngine."""
