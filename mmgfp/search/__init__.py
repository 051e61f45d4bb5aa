"""How much of each channel group stays."""
