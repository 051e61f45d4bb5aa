_base_ = ['../cifar10/fisher_acts.py']
model = dict(backbone=dict(depth=56))
