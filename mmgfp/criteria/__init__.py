"""How much the loss would grow without a unit."""
