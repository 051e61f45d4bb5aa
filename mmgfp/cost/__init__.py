"""The cost of a network, and its cost after a cut of some units."""
