# Methods on a classifier with the backbone of the segmentor in camvid.py.
_base_ = ['../cifar10/_resnet20.py', '_half.py']
title = 'ResNet-18 of the segmentor on CIFAR-10'
about = """
The backbone of the [FCN](methods_camvid.md), with a linear classifier. The
baseline is trained from random weights for eight epochs. Channels are pruned
during two epochs and fine-tuned for two. Batches have 128 pictures.
"""
commands = """
python benchmarks/accuracy/methods.py cifar10_backbone \\
    --data-root DATA/cifar10
python benchmarks/accuracy/methods_report.py
"""
metrics = {'accuracy/top1': '% top-1'}
custom_imports = dict(imports=['mmgfp', 'mmseg.models', 'data', 'precision'])
model = dict(
    _delete_=True,
    type='ImageClassifier',
    backbone=dict(
        type='mmseg.ResNetV1c',
        depth=18,
        stem_channels=16,
        base_channels=16,
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        out_indices=(3,),
        norm_cfg=dict(type='BN'),
        contract_dilation=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
train_dataloader = dict(
    collate_fn=dict(type='as_it_is'),
    dataset=dict(
        _delete_=True, type='CroppedBatches', folder='train', padding=4
    ),
)
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
pruning = None

input_shape = (32, 32)  # that cost is counted at
# epochs and learning rate of each phase
baseline = dict(epochs=8, lr=0.1)
prune = dict(epochs=2, lr=0.01)
finetune = dict(epochs=2, lr=0.05)
# with less than eight channels oneDNN's gradients of strided 1x1 convolutions
# write past their memory (github.com/uxlfoundation/oneDNN/issues/6035)
_more = dict(input_shape=input_shape, min_channels=8)
experiments = {
    name: dict(prune=_more)
    for name in _base_.experiments
    if name != 'unpruned'
}
del _more
