_base_ = ['torch_pruning_lamp.py']
pruning = dict(target=dict(flops=0.3))
