_base_ = ['../cifar10/fisher_internal.py']
model = dict(backbone=dict(depth=56))
