"""Measurement of time and memory of networks."""
