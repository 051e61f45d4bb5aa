_base_ = ['fisher_acts.py']
pruning = dict(target=dict(flops=0.3))
