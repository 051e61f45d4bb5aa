"""Services that know nothing of pruning: files, trees, random numbers."""
