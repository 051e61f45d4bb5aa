"""What a network costs, and what it would cost without some units."""
