# A RetinaNet that trains from random weights in minutes on two cores.
_base_ = [
    '../_base_/retinanet_r18.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/digits_detection.py',
]

randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1)
)

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3),
    bbox_head=dict(
        num_classes=10,
        # The digits are 20 to 43 pixels high and never wider than high.
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0, 1.5, 2.25]),
    ),
)
