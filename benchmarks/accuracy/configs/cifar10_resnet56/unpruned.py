_base_ = ['../cifar10/unpruned.py']
model = dict(backbone=dict(depth=56))
