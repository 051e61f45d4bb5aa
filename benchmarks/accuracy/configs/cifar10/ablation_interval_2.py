_base_ = ['fisher_acts.py']
pruning = dict(interval=2)
