# A ResNet-18 that trains from random weights in a minute on two cores.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/digits_classification.py',
]

randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1)
)

model = dict(
    # the CIFAR form keeps the resolution in the first layers
    backbone=dict(type='ResNet_CIFAR', base_channels=16),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
