"""Finding channel groups by tracing a network, and proving them."""
