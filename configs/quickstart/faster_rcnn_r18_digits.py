# A Faster R-CNN that trains from random weights in minutes on two cores.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/digits_detection.py',
]

randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1)
)

# Proposals for the second stage, a few per digit.
proposals = dict(nms_pre=256, max_per_img=100)
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
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # The digits are 20 to 43 pixels high and never wider than high.
        anchor_generator=dict(scales=[5, 7], ratios=[1.0, 1.75]),
    ),
    roi_head=dict(
        # Finer than usual, so that digits come from two levels.
        bbox_roi_extractor=dict(out_channels=64, finest_scale=14),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=proposals,
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=proposals),
)
