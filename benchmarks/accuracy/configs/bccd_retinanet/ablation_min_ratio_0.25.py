# A quarter of every group stays.
_base_ = ['fisher_acts.py']
pruning = dict(min_ratio=0.25)
