# Prunes the weights of RetinaNet-R50 to a fifth, by its curvature.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

# all settings are ours: the paper has classifiers
density = 0.2  # share of the weights that stays
interval = 7330  # optimiser steps between the two steps: one epoch
lr = 0.002  # for 8 GPUs x 2 images, as is the next one
finetune_lr = 0.01

# the trained detector, with which pruning starts
# https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth
load_from = 'checkpoints/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
model = dict(backbone=dict(frozen_stages=-1, norm_eval=True, init_cfg=None))
train_cfg = dict(max_epochs=2)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = []

pruning = dict(
    type='mmgfp.SparsityHook',
    density=density,
    criterion=dict(type='KFAC'),
    steps=2,
    interval=interval,
    finetune=dict(
        train_cfg=dict(max_epochs=12),
        optim_wrapper=dict(optimizer=dict(lr=finetune_lr)),
    ),
)
custom_hooks = [pruning]
