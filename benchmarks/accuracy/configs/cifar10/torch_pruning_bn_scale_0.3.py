_base_ = ['torch_pruning_bn_scale.py']
pruning = dict(target=dict(flops=0.3))
