"""Tables, pictures and pages about a pruned network."""
