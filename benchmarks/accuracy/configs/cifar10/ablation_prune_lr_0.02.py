_base_ = ['fisher_acts.py']
prune = dict(lr=0.02)
