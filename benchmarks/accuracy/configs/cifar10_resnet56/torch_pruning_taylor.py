_base_ = ['../cifar10/torch_pruning_taylor.py']
model = dict(backbone=dict(depth=56))
