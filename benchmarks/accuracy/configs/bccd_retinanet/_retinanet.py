# RetinaNet-R18 on BCCD: what its experiments share.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_bccd.py',
]
title = 'RetinaNet-R18 on BCCD, half of the flops'
commands = """
unzip -q bccd.zip -d DATA/bccd
python benchmarks/accuracy/run.py bccd_retinanet --data-root DATA/bccd \\
    --seeds 0 1 --lrs 0.001 --jobs 2
python benchmarks/accuracy/report.py
"""

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
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        # platelets are 20 pixels high, red cells 50, white ones 100
        anchor_generator=dict(octave_base_scale=3),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=1.0),
        # the usual 0.01 is meant for 256 channels
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
