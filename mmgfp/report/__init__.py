"""Tables, figures and pages about a pruned network."""
