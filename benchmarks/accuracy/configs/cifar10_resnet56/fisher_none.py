_base_ = ['../cifar10/fisher_none.py']
model = dict(backbone=dict(depth=56))
