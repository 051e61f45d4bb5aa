_base_ = ['fisher_none.py']
pruning = dict(target=dict(flops=0.3))
