# A RetinaNet small enough to train from random weights on two cores.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py']

model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
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
