_base_ = ['torch_pruning_l1.py']
pruning = dict(target=dict(flops=0.3))
