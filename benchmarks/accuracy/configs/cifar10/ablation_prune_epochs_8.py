# To the same target at a quarter of the pace.
_base_ = ['fisher_acts.py']
prune = dict(epochs=8)
