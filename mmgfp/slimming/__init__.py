"""Cutting channels out of networks, and the record of the cuts."""
