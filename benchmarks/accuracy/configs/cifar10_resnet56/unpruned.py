# Nothing is removed: what as much training gives to the baseline.
_base_ = ['_resnet56.py']
pruning = None
