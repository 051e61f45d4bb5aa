# A RetinaNet that trains from random weights in minutes on two cores.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/digits_detection.py',
]

randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1)
)

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3),
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        # The digits are 20 to 43 pixels high and never wider than high.
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0, 1.5, 2.25]),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=1.0),
        # The usual 0.01 is meant for 256 channels: with 64 the signal would
        # all but vanish over four layers without norm.
        init_cfg=dict(
            type='Normal',
            layer='Conv2d',
            std=0.05,
            override=dict(
                type='Normal', name='retina_cls', std=0.01, bias_prob=0.01
            ),
        ),
    ),
)
