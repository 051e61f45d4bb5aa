_base_ = ['torch_pruning_taylor.py']
pruning = dict(target=dict(flops=0.3))
