# An FCOS with its GN head, from random weights in minutes on two cores.
_base_ = [
    '../_base_/fcos_r18.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/digits_detection.py',
]

randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1)
)

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3),
    bbox_head=dict(
        num_classes=10,
        # Finer than usual: most digits, 20 to 43 pixels high, belong to the
        # first level.
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 192), (192, 1e8)),
    ),
)
