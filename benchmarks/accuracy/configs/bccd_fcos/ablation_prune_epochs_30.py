# The same channels in a third of the pace.
_base_ = ['fisher_acts.py']
prune = dict(epochs=30)
