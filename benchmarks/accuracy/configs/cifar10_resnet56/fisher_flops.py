_base_ = ['../cifar10/fisher_flops.py']
model = dict(backbone=dict(depth=56))
