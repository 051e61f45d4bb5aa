"""Helpers that are independent of pruning: files, trees, random numbers."""
