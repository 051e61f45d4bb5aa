"""Cutting networks, and the record of what was cut."""
