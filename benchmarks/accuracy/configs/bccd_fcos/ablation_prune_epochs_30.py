# To the same target at a third of the pace.
_base_ = ['fisher_acts.py']
prune = dict(epochs=30)
