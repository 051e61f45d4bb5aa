# Nothing is removed: what as much training gives to the baseline.
_base_ = ['_scales.py']
pruning = None
