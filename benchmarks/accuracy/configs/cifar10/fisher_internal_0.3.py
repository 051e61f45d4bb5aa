_base_ = ['fisher_internal.py']
pruning = dict(target=dict(flops=0.3))
