# Nothing is removed: what as much training gives to the baseline.
_base_ = ['_resnet20.py']
pruning = None
