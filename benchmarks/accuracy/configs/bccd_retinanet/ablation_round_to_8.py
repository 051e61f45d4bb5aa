# Runtimes like multiples of 8 channels.
_base_ = ['fisher_acts.py']
pruning = dict(round_to=8)
