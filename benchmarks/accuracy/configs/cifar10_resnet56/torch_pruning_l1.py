_base_ = ['../cifar10/torch_pruning_l1.py']
model = dict(backbone=dict(depth=56))
