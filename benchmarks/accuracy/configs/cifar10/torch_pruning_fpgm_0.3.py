_base_ = ['torch_pruning_fpgm.py']
pruning = dict(target=dict(flops=0.3))
