"""The commands, one file each, and shared code."""
