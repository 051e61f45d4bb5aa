_base_ = ['fisher_flops.py']
pruning = dict(target=dict(flops=0.3))
