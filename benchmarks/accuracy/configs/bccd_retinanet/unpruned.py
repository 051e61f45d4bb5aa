# Nothing is removed: what as much training gives to the baseline.
_base_ = ['_retinanet.py']
pruning = None
